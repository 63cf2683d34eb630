#include "block_grid.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "orientation.h"

namespace afd {
namespace {

AFD_ALWAYS_INLINE void dequantize_loop(const JCOEF* block, const std::int32_t* table, std::int16_t* out) {
  for (int i = 0; i < DCTSIZE2; ++i) {
    // At most 2^15 times 2^16 - 1. No sound 8-bit picture needs more than 12 bits, so only a hostile one is clipped.
    const std::int32_t product = block[i] * table[i];
    out[i] = static_cast<std::int16_t>(std::clamp(product, -32768, 32767));
  }
}

using Dequantize = void (*)(const JCOEF*, const std::int32_t*, std::int16_t*);

void dequantize_portable(const JCOEF* block, const std::int32_t* table, std::int16_t* out) {
  dequantize_loop(block, table, out);
}

#ifdef AFD_HAS_AVX2
AFD_TARGET_AVX2 void dequantize_avx2(const JCOEF* block, const std::int32_t* table, std::int16_t* out) {
  dequantize_loop(block, table, out);
}
#endif

Dequantize dequantize_for(Instructions instructions) {
#ifdef AFD_HAS_AVX2
  if (use_avx2(instructions)) return dequantize_avx2;
#endif
  (void)instructions;
  return dequantize_portable;
}

void orient_block(const std::int16_t* stored, const Orientation& turn, std::int16_t* out) {
  for (int v = 0; v < DCTSIZE; ++v) {
    for (int u = 0; u < DCTSIZE; ++u) {
      const int value = stored[v * DCTSIZE + u];
      const bool negated = (turn.mirrors_x && u % 2 == 1) != (turn.mirrors_y && v % 2 == 1);
      out[turn.swaps_axes ? u * DCTSIZE + v : v * DCTSIZE + u] = static_cast<std::int16_t>(negated ? -value : value);
    }
  }
}

}  // namespace

std::vector<std::uint32_t> blocks_under(double start, double stop, std::uint32_t size, std::uint32_t blocks,
                                        double block_px, bool is_mirrored) {
  std::vector<std::uint32_t> under(cells_of(size));
  const double upright_start = is_mirrored ? blocks * block_px - stop : start;
  for (std::uint32_t cell = 0; cell < under.size(); ++cell) {
    const std::uint32_t first = cell * DCTSIZE;
    const std::uint32_t last = std::min(first + DCTSIZE, size);
    // Divided once: a centre on the edge of a block would fall into the block before it by a rounding.
    const double center = (2.0 * size * upright_start + (first + last) * (stop - start)) / (2.0 * size * block_px);
    const auto block = static_cast<std::uint32_t>(std::clamp(std::floor(center), 0.0, blocks - 1.0));
    under[cell] = is_mirrored ? blocks - 1 - block : block;
  }
  if (is_mirrored) std::reverse(under.begin(), under.end());
  return under;
}

GridCollector::GridCollector(const Box& box, std::uint32_t size, std::int16_t* out, Instructions instructions)
    : box_(box), size_(size), out_(out), dequantize_(dequantize_for(instructions)) {}

void GridCollector::begin(const Header& header) {
  int h_max = 1;
  int v_max = 1;
  for (const Component& component : header.components) {
    h_max = std::max(h_max, component.h);
    v_max = std::max(v_max, component.v);
  }
  const Orientation turn(header.orientation);
  planes_.clear();
  planes_.resize(std::min(kCellBlocks, header.components.size()));
  for (std::size_t i = 0; i < planes_.size(); ++i) {
    const Component& component = header.components[i];
    const double block_width_px = static_cast<double>(DCTSIZE * h_max) / component.h;
    const double block_height_px = static_cast<double>(DCTSIZE * v_max) / component.v;
    planes_[i].rows =
        blocks_under(box_.top, box_.bottom, size_, component.height_in_blocks, block_height_px, turn.mirrors_y);
    planes_[i].columns =
        blocks_under(box_.left, box_.right, size_, component.width_in_blocks, block_width_px, turn.mirrors_x);
    std::copy(component.quant_table->begin(), component.quant_table->end(), planes_[i].table);
  }
  if (planes_.size() < kCellBlocks) {
    std::memset(out_, 0, std::size_t{cells_of(size_)} * cells_of(size_) * kCellCoefficients * sizeof *out_);
  }
}

// Several rows of cells may lie over one row of blocks.
void GridCollector::take(std::size_t component, std::uint32_t row, const JCOEF* blocks) noexcept {
  if (component >= planes_.size()) return;
  Plane& plane = planes_[component];
  const std::size_t cells = plane.rows.size();
  for (; plane.next < cells && plane.rows[plane.next] == row; ++plane.next) {
    std::int16_t* out = out_ + plane.next * cells * kCellCoefficients + component * DCTSIZE2;
    for (const std::uint32_t column : plane.columns) {
      dequantize_(blocks + std::size_t{column} * DCTSIZE2, plane.table, out);
      out += kCellCoefficients;
    }
  }
}

void orient_grid(const std::int16_t* stored, std::uint32_t side, int orientation, std::int16_t* out) {
  const Orientation turn(orientation);
  for (std::size_t y = 0; y < side; ++y) {
    for (std::size_t x = 0; x < side; ++x) {
      const std::size_t column = turn.swaps_axes ? y : x;
      const std::size_t row = turn.swaps_axes ? x : y;
      const std::size_t cell =
          (turn.mirrors_y ? side - 1 - row : row) * side + (turn.mirrors_x ? side - 1 - column : column);
      for (std::size_t i = 0; i < kCellBlocks; ++i, out += DCTSIZE2) {
        orient_block(stored + cell * kCellCoefficients + i * DCTSIZE2, turn, out);
      }
    }
  }
}

std::array<std::uint64_t, kCellCoefficients> magnitude_sums(const std::int16_t* blocks, std::size_t cells) {
  // Narrow sums, which vector instructions add more of at once; so many magnitudes of up to 2^15 fit.
  constexpr std::size_t kCellsAtOnce = 1 << 16;
  std::array<std::uint64_t, kCellCoefficients> sums{};
  while (cells > 0) {
    const std::size_t some = std::min(cells, kCellsAtOnce);
    std::array<std::uint32_t, kCellCoefficients> partial{};
    for (std::size_t cell = 0; cell < some; ++cell, blocks += kCellCoefficients) {
      for (std::size_t i = 0; i < kCellCoefficients; ++i) {
        partial[i] += static_cast<std::uint32_t>(std::abs(std::int32_t{blocks[i]}));
      }
    }
    for (std::size_t i = 0; i < kCellCoefficients; ++i) sums[i] += partial[i];
    cells -= some;
  }
  return sums;
}

}  // namespace afd
