#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "libjpeg.h"

namespace afd {

// The blocks of one component. Rows and columns are padded to the component's sampling factors, because an MCU at the
// right or lower edge holds blocks beyond the picture.
struct PlaneShape {
  std::uint32_t width_in_blocks;
  std::uint32_t height_in_blocks;
  std::uint32_t padded_width_in_blocks;
  std::uint32_t padded_height_in_blocks;
};

// What libjpeg takes for its arrays of blocks, one per component: rows of blocks in memory that a derived class has.
class BlockPlanes {
 public:
  BlockPlanes(const BlockPlanes&) = delete;
  BlockPlanes& operator=(const BlockPlanes&) = delete;

  const PlaneShape& shape(std::size_t component) const { return planes_[component].shape; }
  // The component's first coefficient in memory: int16 [rows, padded_width_in_blocks, 8, 8], natural order.
  JCOEF* plane(std::size_t component) const { return planes_[component].rows.front()[0]; }

 protected:
  struct Plane {
    PlaneShape shape;
    std::vector<JBLOCKROW> rows;
  };
  using AccessRows = JBLOCKARRAY (*)(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                     JDIMENSION row_count, boolean writable);

  explicit BlockPlanes(std::size_t count) { planes_.reserve(count); }
  ~BlockPlanes() = default;

  // One more component, with `rows` of its rows in memory.
  void add_plane(const PlaneShape& shape, std::size_t rows);
  // The blocks of all rows, in all planes.
  std::uint64_t block_count() const;
  // Puts the rows into memory for `block_count` blocks, one after the other.
  void lay_rows_out(JBLOCK* memory);

  // Replaces the block-array methods of `cinfo`'s memory manager; `access` gets the Plane as its handle and finds the
  // BlockPlanes in `cinfo.client_data`. They must outlive the decompression; to be called after the header is read and
  // before libjpeg chooses its coefficient controller.
  void attach(jpeg_decompress_struct& cinfo, AccessRows access);

  std::vector<Plane> planes_;

 private:
  static jvirt_barray_ptr request_plane(j_common_ptr cinfo, int pool_id, boolean pre_zero, JDIMENSION blocks_per_row,
                                        JDIMENSION row_count, JDIMENSION max_access);

  std::size_t requested_ = 0;
};

}  // namespace afd
