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

CoefficientArena::CoefficientArena(std::vector<PlaneShape> shapes, bool zeroed, JCOEF* memory)
    : size_bytes_(bytes_for(shapes)), is_ours_(memory == nullptr) {
  planes_.reserve(shapes.size());
  for (const PlaneShape& shape : shapes) {
    planes_.push_back({shape, std::vector<JBLOCKROW>(shape.padded_height_in_blocks)});
  }
  if (size_bytes_ > std::numeric_limits<std::size_t>::max()) throw std::bad_alloc();
  const auto size = static_cast<std::size_t>(size_bytes_);
  if (is_ours_) {
    data_ = static_cast<JBLOCK*>(zeroed ? take_zeroed_buffer(size) : take_buffer(size));  // nothing below throws
  } else {
    data_ = reinterpret_cast<JBLOCK*>(memory);
    if (zeroed) std::memset(memory, 0, size);
  }
  JBLOCK* next = data_;
  for (Plane& plane : planes_) {
    for (JBLOCKROW& row : plane.rows) {
      row = next;
      next += plane.shape.padded_width_in_blocks;
    }
  }
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

// libjpeg's `realize_virt_arrays` stays: it only sees arrays that went through its own request method, so that it has
// nothing to do for ours.
void CoefficientArena::attach_to(jpeg_decompress_struct& cinfo) {
  requested_ = 0;
  cinfo.client_data = this;
  cinfo.mem->request_virt_barray = request_plane;
  cinfo.mem->access_virt_barray = access_plane;
}

// libjpeg requests one array per component, in the order of the components.
jvirt_barray_ptr CoefficientArena::request_plane(j_common_ptr cinfo, int, boolean, JDIMENSION blocks_per_row,
                                                 JDIMENSION row_count, JDIMENSION) {
  auto& self = *static_cast<CoefficientArena*>(cinfo->client_data);
  if (self.requested_ >= self.planes_.size()) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  Plane& plane = self.planes_[self.requested_++];
  const bool fits =
      plane.shape.padded_width_in_blocks == blocks_per_row && plane.shape.padded_height_in_blocks == row_count;
  if (!fits) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  return reinterpret_cast<jvirt_barray_ptr>(&plane);
}

JBLOCKARRAY CoefficientArena::access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                           JDIMENSION row_count, boolean) {
  Plane& plane = *reinterpret_cast<Plane*>(handle);
  const std::size_t end = std::size_t{start_row} + row_count;
  if (end > plane.rows.size()) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  return plane.rows.data() + start_row;
}

}  // namespace afd
