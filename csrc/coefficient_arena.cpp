#include "coefficient_arena.h"

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#include "error.h"

namespace afd {
namespace {

constexpr std::size_t kAlignment = 64;  // a cache line; libjpeg's vector code asks for 32

std::atomic<std::size_t> live_arenas{0};

std::uint64_t blocks_in(const PlaneShape& shape) {
  return std::uint64_t{shape.padded_width_in_blocks} * shape.padded_height_in_blocks;
}

// calloc, because the kernel hands out large buffers as zero pages: blocks that are never decoded cost nothing.
void* allocate_zeroed(std::uint64_t size) {
  if (size > std::numeric_limits<std::size_t>::max() - kAlignment) throw std::bad_alloc();
  void* memory = std::calloc(static_cast<std::size_t>(size) + kAlignment, 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

JBLOCK* aligned(void* memory) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  return reinterpret_cast<JBLOCK*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace

std::uint64_t CoefficientArena::bytes_for(const std::vector<PlaneShape>& shapes) {
  std::uint64_t blocks = 0;
  for (const PlaneShape& shape : shapes) blocks += blocks_in(shape);
  return blocks * sizeof(JBLOCK);
}

CoefficientArena::CoefficientArena(std::vector<PlaneShape> shapes) : size_bytes_(bytes_for(shapes)) {
  planes_.reserve(shapes.size());
  for (const PlaneShape& shape : shapes) {
    planes_.push_back({shape, std::vector<JBLOCKROW>(shape.padded_height_in_blocks)});
  }
  allocation_ = allocate_zeroed(size_bytes_);  // last: nothing below throws
  data_ = aligned(allocation_);
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
  std::free(allocation_);
  --live_arenas;
}

std::size_t CoefficientArena::live_count() { return live_arenas; }

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
