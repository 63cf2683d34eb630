#include "row_band.h"

#include "error.h"

namespace afd {

RowBand::RowBand(const std::vector<PlaneShape>& shapes, const std::vector<std::uint32_t>& rows, EntropyDecoder& decoder)
    : BlockPlanes(shapes.size()), decoder_(decoder) {
  for (std::size_t i = 0; i < shapes.size(); ++i) add_plane(shapes[i], rows[i]);
  memory_ = allocate_bytes(static_cast<std::size_t>(block_count()) * sizeof(JBLOCK));
  lay_rows_out(reinterpret_cast<JBLOCK*>(memory_.get()));
}

JBLOCKARRAY RowBand::access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                  JDIMENSION row_count, boolean writable) {
  auto& self = static_cast<RowBand&>(*static_cast<BlockPlanes*>(cinfo->client_data));
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
