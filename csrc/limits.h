#pragma once

#include <cstdint>

namespace afd {

// What one picture may cost, as `afd_serve.jpeg.JpegLimits` explains. Every limit is checked before the memory or the
// time is spent.
struct Limits {
  std::uint64_t max_pixels;
  std::uint64_t max_bytes;
  std::uint64_t max_scans;
  std::uint64_t max_memory_bytes;
  double max_blocks_per_byte;
  std::uint64_t max_scan_blocks;
  std::uint64_t max_arithmetic_blocks;
};

// Those of `afd_serve.jpeg.JpegLimits`, for what does not come from Python.
inline constexpr Limits kDefaultLimits{100'000'000, 67'108'864, 64, 1'073'741'824, 8.0, 40'000'000, 100'000};

// Pictures of up to this many blocks are cheap (8 MiB of coefficients) however few bytes they have, so that
// `max_blocks_per_byte` does not apply to them: a small flat picture, or a small part of a truncated one, is honest.
inline constexpr std::uint64_t kAlwaysAllowedBlocks = 65536;

}  // namespace afd
