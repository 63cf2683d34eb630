// libFuzzer entry: what is made of part of the pixels and of coefficients that come by rows is what a whole decode
// gives, and the same on any processor. Built and run as read_fuzzer.cpp says.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>

#include "../prepare.h"
#include "../tests/recorder.h"

namespace {

constexpr afd::Limits kLimits{1 << 16, 1 << 20, 20, 4 << 20, 64.0, 1 << 20, 1 << 16};

void require(bool condition) {
  if (!condition) std::abort();
}

// A picture or the words of the failure.
struct Result {
  std::optional<afd::Picture> picture;
  std::string failure;
};

Result read(const std::uint8_t* data, std::size_t size, const afd::ReadOptions& options) {
  Result result;
  try {
    result.picture = afd::JpegReader(data, size, kLimits, false).read(options);
  } catch (const afd::JpegFailure& failure) {
    result.failure = failure.what();
  }
  return result;
}

// The bytes of the file choose the region, so that a picture is looked at from many sides.
afd::Region region_of(const afd::Pixels& whole, std::size_t size) {
  const auto x = static_cast<std::uint32_t>(size * 7 % whole.width);
  const auto y = static_cast<std::uint32_t>(size * 13 % whole.height);
  return {x, y, 1 + static_cast<std::uint32_t>(size * 5 % (whole.width - x)),
          1 + static_cast<std::uint32_t>(size * 3 % (whole.height - y))};
}

void compare_rows(const afd::Pixels& whole, const afd::Pixels& part, const afd::Region& region) {
  require(part.x <= region.x && part.y <= region.y && part.x + part.width >= region.x + region.width &&
          part.y + part.height >= region.y + region.height);
  for (std::uint32_t y = region.y; y < region.y + region.height; ++y) {
    const std::uint8_t* expected = whole.samples.get() + std::size_t{3} * (std::size_t{y} * whole.width + region.x);
    const std::uint8_t* found =
        part.samples.get() + std::size_t{3} * (std::size_t{y - part.y} * part.width + region.x - part.x);
    require(std::equal(expected, expected + std::size_t{3} * region.width, found));
  }
}

void compare_parts(const std::uint8_t* data, std::size_t size) {
  afd::ReadOptions options;
  options.pixels = true;
  options.scale = static_cast<int>(1 + size % 8);
  const Result whole = read(data, size, options);
  afd::Recorder recorder;
  options.sink = &recorder;
  if (whole.picture) options.region = region_of(*whole.picture->pixels, size);
  const Result part = read(data, size, options);
  require(part.failure == whole.failure);
  if (!whole.picture) return;
  require(recorder.is_in_order);
  require(same_blocks_under(*options.region, options.scale, whole.picture->header, recorder.planes,
                            planes_of(*whole.picture)));
  require(part.picture->warnings == whole.picture->warnings);
  compare_rows(*whole.picture->pixels, *part.picture->pixels, *options.region);
}

std::optional<afd::PreparedJpeg> prepared(const std::uint8_t* data, std::size_t size, afd::Instructions instructions) {
  const afd::Filter filter = size % 2 == 0 ? afd::Filter::kBicubic : afd::Filter::kBilinear;
  const std::optional<double> crop = size % 3 == 0 ? std::nullopt : std::optional<double>(0.875);
  try {
    return afd::prepare(data, size, kLimits, {static_cast<std::uint32_t>(8 + size % 32), crop, filter, instructions});
  } catch (const afd::JpegFailure&) {
    return std::nullopt;
  }
}

void compare_with_portable(const std::uint8_t* data, std::size_t size, afd::Instructions instructions) {
  const auto fastest = prepared(data, size, instructions);
  const auto portable = prepared(data, size, afd::Instructions::kPortable);
  require(fastest.has_value() == portable.has_value());
  if (!fastest) return;
  const std::size_t samples = std::size_t{3} * fastest->rgb.width * fastest->rgb.height;
  require(std::equal(fastest->rgb.samples.get(), fastest->rgb.samples.get() + samples, portable->rgb.samples.get()));
  const afd::BlockFeatures& left = fastest->features;
  const afd::BlockFeatures& right = portable->features;
  const std::size_t values = std::size_t{left.side} * left.side * afd::kCellBlocks * DCTSIZE2;
  require(std::equal(left.blocks.get(), left.blocks.get() + values, right.blocks.get()));
  require(left.tables == right.tables && left.history.quality == right.history.quality);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  compare_parts(data, size);
  compare_with_portable(data, size, afd::Instructions::kFastest);
  compare_with_portable(data, size, afd::Instructions::kAvx2);
  return 0;
}
