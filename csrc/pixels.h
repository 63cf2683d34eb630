#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "buffer_pool.h"

namespace afd {

struct GiveBack {
  void operator()(void* memory) const {
    if (is_ours) give_back_buffer(memory);
  }

  bool is_ours = true;
};
// Memory of ours, or of the caller's, who keeps it.
using ByteBuffer = std::unique_ptr<std::uint8_t, GiveBack>;

// Uninitialised; throws std::bad_alloc.
ByteBuffer allocate_bytes(std::size_t size);

inline ByteBuffer borrowed(std::uint8_t* memory) { return ByteBuffer(memory, GiveBack{false}); }

// RGB samples, uint8 [height, width, 3]: a picture, or the part of one that begins at (x, y).
struct Pixels {
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  ByteBuffer samples;
  std::uint32_t x = 0;
  std::uint32_t y = 0;
};

// Converts `width` inverted CMYK samples, as Adobe stores them, to RGB with the rounding of Pillow's conversion.
void inverted_cmyk_to_rgb(const std::uint8_t* cmyk, std::uint8_t* rgb, std::size_t width);

// The picture as EXIF orientation 2 to 8 says it is to be shown, in `memory`, which has room for as many samples.
Pixels oriented(const Pixels& stored, int orientation, ByteBuffer memory);

// In fresh memory. Throws std::bad_alloc.
inline Pixels oriented(const Pixels& stored, int orientation) {
  return oriented(stored, orientation, allocate_bytes(std::size_t{3} * stored.width * stored.height));
}

}  // namespace afd
