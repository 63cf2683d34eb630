// Unit tests of what makes the classifier's inputs.
//
// Usage: prepare_test [PART_OF_A_NAME]

#include "../prepare.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "recorder.h"
#include "support.h"

namespace {

using afd::Box;
using afd::Bytes;
using afd::encode;
using afd::EncodeOptions;
using afd::Filter;
using afd::Instructions;
using afd::kDefaultLimits;

// Sampling factors and processes of files whose rows are decoded one by one, and of others.
const EncodeOptions kKinds[] = {{3, 2, 2},
                                {3, 2, 1},
                                {3, 1, 2},
                                {3, 1, 1},
                                {3, 4, 1},
                                {1, 1, 1},
                                {1, 2, 2},
                                {1, 2, 1},
                                {1, 1, 2},
                                {3, 2, 2, true},
                                {3, 2, 2, false, true},
                                {1, 1, 1, true},
                                {3, 2, 2, false, false, 3},
                                {3, 1, 1, false, false, 1}};

// Exactly as large as the picture, so that ASan sees a read past its end.
std::unique_ptr<std::uint8_t[]> random_samples(std::size_t size, std::minstd_rand& random) {
  std::unique_ptr<std::uint8_t[]> samples(new std::uint8_t[size]);
  for (std::size_t i = 0; i < size; ++i) samples[i] = static_cast<std::uint8_t>(random() >> 8);
  return samples;
}

Bytes resampled(const std::uint8_t* samples, std::uint32_t width, std::uint32_t height, const Box& box,
                std::uint32_t size, Filter filter, Instructions instructions) {
  Bytes out(std::size_t{3} * size * size);
  afd::resample({samples, 0, 0, width, height}, width, height, box, size, filter, out.data(), instructions);
  return out;
}

void vector_and_portable_resamples_are_equal() {
  std::minstd_rand random(1);
  for (int i = 0; i < 300; ++i) {
    const std::uint32_t width = 1 + random() % 90;
    const std::uint32_t height = 1 + random() % 90;
    const std::uint32_t size = 1 + random() % 70;
    const double left = random() % width;
    const double top = random() % height;
    const Box box{left, top, left + (width - left) * (1 + random() % 8) / 8.0,
                  top + (height - top) * (1 + random() % 8) / 8.0};
    const Filter filter = i % 2 == 0 ? Filter::kBicubic : Filter::kBilinear;
    const auto samples = random_samples(std::size_t{3} * width * height, random);
    const Bytes expected = resampled(samples.get(), width, height, box, size, filter, Instructions::kPortable);
    for (const Instructions instructions : {Instructions::kFastest, Instructions::kAvx2}) {
      CHECK(resampled(samples.get(), width, height, box, size, filter, instructions) == expected);
    }
  }
}

// The vector versions take several rows at a time, and those that are left one by one: here in each pass.
void any_number_of_rows_resamples_alike() {
  std::minstd_rand random(8);
  for (std::uint32_t height = 1; height <= 9; ++height) {
    for (std::uint32_t size = 1; size <= 9; ++size) {
      for (const std::uint32_t width : {1U, 3U, 40U, 300U}) {
        const auto samples = random_samples(std::size_t{3} * width * height, random);
        const Box box{0, 0, 1.0 * width, 1.0 * height};
        const Bytes expected =
            resampled(samples.get(), width, height, box, size, Filter::kBicubic, Instructions::kPortable);
        for (const Instructions instructions : {Instructions::kFastest, Instructions::kAvx2}) {
          CHECK(resampled(samples.get(), width, height, box, size, Filter::kBicubic, instructions) == expected);
        }
      }
    }
  }
}

void a_part_resamples_as_the_whole_does() {
  std::minstd_rand random(2);
  constexpr std::uint32_t kWidth = 80;
  constexpr std::uint32_t kHeight = 70;
  const auto samples = random_samples(std::size_t{3} * kWidth * kHeight, random);
  const Box box{20.5, 15.0, 60.0, 54.25};
  const Bytes expected = resampled(samples.get(), kWidth, kHeight, box, 16, Filter::kBicubic, Instructions::kFastest);
  const afd::Reach columns = afd::reach_of(box.left, box.right, kWidth, 16, Filter::kBicubic);
  const afd::Reach rows = afd::reach_of(box.top, box.bottom, kHeight, 16, Filter::kBicubic);
  const std::uint32_t width = columns.end - columns.first;
  std::unique_ptr<std::uint8_t[]> part(new std::uint8_t[std::size_t{3} * width * (rows.end - rows.first)]);
  for (std::uint32_t y = rows.first; y < rows.end; ++y) {
    std::copy_n(samples.get() + std::size_t{3} * (y * kWidth + columns.first), 3 * width,
                part.get() + std::size_t{3} * (y - rows.first) * width);
  }
  Bytes out(std::size_t{3} * 16 * 16);
  afd::resample({part.get(), columns.first, rows.first, width, rows.end - rows.first}, kWidth, kHeight, box, 16,
                Filter::kBicubic, out.data());
  CHECK(out == expected);
}

void a_flat_picture_stays_flat() {
  const Bytes flat(std::size_t{3} * 40 * 30, 200);
  const Bytes out =
      resampled(flat.data(), 40, 30, {1.5, 2.5, 33.0, 29.0}, 24, Filter::kBicubic, Instructions::kFastest);
  CHECK(std::all_of(out.begin(), out.end(), [](std::uint8_t value) { return value == 200; }));
}

afd::Picture read(const Bytes& file, const afd::ReadOptions& options) {
  return afd::JpegReader(file.data(), file.size(), kDefaultLimits, false).read(options);
}

void a_box_that_single_precision_puts_behind_the_picture_reads_nothing() {
  const std::uint32_t width = (1U << 26) + 6;
  const afd::Reach reach = afd::reach_of(width - 1.0, width, width, 1, Filter::kBilinear);
  CHECK(reach.first <= reach.end && reach.end <= width);
}

void rows_are_those_of_the_whole_picture() {
  for (const EncodeOptions& kind : kKinds) {
    const Bytes file = encode(75, 53, kind);
    afd::Recorder recorder;
    afd::ReadOptions options;
    options.pixels = true;
    const afd::Picture whole = read(file, options);
    options.sink = &recorder;
    const afd::Picture by_rows = read(file, options);
    CHECK(by_rows.own_scans == whole.own_scans);  // else nothing was decoded by rows
    CHECK(recorder.is_in_order && recorder.planes == planes_of(whole));
    const std::size_t bytes = std::size_t{3} * whole.pixels->width * whole.pixels->height;
    CHECK(std::equal(whole.pixels->samples.get(), whole.pixels->samples.get() + bytes, by_rows.pixels->samples.get()));
  }
}

bool region_is_that_of(const afd::Pixels& whole, const afd::Pixels& part, const afd::Region& region) {
  const bool holds = part.x <= region.x && part.y <= region.y && part.x + part.width >= region.x + region.width &&
                     part.y + part.height >= region.y + region.height;
  for (std::uint32_t y = region.y; holds && y < region.y + region.height; ++y) {
    const std::uint8_t* expected = whole.samples.get() + std::size_t{3} * (y * whole.width + region.x);
    const std::uint8_t* found = part.samples.get() + std::size_t{3} * ((y - part.y) * part.width + region.x - part.x);
    if (!std::equal(expected, expected + 3 * region.width, found)) return false;
  }
  return holds;
}

afd::Region some_region(const afd::Pixels& whole, std::minstd_rand& random) {
  const std::uint32_t x = random() % whole.width;
  const std::uint32_t y = random() % whole.height;
  return {x, y, 1 + static_cast<std::uint32_t>(random() % (whole.width - x)),
          1 + static_cast<std::uint32_t>(random() % (whole.height - y))};
}

void regions_hold_the_pixels_and_blocks_of_the_whole_picture() {
  std::minstd_rand random(3);
  for (EncodeOptions kind : kKinds) {
    for (const int scale : {1, 2, 3, 4, 8}) {
      kind.noise = scale == 2;
      const Bytes file = encode(235, 190, kind);
      afd::ReadOptions options;
      options.pixels = true;
      options.scale = scale;
      const afd::Picture whole = read(file, options);
      const afd::Planes planes = planes_of(whole);
      for (int i = 0; i < 6; ++i) {
        options.region = some_region(*whole.pixels, random);
        CHECK(region_is_that_of(*whole.pixels, *read(file, options).pixels, *options.region));
        afd::Recorder recorder;
        options.sink = &recorder;
        CHECK(region_is_that_of(*whole.pixels, *read(file, options).pixels, *options.region));
        CHECK(same_blocks_under(*options.region, scale, whole.header, recorder.planes, planes));
        options.sink = nullptr;
      }
    }
  }
}

std::string failure_of(const Bytes& file, const afd::ReadOptions& options) {
  try {
    read(file, options);
  } catch (const afd::JpegFailure& failure) {
    return failure.what();
  }
  return "";
}

void damage_outside_a_region_is_found() {
  std::minstd_rand random(7);
  int found = 0;
  for (EncodeOptions kind : kKinds) {
    for (const bool noise : {false, true}) {
      kind.noise = noise;
      const Bytes file = encode(120, 90, kind);
      afd::ReadOptions options;
      options.pixels = true;
      for (int i = 0; i < 80; ++i) {
        Bytes damaged = file;
        for (int k = 0; k < 8; ++k) damaged[random() % damaged.size()] ^= static_cast<std::uint8_t>(1 << random() % 8);
        const std::string expected = failure_of(damaged, options);
        afd::Recorder recorder;
        afd::ReadOptions part = options;
        part.region = afd::Region{50, 40, 5, 3};
        part.sink = &recorder;
        CHECK(failure_of(damaged, part) == expected);
        found += expected.empty() ? 0 : 1;
      }
    }
  }
  CHECK(found > 200);
}

void prepared(const Bytes& file) {
  const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[file.size()]);
  std::copy(file.begin(), file.end(), exact.get());
  try {
    afd::prepare(exact.get(), file.size(), kDefaultLimits, {32, 0.875, Filter::kBicubic});
  } catch (const afd::JpegFailure&) {
  }
}

