#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
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

// One buffer that holds the quantized coefficients of all components, and the hooks that make libjpeg decode into it.
// It knows nothing of how it is filled: any entropy decoder can write to `plane`.
class CoefficientArena {
 public:
  static constexpr bool kHoldsAllRows = true;

  static std::uint64_t bytes_for(const std::vector<PlaneShape>& shapes);

  // `zeroed` as libjpeg needs it, or for a decoder that writes every block. `memory` is the caller's and outlives the
  // arena; without it the arena has its own. Throws std::bad_alloc.
  explicit CoefficientArena(std::vector<PlaneShape> shapes, bool zeroed = true, JCOEF* memory = nullptr);
  ~CoefficientArena();
  CoefficientArena(const CoefficientArena&) = delete;
  CoefficientArena& operator=(const CoefficientArena&) = delete;

  // Arenas alive in this process; tests use it to prove that no buffer leaks.
  static std::size_t live_count();

  std::size_t plane_count() const { return planes_.size(); }
  const PlaneShape& shape(std::size_t component) const { return planes_[component].shape; }
  // First coefficient of the plane: int16 [padded_height_in_blocks, padded_width_in_blocks, 8, 8], natural order.
  JCOEF* plane(std::size_t component) const { return planes_[component].rows.front()[0]; }
  void clear_plane(std::size_t component);
  const void* data() const { return data_; }
  std::uint64_t size_bytes() const { return size_bytes_; }

  // Replaces the block-array methods of `cinfo`'s memory manager. The arena must outlive the decompression; it must be
  // called after the header is read and before libjpeg chooses its coefficient controller. Takes `cinfo.client_data`.
  void attach_to(jpeg_decompress_struct& cinfo);

 private:
  struct Plane {
    PlaneShape shape;
    std::vector<JBLOCKROW> rows;
  };

  static jvirt_barray_ptr request_plane(j_common_ptr cinfo, int pool_id, boolean pre_zero, JDIMENSION blocks_per_row,
                                        JDIMENSION row_count, JDIMENSION max_access);
  static JBLOCKARRAY access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                  JDIMENSION row_count, boolean writable);

  std::vector<Plane> planes_;
  std::uint64_t size_bytes_;
  bool is_ours_;
  JBLOCK* data_ = nullptr;
  std::size_t requested_ = 0;
};

}  // namespace afd
