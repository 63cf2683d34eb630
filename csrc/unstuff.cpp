#include "unstuff.h"

#include <cstring>

namespace afd {

// One byte in about 200 is 0xFF, so that nearly all the time goes to memchr and memcpy, whose vector code the C library
// chooses for the processor.
Segment unstuff(const std::uint8_t* data, const std::uint8_t* end, std::uint8_t* out) {
  std::uint8_t* next = out;
  while (data < end) {
    const void* found = std::memchr(data, 0xFF, static_cast<std::size_t>(end - data));
    if (found == nullptr) break;
    const auto* marker = static_cast<const std::uint8_t*>(found);
    const auto run = static_cast<std::size_t>(marker - data);
    std::memcpy(next, data, run);
    next += run;
    if (end - marker < 2 || marker[1] == 0xFF) break;
    if (marker[1] != 0) return {static_cast<std::size_t>(next - out), marker};
    *next++ = 0xFF;
    data = marker + 2;
  }
  return {static_cast<std::size_t>(next - out), nullptr};
}

}  // namespace afd