void damaged_files_are_prepared_or_fail() {
  const std::size_t before = afd::CoefficientArena::live_count();
  std::minstd_rand random(4);
  for (const EncodeOptions& kind : kKinds) {
    const Bytes file = encode(61, 45, kind);
    for (std::size_t size = 1; size < file.size(); ++size) {
      if (size % 37 == 0 || file[size - 1] == 0xFF) prepared(Bytes(file.begin(), file.begin() + size));
    }
    for (int i = 0; i < 60; ++i) {
      Bytes flipped = file;
      flipped[random() % flipped.size()] ^= static_cast<std::uint8_t>(1 << random() % 8);
      prepared(flipped);
    }
  }
  CHECK(afd::CoefficientArena::live_count() == before);
}

void cells_of_a_mirrored_axis_are_the_upright_ones() {
  const std::vector<std::uint32_t> whole_cells{0, 1, 2};
  CHECK(afd::blocks_under(0, 24, 24, 3, 8, true) == whole_cells);
  // Centres 4, 12 and 18 of 20 pixels at twice the size: the second is where two blocks meet, the third cell is cut.
  const std::vector<std::uint32_t> stored_upright{1, 3, 4};
  const std::vector<std::uint32_t> stored_mirrored{0, 1, 3};
  CHECK(afd::blocks_under(0, 40, 20, 5, 8, false) == stored_upright);
  CHECK(afd::blocks_under(0, 40, 20, 5, 8, true) == stored_mirrored);
}

