#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "block_planes.h"
#include "libjpeg.h"

namespace afd {

// One buffer that holds the quantized coefficients of all components, and the hooks that make libjpeg decode into it.
// It knows nothing of how it is filled: any entropy decoder can write to `plane`.
class CoefficientArena : public BlockPlanes {
 public:
  static constexpr bool kHoldsAllRows = true;

  static std::uint64_t bytes_for(const std::vector<PlaneShape>& shapes);

  // `zeroed` as libjpeg needs it, or for a decoder that writes every block. `memory` is the caller's and outlives the
  // arena; without it the arena has its own. Throws std::bad_alloc.
  explicit CoefficientArena(const std::vector<PlaneShape>& shapes, bool zeroed = true, JCOEF* memory = nullptr);
  ~CoefficientArena();

  // Arenas alive in this process; tests use it to prove that no buffer leaks.
  static std::size_t live_count();

  std::size_t plane_count() const { return planes_.size(); }
  void clear_plane(std::size_t component);
  const void* data() const { return data_; }
  std::uint64_t size_bytes() const { return size_bytes_; }

  // See BlockPlanes::attach.
  void attach_to(jpeg_decompress_struct& cinfo) { attach(cinfo, access_plane); }

 private:
  static JBLOCKARRAY access_plane(j_common_ptr cinfo, jvirt_barray_ptr handle, JDIMENSION start_row,
                                  JDIMENSION row_count, boolean writable);

  std::uint64_t size_bytes_;
  bool is_ours_;
  JBLOCK* data_ = nullptr;
};

}  // namespace afd
