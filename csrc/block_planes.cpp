#include "block_planes.h"

#include "error.h"

namespace afd {

void BlockPlanes::add_plane(const PlaneShape& shape, std::size_t rows) {
  planes_.push_back({shape, std::vector<JBLOCKROW>(rows)});
}

std::uint64_t BlockPlanes::block_count() const {
  std::uint64_t blocks = 0;
  for (const Plane& plane : planes_) blocks += std::uint64_t{plane.shape.padded_width_in_blocks} * plane.rows.size();
  return blocks;
}

void BlockPlanes::lay_rows_out(JBLOCK* memory) {
  for (Plane& plane : planes_) {
    for (JBLOCKROW& row : plane.rows) {
      row = memory;
      memory += plane.shape.padded_width_in_blocks;
    }
  }
}

// libjpeg's `realize_virt_arrays` stays: it only sees arrays that went through its own request method, so that it has
// nothing to do for ours.
void BlockPlanes::attach(jpeg_decompress_struct& cinfo, AccessRows access) {
  requested_ = 0;
  cinfo.client_data = this;
  cinfo.mem->request_virt_barray = request_plane;
  cinfo.mem->access_virt_barray = access;
}

// libjpeg requests one array per component, in the order of the components.
jvirt_barray_ptr BlockPlanes::request_plane(j_common_ptr cinfo, int, boolean, JDIMENSION blocks_per_row,
                                            JDIMENSION row_count, JDIMENSION) {
  auto& self = *static_cast<BlockPlanes*>(cinfo->client_data);
  if (self.requested_ >= self.planes_.size()) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  Plane& plane = self.planes_[self.requested_++];
  const bool fits =
      plane.shape.padded_width_in_blocks == blocks_per_row && plane.shape.padded_height_in_blocks == row_count;
  if (!fits) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  return reinterpret_cast<jvirt_barray_ptr>(&plane);
}

}  // namespace afd
