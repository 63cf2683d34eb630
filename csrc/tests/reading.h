#pragma once

// Reading files in tests of the codec, and libjpeg's own coefficients to compare with.

#include <cstdint>
#include <vector>

#include "../jpeg_reader.h"
#include "support.h"

namespace afd {

inline Picture read(const Bytes& file, const ReadOptions& options = {}, bool tolerant = false,
                    const Limits& limits = kDefaultLimits) {
  return JpegReader(file.data(), file.size(), limits, tolerant).read(options);
}

// Reference: libjpeg as its documentation says, with its own memory manager.
inline std::vector<JCOEF> reference_coefficients(const Bytes& file) {
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  cinfo.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&cinfo);
  jpeg_mem_src(&cinfo, file.data(), static_cast<unsigned long>(file.size()));
  jpeg_read_header(&cinfo, TRUE);
  jvirt_barray_ptr* arrays = jpeg_read_coefficients(&cinfo);
  std::vector<JCOEF> all;
  for (int c = 0; c < cinfo.num_components; ++c) {
    const jpeg_component_info& info = cinfo.comp_info[c];
    for (JDIMENSION y = 0; y < info.height_in_blocks; ++y) {
      JBLOCKARRAY row = cinfo.mem->access_virt_barray(reinterpret_cast<j_common_ptr>(&cinfo), arrays[c], y, 1, FALSE);
      const JCOEF* first = row[0][0];
      all.insert(all.end(), first, first + std::size_t{info.width_in_blocks} * DCTSIZE2);
    }
  }
  jpeg_finish_decompress(&cinfo);
  jpeg_destroy_decompress(&cinfo);
  return all;
}

inline Bytes pixels_of(const Picture& picture) {
  const std::uint8_t* first = picture.pixels->samples.get();
  return Bytes(first, first + std::size_t{3} * picture.pixels->width * picture.pixels->height);
}

inline std::vector<JCOEF> coefficients_of(const Picture& picture) {
  std::vector<JCOEF> all;
  const CoefficientArena& arena = *picture.coefficients;
  for (std::size_t c = 0; c < arena.plane_count(); ++c) {
    const PlaneShape& shape = arena.shape(c);
    for (std::uint32_t y = 0; y < shape.height_in_blocks; ++y) {
      const JCOEF* first = arena.plane(c) + std::size_t{y} * shape.padded_width_in_blocks * DCTSIZE2;
      all.insert(all.end(), first, first + std::size_t{shape.width_in_blocks} * DCTSIZE2);
    }
  }
  return all;
}

inline const std::vector<EncodeOptions>& kinds() {
  static const std::vector<EncodeOptions> all{
      {3, 2, 2, false, false, 0}, {3, 1, 1, false, false, 0}, {3, 2, 1, true, false, 0},  {3, 1, 2, false, false, 3},
      {3, 4, 1, false, false, 0}, {1, 1, 1, false, false, 0}, {4, 1, 1, false, false, 0}, {4, 2, 2, true, false, 0},
      {3, 2, 2, false, true, 0},  {3, 2, 2, true, true, 2},   {4, 1, 1, false, false, 2}, {1, 1, 2, false, false, 0},
      {1, 2, 1, false, false, 2},
  };
  return all;
}

}  // namespace afd
