#pragma once

#include <cstddef>
#include <cstdint>

#include "processor.h"

namespace afd {

enum class Filter { kBilinear, kBicubic };

// In pixels; fractions are allowed.
struct Box {
  double left;
  double top;
  double right;
  double bottom;
};

// RGB samples, uint8 [height, width, 3], rows one behind the other: the part of a picture that begins at (x, y).
struct PictureView {
  const std::uint8_t* samples;
  std::uint32_t x;
  std::uint32_t y;
  std::uint32_t width;
  std::uint32_t height;
};

// A range of samples along one axis.
struct Reach {
  std::uint32_t first;
  std::uint32_t end;
};

// The samples along an axis of `length` that a resize of [start, stop) to `size` samples reads.
Reach reach_of(double start, double stop, std::uint32_t length, std::uint32_t size, Filter filter);

// Resizes the part of a picture of `width` x `height` pixels that is in the box to `out`, uint8 [size, size, 3]. The
// filter widens with the scale, and reads a few pixels beyond the box where the picture has them. Bit for bit what
// Pillow makes of the same box. `view` holds at least what `reach_of` says, along both axes; the box is not empty and
// lies in the picture. Throws std::bad_alloc.
void resample(const PictureView& view, std::uint32_t width, std::uint32_t height, const Box& box, std::uint32_t size,
              Filter filter, std::uint8_t* out, Instructions instructions = Instructions::kFastest);

}  // namespace afd
