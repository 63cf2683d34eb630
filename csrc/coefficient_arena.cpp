#include "coefficient_arena.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "buffer_pool.h"
#include "error.h"

namespace afd {
namespace {

std::atomic<std::size_t> live_arenas{0};

std::uint64_t blocks_in(const PlaneShape& shape) {
  return std::uint64_t{shape.padded_width_in_blocks} * shape.padded_height_in_blocks;
}

}  // namespace

std::uint64_t CoefficientArena::bytes_for(const std::vector<PlaneShape>& shapes) {
  std::uint64_t blocks = 0;
  for (const PlaneShape& shape : shapes) blocks += blocks_in(shape);
  return blocks * sizeof(JBLOCK);
}

CoefficientArena::CoefficientArena(const std::vector<PlaneShape>& shapes, bool zeroed, JCOEF* memory)
    : BlockPlanes(shapes.size()), size_bytes_(bytes_for(shapes)), is_ours_(memory == nullptr) {
  for (const PlaneShape& shape : shapes) add_plane(shape, shape.padded_height_in_blocks);
  if (size_bytes_ > std::numeric_limits<std::size_t>::max()) throw std::bad_alloc();
  const auto size = static_cast<std::size_t>(size_bytes_);
  if (is_ours_) {
    data_ = static_cast<JBLOCK*>(zeroed ? take_zeroed_buffer(size) : take_buffer(size));  // nothing below throws
  } else {
    data_ = reinterpret_cast<JBLOCK*>(memory);
    if (zeroed) std::memset(memory, 0, size);
  }
  lay_rows_out(data_);
  ++live_arenas;
}

CoefficientArena::~CoefficientArena() {
  if (is_ours_) give_back_buffer(data_);
  --live_arenas;
}

std::size_t CoefficientArena::live_count() { return live_arenas; }

void CoefficientArena::clear_plane(std::size_t component) {
  const std::uint64_t bytes = blocks_in(shape(component)) * sizeof(JBLOCK);
  std::memset(plane(component), 0, static_cast<std::size_t>(bytes));
}

JBLOCKARRAY CoefficientArena::access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                           JDIMENSION row_count, boolean) {
  Plane& plane = *reinterpret_cast<Plane*>(handle);
  const std::size_t end = std::size_t{start_row} + row_count;
  if (end > plane.rows.size()) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  return plane.rows.data() + start_row;
}

}  // namespace afd
