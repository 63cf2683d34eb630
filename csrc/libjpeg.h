#pragma once

// The one place that includes libjpeg: jpeglib.h uses FILE without including its header, so that the order matters.
// clang-format off
#include <cstddef>
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on

#ifndef LIBJPEG_TURBO_VERSION
#error "afd-serve needs the headers of libjpeg-turbo: other libraries of this interface make other pixels"
#endif

namespace afd {

// Samples per side that the IDCT makes of a block. Libraries with the interface of libjpeg 7 and 8 have two such
// fields, and give both the same value.
inline int& scaled_size(jpeg_component_info& component) {
#if JPEG_LIB_VERSION >= 70
  return component.DCT_h_scaled_size;
#else
  return component.DCT_scaled_size;
#endif
}

}  // namespace afd
