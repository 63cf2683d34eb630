#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "block_planes.h"
#include "entropy_decoder.h"
#include "libjpeg.h"
#include "pixels.h"

namespace afd {

// Sees every row of blocks of a picture, those of each component from the top to the bottom. Called from libjpeg, whose
// errors jump: throws nothing.
class RowSink {
 public:
  // `blocks` is int16 [padded width in blocks, 8, 8], quantized, natural order; valid during the call.
  virtual void take(std::size_t component, std::uint32_t row, const JCOEF* blocks) noexcept = 0;

 protected:
  ~RowSink() = default;
};

// One row of MCUs, into which libjpeg's output pass decodes as it goes: a large picture's coefficients then never leave
// the processor's caches, and nobody waits for memory to be mapped and zeroed. In place of a CoefficientArena.
//
// libjpeg's input pass asks for rows to write, and gets some that it leaves alone; see Note [Our scans inside
// libjpeg's]. Its output pass asks for rows to read, from the top to the bottom.
class RowBand : public BlockPlanes {
 public:
  static constexpr bool kHoldsAllRows = false;

  // `rows` are those of each plane that belong to one row of MCUs. Throws std::bad_alloc.
  RowBand(const std::vector<PlaneShape>& shapes, const std::vector<std::uint32_t>& rows, EntropyDecoder& decoder);

  // See BlockPlanes::attach.
  void attach_to(jpeg_decompress_struct& cinfo) { attach(cinfo, access_plane); }
  // Where rows go once they are decoded; before any is.
  void send_to(RowSink* sink) { sink_ = sink; }
  // Decodes what the output pass did not ask for; false if the picture is spoiled.
  bool decode_rest() noexcept;

 private:
  static JBLOCKARRAY access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                  JDIMENSION row_count, boolean writable);
  bool decode_next() noexcept;

  EntropyDecoder& decoder_;
  ByteBuffer memory_;
  RowSink* sink_ = nullptr;
  std::uint32_t decoded_ = 0;  // rows of MCUs
};

}  // namespace afd
