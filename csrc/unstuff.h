#pragma once

#include <cstddef>
#include <cstdint>

namespace afd {

// A piece of entropy-coded data without its byte stuffing.
struct Segment {
  std::size_t size;                // bytes written
  const std::uint8_t* end_marker;  // 0xFF of the marker that ends it; null if the data ends without one
};

// Copies [data, end) up to the next marker to `out`, which has room for all of it, and drops the 0x00 behind each 0xFF.
// A marker with fill bytes in front counts as none: readers do not agree on them.
Segment unstuff(const std::uint8_t* data, const std::uint8_t* end, std::uint8_t* out);

}  // namespace afd
