// libFuzzer entry: any bytes give a picture or a JpegFailure, in both modes, with and without pixels.
//
//   cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DAFD_PYTHON=OFF -DAFD_FUZZ=ON
//         -DAFD_SANITIZE=address,undefined
//   cmake --build build/fuzz && build/fuzz/read_fuzzer -max_len=4096 CORPUS

#include <cstddef>
#include <cstdint>

#include "../jpeg_reader.h"

namespace {

constexpr afd::Limits kLimits{1 << 18, 1 << 20, 20, 16 << 20, 64.0, 1 << 20, 1 << 16};

// The options come from the size, so that the bytes stay a plain JPEG and any JPEG is a seed.
afd::ReadOptions options_for(std::size_t size) {
  afd::ReadOptions options;
  options.pixels = size % 2 == 0;
  options.scale = static_cast<int>(1 + size / 2 % 8);
  options.apply_orientation = true;
  return options;
}

void read(const std::uint8_t* data, std::size_t size, bool tolerant) {
  try {
    afd::JpegReader(data, size, kLimits, tolerant).read(options_for(size));
  } catch (const afd::JpegFailure&) {
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(data, size, true);
  read(data, size, false);
  return 0;
}
