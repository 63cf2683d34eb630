#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coefficient_arena.h"
#include "entropy_decoder.h"
#include "error.h"
#include "limits.h"
#include "pixels.h"
#include "row_band.h"

namespace afd {

using QuantTable = std::array<std::uint16_t, DCTSIZE2>;  // natural order

struct Component {
  int id;
  int h;  // horizontal sampling factor
  int v;  // vertical sampling factor
  std::uint32_t width_in_blocks;
  std::uint32_t height_in_blocks;
  std::optional<QuantTable> quant_table;
};

struct Header {
  // Whether the other picture has its pixels and blocks in the same places.
  bool is_laid_out_as(const Header& other) const;

  std::uint32_t width;
  std::uint32_t height;
  int precision;
  const char* color_space;
  bool progressive;
  bool arithmetic;
  std::uint32_t restart_interval;  // in MCUs; 0 for none
  int orientation;                 // EXIF, 1 to 8
  std::optional<int> adobe_transform;
  std::vector<Component> components;
};

// Part of the pixels, at the scale that they are decoded at.
struct Region {
  std::uint32_t x;
  std::uint32_t y;
  std::uint32_t width;
  std::uint32_t height;
};

// Takes the coefficients as they come, instead of all at once.
class CoefficientSink : public RowSink {
 public:
  // The picture's final header, before any row. If rows turn out to be wrong, it is called again, and all of them come
  // again. Throws std::bad_alloc.
  virtual void begin(const Header& header) = 0;

 protected:
  ~CoefficientSink() = default;
};

// Memory of the caller's that a picture is decoded into; null for memory of our own. It outlives the picture.
struct Output {
  static constexpr std::size_t kAlignment = 16;  // libjpeg-turbo's inverse DCT loads vectors of coefficients

  JCOEF* coefficients = nullptr;
  std::size_t coefficient_count = 0;
  std::uint8_t* samples = nullptr;
  std::size_t sample_count = 0;
};

struct ReadOptions {
  bool pixels = false;
  int scale = 8;  // eighths of the full size, 1 to 8
  bool apply_orientation = false;
  Decoder decoder = Decoder::kFastest;
  // Without `apply_orientation`: the pixels hold at least this part. Those inside are the same as in a whole picture.
  std::optional<Region> region = std::nullopt;
  // With `pixels`: gets the coefficients, those under the region where there is one, and the picture has none.
  CoefficientSink* sink = nullptr;
  Output output = {};
};

struct Picture {
  Header header;
  std::unique_ptr<CoefficientArena> coefficients;
  std::optional<Pixels> pixels;
  std::vector<std::string> warnings;  // the first ones
  std::size_t warning_count = 0;      // all of them
  int own_scans = 0;                  // decoded by EntropyDecoder, not by libjpeg
};

// One reading session over bytes that the caller keeps alive and unchanged. All methods throw JpegFailure on bad input
// and std::bad_alloc. A reader is used by one thread; readers share nothing.
class JpegReader {
 public:
  // Reads everything up to the first scan.
  JpegReader(const std::uint8_t* data, std::size_t size, const Limits& limits, bool tolerant);
  ~JpegReader();
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  const Header& header() const { return header_; }

  // Decodes the picture; may be called once.
  Picture read(ReadOptions options);

 private:
  // libjpeg's callbacks find the reader through the progress manager, the one manager that is ours to extend.
  struct Session {
    jpeg_progress_mgr base;  // first, so that libjpeg's pointer to it is a pointer to this object
    JpegReader* reader;
  };

  static JpegReader& reader_of(j_common_ptr cinfo) { return *reinterpret_cast<Session*>(cinfo->progress)->reader; }
  // Our decoder has changed coefficients that libjpeg would have decoded in another way.
  struct SpoiledCoefficients {};

  static boolean read_app1(j_decompress_ptr cinfo);
  static void before_input(j_common_ptr cinfo);
  static void check_scan_number(j_common_ptr cinfo);
  static void realize_then_lift_scales(j_common_ptr cinfo);

  template <typename Step>
  void run(const Step& step) {
    if (errors_.guarded(step)) return;
    if (decoder_ && decoder_->spoiled()) throw SpoiledCoefficients();
    throw errors_.failure();
  }

  template <typename Step>
  void run_scans(const Step& step);

  Picture read_once(const ReadOptions& options);
  void check_input() const;
  Header describe();
  std::vector<PlaneShape> plane_shapes() const;
  void check_cost(const ReadOptions& options, const std::vector<PlaneShape>& shapes);
  std::uint64_t block_count() const;
  void check_blocks_per_byte(std::uint64_t blocks) const;
  void check_arithmetic_blocks(std::uint64_t blocks) const;
  std::uint64_t blocks_named(const std::uint8_t* segment, std::size_t size) const;
  void check_scans() const;
  void check_scan_blocks();
  void check_memory(const ReadOptions& options, const std::vector<PlaneShape>& shapes);
  void check_output(const ReadOptions& options, const std::vector<PlaneShape>& shapes) const;
  void set_output(const ReadOptions& options);
  void make_coefficients(const ReadOptions& options, const std::vector<PlaneShape>& shapes, Picture& picture);
  void send_coefficients(CoefficientSink& sink);
  void decode_new_scan();
  void decode_coefficients();
  void decode_coefficients_for_output();
  void check_smoothing() const;
  bool has_finished_a_scan() const;
  void lift_scales();
  void restore_scales();
  Pixels output_pixels(const ReadOptions& options);
  bool may_crop();
  Pixels start_region(const Region& region);
  McuWindow mcus_under(const Pixels& part) const;
  void check_complete();
  bool has_every_coefficient(std::size_t component) const;
  void collect_quant_tables();

  const std::uint8_t* data_;
  std::size_t size_;
  Limits limits_;
  bool tolerant_;
  ErrorManager errors_;
  Session session_{};
  jpeg_decompress_struct cinfo_{};
  void (*realize_virt_arrays_)(j_common_ptr) = nullptr;
  bool lifted_[MAX_COMPONENTS] = {};
  std::optional<EntropyDecoder> decoder_;  // as long as `arena_`, the one it fills
  CoefficientArena* arena_ = nullptr;
  std::optional<RowBand> band_;  // in place of the arena
  int scan_ = 0;
  std::uint64_t scan_blocks_ = 0;       // of all scans so far
  std::uint64_t new_coefficients_ = 0;  // likewise, those that are not refined
  int own_scans_ = 0;
  int orientation_ = 0;
  Header header_{};
};

}  // namespace afd