void values_that_no_picture_needs_saturate() {
  afd::Header header{};
  header.orientation = 1;
  header.components.push_back({1, 1, 1, 1, 1, afd::QuantTable{}});
  header.components[0].quant_table->fill(65535);
  JBLOCK block = {1, -1, 32767, -32768};
  for (const Instructions instructions : {Instructions::kFastest, Instructions::kPortable}) {
    std::int16_t out[afd::kCellCoefficients];
    afd::GridCollector collector({0, 0, 8, 8}, 8, out, instructions);
    collector.begin(header);
    collector.take(0, 0, block);
    CHECK(out[0] == 32767 && out[1] == -32768 && out[2] == 32767 && out[3] == -32768 && out[4] == 0);
  }
}

void turning_back_gives_the_stored_grid() {
  std::minstd_rand random(5);
  constexpr std::uint32_t kSide = 5;
  std::vector<std::int16_t> stored(std::size_t{kSide} * kSide * afd::kCellCoefficients);
  for (std::int16_t& value : stored) value = static_cast<std::int16_t>(random() % 2001 - 1000);
  std::vector<std::int16_t> turned(stored.size());
  std::vector<std::int16_t> back(stored.size());
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const int inverse = orientation == 6 ? 8 : orientation == 8 ? 6 : orientation;
    afd::orient_grid(stored.data(), kSide, orientation, turned.data());
    afd::orient_grid(turned.data(), kSide, inverse, back.data());
    CHECK(back == stored);
  }
}

