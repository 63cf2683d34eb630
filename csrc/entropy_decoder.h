#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "coefficient_arena.h"
#include "libjpeg.h"
#include "pixels.h"

namespace afd {

class RowBand;
class ScanData;
class TableCache;
struct Scan;

// Which code decodes Huffman data. All give the same coefficients.
enum class Decoder {
  kFastest,   // ours, with the instructions of this processor
  kPortable,  // ours, with those that every processor has
  kLibjpeg,   // libjpeg-turbo's
};

// Some of a picture's MCUs, by rows and columns.
struct McuWindow {
  std::uint32_t first_column;
  std::uint32_t end_column;
  std::uint32_t first_row;
  std::uint32_t end_row;
};

// Whether kFastest is more than kPortable here.
bool has_vector_decoder();

// Decodes Huffman-coded scans, faster than libjpeg. It takes only what is sound beyond doubt and leaves the rest to
// libjpeg: nobody has to know how we would treat damage.
class EntropyDecoder {
 public:
  // For the picture whose header `cinfo` has read, from data of up to `size` bytes. Throws std::bad_alloc.
  EntropyDecoder(Decoder decoder, std::size_t size, const jpeg_decompress_struct& cinfo, std::uint64_t arena_bytes);
  ~EntropyDecoder();

  // Whether the first scan, if it decodes, writes every block of the picture: an arena need not be zeroed for it, and
  // rows can be decoded one by one.
  bool fills_arena(const jpeg_decompress_struct& cinfo) const;

  // Decodes the scan that libjpeg is about to decode, and moves libjpeg's source to the marker behind it. If it returns
  // false, the source is where it was, and the scan's planes are as libjpeg needs them, unless they are spoiled.
  //
  // Called from libjpeg, whose errors jump: owns nothing, throws nothing.
  bool decode_scan(jpeg_decompress_struct& cinfo, CoefficientArena& arena) noexcept;

  // Instead of `decode_scan`, where `fills_arena`: only moves libjpeg's source to the marker behind the scan. Then each
  // `decode_row` decodes the next row of MCUs into the band, which outlives this. All rows must be decoded in the end:
  // nobody knows earlier whether the file is sound. Where one returns false, the picture is spoiled.
  bool start_rows(jpeg_decompress_struct& cinfo, RowBand& band) noexcept;
  // From now on, blocks outside the window are read as strictly as ever, but hold anything.
  void want_only(const McuWindow& window) { wanted_ = window; }
  bool decode_row() noexcept;
  bool has_rows_left() const;

  // Whether a progressive scan failed halfway, on top of others that it has changed, or a scan whose rows are decoded
  // one by one: only libjpeg, from the first scan on, can say what such a file holds.
  bool spoiled() const { return spoiled_; }

 private:
  static constexpr std::int8_t kUnseen = -1;

  bool accepts(const jpeg_decompress_struct& cinfo) const;
  bool is_in_order(const jpeg_decompress_struct& cinfo);
  bool find_end(const jpeg_decompress_struct& cinfo);
  bool decode_wanted();

  Decoder decoder_;
  TableCache* tables_;
  bool gave_up_ = false;
  bool spoiled_ = false;
  std::int8_t missing_bits_[MAX_COMPONENTS][DCTSIZE2];  // of each coefficient, in zigzag order, so far
  ByteBuffer scratch_;
  const std::unique_ptr<ScanData> rows_;  // of `start_rows`
  bool rows_started_ = false;
  const std::uint8_t* end_of_rows_ = nullptr;  // the marker behind them
  McuWindow wanted_{};
  std::vector<std::uint64_t> nonzero_;  // see Note [AC refinement]
};

}  // namespace afd
