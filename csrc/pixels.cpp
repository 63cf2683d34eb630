#include "pixels.h"

#include <cstring>
#include <utility>

#include "orientation.h"

namespace afd {
namespace {

// round(a * b / 255), exact for all bytes.
int multiply_divide_255(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

}  // namespace

ByteBuffer allocate_bytes(std::size_t size) { return ByteBuffer(static_cast<std::uint8_t*>(take_buffer(size))); }

void inverted_cmyk_to_rgb(const std::uint8_t* cmyk, std::uint8_t* rgb, std::size_t width) {
  for (std::size_t x = 0; x < width; ++x, cmyk += 4, rgb += 3) {
    const int white = cmyk[3];  // 255 - K
    for (int i = 0; i < 3; ++i) {
      rgb[i] = static_cast<std::uint8_t>(white - multiply_divide_255(255 - cmyk[i], white));
    }
  }
}

// Each row of the result is a walk through the stored picture: a start and a step.
Pixels oriented(const Pixels& stored, int orientation, ByteBuffer memory) {
  const Orientation turn(orientation);
  const std::ptrdiff_t width = stored.width;
  const std::ptrdiff_t height = stored.height;
  Pixels result;
  result.width = turn.swaps_axes ? stored.height : stored.width;
  result.height = turn.swaps_axes ? stored.width : stored.height;
  result.samples = std::move(memory);

  const std::ptrdiff_t step_x = turn.mirrors_x ? -3 : 3;
  const std::ptrdiff_t step_y = turn.mirrors_y ? -3 * width : 3 * width;
  const std::uint8_t* corner =
      stored.samples.get() + (turn.mirrors_x ? 3 * (width - 1) : 0) + (turn.mirrors_y ? 3 * width * (height - 1) : 0);
  const std::ptrdiff_t along_row = turn.swaps_axes ? step_y : step_x;
  const std::ptrdiff_t down = turn.swaps_axes ? step_x : step_y;
  std::uint8_t* out = result.samples.get();
  for (std::ptrdiff_t y = 0; y < result.height; ++y) {
    const std::uint8_t* row = corner + y * down;
    for (std::ptrdiff_t x = 0; x < result.width; ++x, out += 3) std::memcpy(out, row + x * along_row, 3);
  }
  return result;
}

}  // namespace afd
