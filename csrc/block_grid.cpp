#include "block_grid.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

struct Turn {
  explicit Turn(int orientation)
      : swaps_axes(orientation >= 5),
        flips_x(orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7),
        flips_y(orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8) {}

  bool swaps_axes;  // first
  bool flips_x;
  bool flips_y;
};

void orient_block(const std::int16_t* stored, const Turn& turn, std::int16_t* out) {
  for (int v = 0; v < DCTSIZE; ++v) {
    for (int u = 0; u < DCTSIZE; ++u) {
      const int value = turn.swaps_axes ? stored[u * DCTSIZE + v] : stored[v * DCTSIZE + u];
      const bool negated = (turn.flips_x && u % 2 == 1) != (turn.flips_y && v % 2 == 1);
      out[v * DCTSIZE + u] = static_cast<std::int16_t>(negated ? -value : value);
    }
  }
}

}  // namespace

std::vector<std::uint32_t> blocks_under(double start, double stop, std::uint32_t size, std::uint32_t blocks,
                                        double block_px) {
  std::vector<std::uint32_t> under(cells_of(size));
  for (std::uint32_t cell = 0; cell < under.size(); ++cell) {
    const std::uint32_t first = cell * DCTSIZE;
    const std::uint32_t last = std::min(first + DCTSIZE, size);
    const double center = start + (first + last) * ((stop - start) / (2.0 * size));
    under[cell] = static_cast<std::uint32_t>(std::clamp(std::floor(center / block_px), 0.0, blocks - 1.0));
  }
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
  planes_.clear();
  planes_.resize(std::min(kCellBlocks, header.components.size()));
  for (std::size_t i = 0; i < planes_.size(); ++i) {
    const Component& component = header.components[i];
    const double block_width_px = static_cast<double>(DCTSIZE * h_max) / component.h;
    const double block_height_px = static_cast<double>(DCTSIZE * v_max) / component.v;
    planes_[i].rows = blocks_under(box_.top, box_.bottom, size_, component.height_in_blocks, block_height_px);
    planes_[i].columns = blocks_under(box_.left, box_.right, size_, component.width_in_blocks, block_width_px);
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
  const Turn turn(orientation);
  for (std::size_t y = 0; y < side; ++y) {
    for (std::size_t x = 0; x < side; ++x) {
      const std::size_t turned_x = turn.flips_x ? side - 1 - x : x;
      const std::size_t turned_y = turn.flips_y ? side - 1 - y : y;
      const std::size_t cell = turn.swaps_axes ? turned_x * side + turned_y : turned_y * side + turned_x;
      for (std::size_t i = 0; i < kCellBlocks; ++i, out += DCTSIZE2) {
        orient_block(stored + cell * kCellCoefficients + i * DCTSIZE2, turn, out);
      }
    }
  }
}

}  // namespace afd
