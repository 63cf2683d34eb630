#include "row_band.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace afd {

RowBand::RowBand(std::vector<PlaneShape> shapes, const std::vector<std::uint32_t>& rows, EntropyDecoder& decoder)
    : decoder_(decoder) {
  std::size_t blocks = 0;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    planes_.push_back({shapes[i], std::vector<JBLOCKROW>(rows[i])});
    blocks += std::size_t{shapes[i].padded_width_in_blocks} * rows[i];
  }
  memory_ = allocate_bytes(blocks * sizeof(JBLOCK));
  auto* next = reinterpret_cast<JBLOCK*>(memory_.get());
  for (Plane& plane : planes_) {
    for (JBLOCKROW& row : plane.rows) {
      row = next;
      next += plane.shape.padded_width_in_blocks;
    }
  }
}

RowBand::~RowBand() = default;

void RowBand::attach_to(jpeg_decompress_struct& cinfo) {
  cinfo.client_data = this;
  cinfo.mem->request_virt_barray = request_plane;
  cinfo.mem->access_virt_barray = access_plane;
}

// libjpeg requests one array per component, in the order of the components.
jvirt_barray_ptr RowBand::request_plane(j_common_ptr cinfo, int, boolean, JDIMENSION blocks_per_row,
                                        JDIMENSION row_count, JDIMENSION) {
  auto& self = *static_cast<RowBand*>(cinfo->client_data);
  if (self.requested_ >= self.planes_.size()) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  Plane& plane = self.planes_[self.requested_++];
  const bool fits =
      plane.shape.padded_width_in_blocks == blocks_per_row && plane.shape.padded_height_in_blocks == row_count;
  if (!fits) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  return reinterpret_cast<jvirt_barray_ptr>(&plane);
}

JBLOCKARRAY RowBand::access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                  JDIMENSION row_count, boolean writable) {
  auto& self = *static_cast<RowBand*>(cinfo->client_data);
  Plane& plane = *reinterpret_cast<Plane*>(handle);
  if (row_count > plane.rows.size()) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  if (writable) return plane.rows.data();
  const auto wanted = static_cast<std::uint32_t>(start_row / plane.rows.size());
  while (self.decoded_ <= wanted) {
    if (!self.decode_next()) ErrorManager::fail(cinfo, ErrorKind::kCorrupt, "spoiled");
  }
  if (wanted + 1 != self.decoded_) ERREXIT(cinfo, JERR_BAD_VIRTUAL_ACCESS);
  return plane.rows.data();
}

bool RowBand::decode_next() noexcept {
  if (!decoder_.decode_row()) return false;
  for (std::size_t i = 0; sink_ != nullptr && i < planes_.size(); ++i) {
    const Plane& plane = planes_[i];
    const auto height = static_cast<std::uint32_t>(plane.rows.size());
    for (std::uint32_t y = 0; y < height; ++y) sink_->take(i, decoded_ * height + y, plane.rows[y][0]);
  }
  ++decoded_;
  return true;
}

bool RowBand::decode_rest() noexcept {
  while (decoder_.has_rows_left()) {
    if (!decode_next()) return false;
  }
  return true;
}

}  // namespace afd