void magnitudes_are_summed_without_overflow() {
  constexpr std::size_t kCells = (1 << 17) + 3;
  std::vector<std::int16_t> blocks(kCells * afd::kCellCoefficients);
  for (std::size_t cell = 0; cell < kCells; ++cell) {
    blocks[cell * afd::kCellCoefficients] = -32768;
    blocks[cell * afd::kCellCoefficients + 191] = cell % 2 == 0 ? 3 : -3;
  }
  const auto sums = afd::magnitude_sums(blocks.data(), kCells);
  CHECK(sums[0] == std::uint64_t{32768} * kCells && sums[1] == 0 && sums[191] == 3 * kCells);
  CHECK(afd::magnitude_sums(blocks.data(), 0)[0] == 0);
}

void vector_and_portable_histories_are_equal() {
  std::minstd_rand random(6);
  for (int i = 0; i < 200; ++i) {
    const afd::QuantTable first = afd::scaled_table(5 + i % 80, false);
    std::vector<std::int16_t> blocks(std::size_t{random() % 200} * DCTSIZE2);
    for (std::size_t k = 0; k < blocks.size(); ++k) {
      blocks[k] = static_cast<std::int16_t>((static_cast<int>(random() % 7) - 3) * first[k % DCTSIZE2]);
    }
    const afd::LumaBlocks luma{blocks.data(), blocks.size() / DCTSIZE2, DCTSIZE2};
    const afd::QuantTable own = afd::scaled_table(95, false);
    const auto found = afd::earlier_quality(luma, own, Instructions::kFastest);
    CHECK(found == afd::earlier_quality(luma, own, Instructions::kPortable));
    if (luma.count > 50) CHECK(found && std::abs(*found - (5 + i % 80)) <= 3);
  }
}

void every_quality_is_estimated_from_its_table() {
  for (int quality = 1; quality <= 100; ++quality) {
    const afd::QuantTable table = afd::scaled_table(quality, false);
    CHECK(afd::scaled_table(afd::estimate_quality(table), false) == table);
  }
}

void crops_are_centred_squares() {
  const Box box = afd::crop_box(500, 375, 0.875, 1);
  CHECK(box.left == 86 && box.top == 24 && box.right == 414 && box.bottom == 352);
  const Box half_turned = afd::crop_box(500, 375, 0.875, 3);  // of the odd margin, 47, the wider part is below
  CHECK(half_turned.left == 86 && half_turned.top == 23 && half_turned.right == 414 && half_turned.bottom == 351);
  const Box least = afd::crop_box(1, 9, 0.1, 1);
  CHECK(least.left == 0 && least.right == 1 && least.bottom - least.top == 1);
  CHECK(afd::decoding_scale({0, 0, 447, 500}, 224) == 8);
  CHECK(afd::decoding_scale({0, 0, 896, 900}, 224) == 4);
  CHECK(afd::decoding_scale({0, 0, 9000, 9000}, 224) == 1);
}

}  // namespace

int main(int argc, char** argv) {
  return afd::run_tests(
      {
          {"vector_and_portable_resamples_are_equal", vector_and_portable_resamples_are_equal},
          {"any_number_of_rows_resamples_alike", any_number_of_rows_resamples_alike},
          {"a_part_resamples_as_the_whole_does", a_part_resamples_as_the_whole_does},
          {"a_flat_picture_stays_flat", a_flat_picture_stays_flat},
          {"a_box_that_single_precision_puts_behind_the_picture_reads_nothing",
           a_box_that_single_precision_puts_behind_the_picture_reads_nothing},
          {"rows_are_those_of_the_whole_picture", rows_are_those_of_the_whole_picture},
          {"regions_hold_the_pixels_and_blocks_of_the_whole_picture",
           regions_hold_the_pixels_and_blocks_of_the_whole_picture},
          {"damage_outside_a_region_is_found", damage_outside_a_region_is_found},
          {"damaged_files_are_prepared_or_fail", damaged_files_are_prepared_or_fail},
          {"cells_of_a_mirrored_axis_are_the_upright_ones", cells_of_a_mirrored_axis_are_the_upright_ones},
          {"values_that_no_picture_needs_saturate", values_that_no_picture_needs_saturate},
          {"turning_back_gives_the_stored_grid", turning_back_gives_the_stored_grid},
          {"magnitudes_are_summed_without_overflow", magnitudes_are_summed_without_overflow},
          {"vector_and_portable_histories_are_equal", vector_and_portable_histories_are_equal},
          {"every_quality_is_estimated_from_its_table", every_quality_is_estimated_from_its_table},
          {"crops_are_centred_squares", crops_are_centred_squares},
      },
      argc, argv);
}
