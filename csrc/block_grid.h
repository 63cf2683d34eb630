#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "jpeg_reader.h"
#include "processor.h"
#include "resample.h"

namespace afd {

// Components of a cell: Y, Cb, Cr.
inline constexpr std::size_t kCellBlocks = 3;
inline constexpr std::size_t kCellCoefficients = kCellBlocks * DCTSIZE2;

// Cells along a side of an input of `size` pixels; the last is cut where 8 does not divide the size.
inline std::uint32_t cells_of(std::uint32_t size) { return (size + DCTSIZE - 1) / DCTSIZE; }

// The block under the centre of each 8x8 cell of an input of `size` pixels along one axis, when the input shows
// [start, stop) of a picture whose blocks are `block_px` pixels long; none beyond the first or the last of `blocks`.
// Where the axis is stored mirrored, the cells are those of the upright picture as they lie in the stored one: the
// first is cut, not the last, and of two blocks that meet under a centre the first counts, not the second.
std::vector<std::uint32_t> blocks_under(double start, double stop, std::uint32_t size, std::uint32_t blocks,
                                        double block_px, bool is_mirrored);

// Collects the dequantized blocks under the cells of an input of `size` pixels that shows `box`: int16 [G, G, 3, 8, 8],
// natural order, as stored; values saturate. The first three components are Y, Cb, Cr; those that the picture lacks
// are zero.
class GridCollector final : public CoefficientSink {
 public:
  // `out` outlives this.
  GridCollector(const Box& box, std::uint32_t size, std::int16_t* out,
                Instructions instructions = Instructions::kFastest);

  void begin(const Header& header) override;
  void take(std::size_t component, std::uint32_t row, const JCOEF* blocks) noexcept override;

 private:
  using Dequantize = void (*)(const JCOEF*, const std::int32_t*, std::int16_t*);

  struct Plane {
    std::vector<std::uint32_t> rows;  // of blocks, for each row of cells
    std::vector<std::uint32_t> columns;
    std::size_t next = 0;  // row of cells
    std::int32_t table[DCTSIZE2];
  };

  Box box_;
  std::uint32_t size_;
  std::int16_t* out_;
  Dequantize dequantize_;
  std::vector<Plane> planes_;
};

// The grid, int16 [side, side, 3, 8, 8], as the upright picture would have it under an EXIF orientation from 1 to 8:
// mirroring a block negates its odd frequencies along that axis, and transposing it swaps the axes.
void orient_grid(const std::int16_t* stored, std::uint32_t side, int orientation, std::int16_t* out);

// For each coefficient of a cell the sum of its magnitudes over `cells` cells.
std::array<std::uint64_t, kCellCoefficients> magnitude_sums(const std::int16_t* blocks, std::size_t cells);

}  // namespace afd
