#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "buffer_pool.h"

namespace afd {

struct GiveBack {
  void operator()(void* memory) const { give_back_buffer(memory); }
};
using ByteBuffer = std::unique_ptr<std::uint8_t, GiveBack>;

// Uninitialised; throws std::bad_alloc.
ByteBuffer allocate_bytes(std::size_t size);

// RGB samples, uint8 [height, width, 3].
struct Pixels {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  ByteBuffer samples;
};

// Converts `width` inverted CMYK samples, as Adobe stores them, to RGB with the rounding of Pillow's conversion.
void inverted_cmyk_to_rgb(const std::uint8_t* cmyk, std::uint8_t* rgb, std::size_t width);

// The picture as EXIF orientation 2 to 8 says it is to be shown. Throws std::bad_alloc.
Pixels oriented(const Pixels& stored, int orientation);

}  // namespace afd
