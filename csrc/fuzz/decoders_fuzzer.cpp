// libFuzzer entry: our entropy decoders do to any bytes what libjpeg's does: same coefficients, pixels, warnings,
// errors. Built and run as read_fuzzer.cpp says.

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "../tests/outcome.h"

namespace {

constexpr afd::Limits kLimits{1 << 16, 1 << 20, 20, 4 << 20, 64.0, 1 << 20, 1 << 16};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  afd::ReadOptions options;
  options.pixels = size % 4 == 0;
  options.scale = static_cast<int>(1 + size / 4 % 8);
  for (const bool tolerant : {true, false}) {
    if (!afd::decoders_agree(data, size, kLimits, tolerant, options)) std::abort();
  }
  return 0;
}
