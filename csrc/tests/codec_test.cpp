// Unit tests of what is around the decoders: memory, errors, limits, markers, threads.
//
// Usage: codec_test [PART_OF_A_NAME]

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../batch.h"
#include "../buffer_pool.h"
#include "../exif.h"
#include "../markers.h"
#include "reading.h"
#include "support.h"

namespace {

using afd::Bytes;
using afd::coefficients_of;
using afd::encode;
using afd::EncodeOptions;
using afd::ErrorKind;
using afd::kDefaultLimits;
using afd::kinds;
using afd::pixels_of;
using afd::read;
using afd::reference_coefficients;

// Reads the file from an allocation of exactly its size, so that ASan sees a read past its end.
bool fails_with(ErrorKind kind, const Bytes& file, const afd::Limits& limits = kDefaultLimits,
                const afd::ReadOptions& options = {}) {
  const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[file.size()]);
  std::copy(file.begin(), file.end(), exact.get());
  try {
    afd::JpegReader(exact.get(), file.size(), limits, false).read(options);
  } catch (const afd::JpegFailure& failure) {
    return failure.kind() == kind && std::strlen(failure.what()) > 0;
  }
  return false;
}

void buffers_are_aligned_and_zeroed_when_used_again() {
  for (int round = 0; round < 3; ++round) {
    std::vector<void*> buffers;
    for (const std::size_t size : {1, 1000, 65536, 100'000, 1'000'000, 40'000'000}) {
      for (const bool zeroed : {false, true}) {
        auto* bytes = static_cast<std::uint8_t*>(zeroed ? afd::take_zeroed_buffer(size) : afd::take_buffer(size));
        CHECK(reinterpret_cast<std::uintptr_t>(bytes) % 64 == 0);
        CHECK(!zeroed || std::all_of(bytes, bytes + size, [](std::uint8_t byte) { return byte == 0; }));
        std::memset(bytes, 0xFF, size);
        buffers.push_back(bytes);
      }
    }
    for (void* buffer : buffers) afd::give_back_buffer(buffer);
  }
  afd::give_back_buffer(nullptr);
}

void arena_owns_one_aligned_zeroed_buffer() {
  const std::size_t before = afd::CoefficientArena::live_count();
  {
    afd::CoefficientArena arena({{3, 2, 4, 2}, {2, 1, 2, 1}});
    CHECK(afd::CoefficientArena::live_count() == before + 1);
    CHECK(arena.size_bytes() == (4 * 2 + 2 * 1) * sizeof(JBLOCK));
    CHECK(reinterpret_cast<std::uintptr_t>(arena.data()) % 64 == 0);
    CHECK(arena.plane(0) == arena.data());
    CHECK(arena.plane(1) == arena.plane(0) + 4 * 2 * DCTSIZE2);
    const JCOEF* first = arena.plane(0);
    CHECK(std::all_of(first, first + arena.size_bytes() / sizeof(JCOEF), [](JCOEF value) { return value == 0; }));
  }
  CHECK(afd::CoefficientArena::live_count() == before);
}

void truncation_at_every_byte_is_typed() {
  for (const EncodeOptions& kind : kinds()) {
    const Bytes file = encode(20, 20, kind);
    CHECK(fails_with(ErrorKind::kEmpty, {}));
    for (std::size_t length = 1; length + 2 < file.size(); ++length) {
      const Bytes part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
      CHECK(fails_with(ErrorKind::kTruncated, part));
    }
  }
}

void flipped_bytes_fail_or_decode_and_leak_nothing() {
  const std::size_t before = afd::CoefficientArena::live_count();
  for (const EncodeOptions& kind : kinds()) {
    const Bytes file = encode(20, 20, kind);
    for (std::size_t i = 0; i < file.size(); ++i) {
      for (const int flip : {0x01, 0x80, 0xFF}) {
        Bytes damaged = file;
        damaged[i] = static_cast<std::uint8_t>(damaged[i] ^ flip);
        for (const bool tolerant : {false, true}) {
          try {
            read(damaged, {true, 8, true}, tolerant, {1 << 20, 1 << 20, 20, 64 << 20, 8.0, 1 << 20, 1 << 16});
          } catch (const afd::JpegFailure& failure) {
            CHECK(std::strlen(failure.what()) > 0);
          }
        }
      }
    }
  }
  CHECK(afd::CoefficientArena::live_count() == before);
}

void limits_name_themselves() {
  const Bytes file = encode(64, 64, {3, 2, 2, true, false, 0});
  afd::Limits limits = kDefaultLimits;
  limits.max_pixels = 64 * 64 - 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits = kDefaultLimits;
  limits.max_bytes = file.size() - 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits = kDefaultLimits;
  limits.max_scans = 9;  // jpeg_simple_progression makes ten
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_scans = 10;
  CHECK(!fails_with(ErrorKind::kTooLarge, file, limits));
  // Ten scans: two of the DC coefficients of all 96 blocks, four of luma's 64, and two of each chroma's 16.
  limits.max_scan_blocks = 2 * 96 + 4 * 64 + 4 * 16;
  CHECK(!fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_scan_blocks -= 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_scan_blocks = kDefaultLimits.max_scan_blocks;
  limits.max_memory_bytes = 64 * 64 * 3;  // two bytes for each of 1.5 samples per pixel
  CHECK(!fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_memory_bytes -= 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
}

void arithmetic_blocks_have_a_limit_of_their_own() {
  for (const bool progressive : {false, true}) {
    afd::Limits limits = kDefaultLimits;
    limits.max_arithmetic_blocks = 96;
    CHECK(!fails_with(ErrorKind::kTooLarge, encode(64, 64, {3, 2, 2, progressive, true}), limits));
    limits.max_arithmetic_blocks = 95;
    CHECK(fails_with(ErrorKind::kTooLarge, encode(64, 64, {3, 2, 2, progressive, true}), limits));
    CHECK(!fails_with(ErrorKind::kTooLarge, encode(64, 64, {3, 2, 2, progressive}), limits));
  }
}

// Nothing of this is an error to libjpeg.
void arithmetic_blocks_that_come_again_count_again() {
  EncodeOptions kind{3, 2, 2, false, true};
  kind.interleaved = false;
  Bytes file = encode(64, 64, kind);
  const std::uint8_t start_of_scan[] = {0xFF, 0xDA};
  const auto last = std::find_end(file.begin(), file.end(), start_of_scan, start_of_scan + 2);
  const Bytes scan(last, file.end() - 2);
  file.insert(file.end() - 2, scan.begin(), scan.end());
  afd::Limits limits = kDefaultLimits;
  limits.max_arithmetic_blocks = 96 + 16;
  CHECK(!fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_arithmetic_blocks -= 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
}

void an_interrupted_batch_begins_no_other_picture() {
  const Bytes file = encode(20, 20);
  const std::vector<afd::Input> inputs(50, {file.data(), file.size()});
  int asked = 0;
  const auto items = afd::read_batch(inputs, kDefaultLimits, false, {}, 1, [&asked] { return ++asked == 4; });
  for (std::size_t i = 0; i < inputs.size(); ++i) CHECK((items[i].picture.coefficients != nullptr) == (i < 3));
  CHECK(asked == 4);
}

void scans_are_counted_without_decoding() {
  const Bytes file = encode(64, 64, {3, 2, 2, true, false, 0});
  CHECK(afd::count_scans(file.data(), file.size(), 100) == 10);
  CHECK(afd::count_scans(file.data(), file.size(), 4) == 4);
  for (std::size_t length = 0; length < file.size(); ++length) {
    const Bytes part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
    CHECK(afd::count_scans(part.data(), part.size(), 100) <= 10);
  }
}

void what_only_looks_like_a_scan_is_not_counted() {
  Bytes file{0xFF, 0xD8, 0xFF, 0x01, 0xFF, 0xE0, 2, 2};                       // SOI, TEM, and a segment of 514 bytes
  for (int i = 0; i < 256; ++i) file.insert(file.end(), {0xFF, 0xDA});        // in it
  file.insert(file.end(), {0xFF, 0xFF, 0xFF, 0xDA, 0, 2, 1, 0xFF, 0, 2});     // a scan, with fill bytes; stuffing
  file.insert(file.end(), {0xFF, 0xD0, 3, 0xFF, 0xD7, 0xFF, 0xDA, 0, 2, 4});  // restarts; another scan
  const std::size_t size = file.size();
  file.insert(file.end(), {0xFF, 0xD9, 0, 2, 0xFF, 0xDA, 0, 2, 5});  // EOI
  CHECK(afd::count_scans(file.data(), file.size(), 100) == 2);
  for (std::size_t length = 0; length < size; ++length) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[length]);
    std::copy_n(file.begin(), length, exact.get());
    CHECK(afd::count_scans(exact.get(), length, 100) <= 2);
  }
}

void exif_is_read_within_its_bounds() {
  const std::uint8_t segment[] = {'E', 'x', 'i', 'f',  0, 0, 'M', 'M', 0, 42, 0, 0, 0, 8,
                                  0,   1,   1,   0x12, 0, 3, 0,   0,   0, 1,  0, 6, 0, 0};
  CHECK(afd::exif_orientation(segment, sizeof segment) == 6);
  for (std::size_t length = 0; length < sizeof segment - 2; ++length) {
    const Bytes part(segment, segment + length);
    CHECK(afd::exif_orientation(part.data(), part.size()) == 0);
  }
}

void what_is_no_tiff_has_no_orientation() {
  const Bytes segment{'E', 'x', 'i', 'f', 0, 0, 'I', 'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0};
  CHECK(afd::exif_orientation(segment.data(), segment.size()) == 6);
  for (const Bytes& start : {Bytes{'I', 'M', 42}, {'M', 'I', 42}, {'X', 'X', 42}, {'I', 'I', 43}}) {
    Bytes other = segment;
    std::copy(start.begin(), start.end(), other.begin() + 6);
    CHECK(afd::exif_orientation(other.data(), other.size()) == 0);
  }
}

void app1_is_read_within_its_bounds() {
  const Bytes plain = encode(8, 8);
  const std::uint8_t exif[] = {0xFF, 0xE1, 0, 30, 'E', 'x',  'i', 'f', 0, 0, 'M', 'M', 0, 42, 0, 0,
                               0,    8,    0, 1,  1,   0x12, 0,   3,   0, 0, 0,   1,   0, 6,  0, 0};
  Bytes file(plain.begin(), plain.begin() + 2);
  file.insert(file.end(), exif, exif + sizeof exif);
  file.insert(file.end(), plain.begin() + 2, plain.end());
  CHECK(read(file).header.orientation == 6);
  for (std::size_t length = 2; length < 2 + sizeof exif; ++length) {
    CHECK(fails_with(ErrorKind::kTruncated, Bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length))));
  }
  for (const std::uint8_t declared : {0, 1, 2, 3, 26}) {  // shorter than what follows: the rest is junk before a marker
    file[5] = declared;
    CHECK(read(file).header.orientation == 1);
  }
}

void threads_share_nothing() {
  const Bytes file = encode(200, 150);
  const std::vector<JCOEF> expected = reference_coefficients(file);
  bool equal[4] = {};
  std::vector<std::thread> threads;
  for (bool& result : equal) {
    threads.emplace_back([&] {
      result = true;
      for (int i = 0; i < 20; ++i) result = result && coefficients_of(read(file, {true, 4, false})) == expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const bool result : equal) CHECK(result);
}

// Memory of exactly the right size, so that ASan sees a write past its end.
void pictures_go_into_the_callers_memory() {
  for (const EncodeOptions& kind : kinds()) {
    const Bytes file = encode(37, 29, kind);
    const afd::Picture expected = read(file, {true, 8, false});
    const std::size_t count = expected.coefficients->size_bytes() / sizeof(JCOEF);
    const std::unique_ptr<JCOEF[]> coefficients(new JCOEF[count]);
    const std::unique_ptr<std::uint8_t[]> samples(new std::uint8_t[37 * 29 * 3]);
    std::fill_n(coefficients.get(), count, JCOEF{77});
    afd::ReadOptions options{true, 8, false};
    options.output = {coefficients.get(), count, samples.get(), 37 * 29 * 3};
    const afd::Picture picture = read(file, options);
    CHECK(picture.coefficients->plane(0) == coefficients.get());
    CHECK(picture.pixels->samples.get() == samples.get());
    CHECK(std::equal(coefficients.get(), coefficients.get() + count, expected.coefficients->plane(0)));
    CHECK(pixels_of(picture) == pixels_of(expected));
    for (std::size_t afd::Output::* size : {&afd::Output::coefficient_count, &afd::Output::sample_count}) {
      afd::ReadOptions wrong = options;
      wrong.output.*size -= 1;
      CHECK(fails_with(ErrorKind::kOutputTooSmall, file, kDefaultLimits, wrong));
    }
  }
}

// Puts another file into the memory that is being read, once its coefficients have come.
class Exchanger final : public afd::CoefficientSink {
 public:
  Exchanger(Bytes& memory, const Bytes& other) : memory_(memory), other_(other) {}
  void begin(const afd::Header&) override { std::copy(other_.begin(), other_.end(), memory_.begin()); }
  void take(std::size_t, std::uint32_t, const JCOEF*) noexcept override {}

 private:
  Bytes& memory_;
  const Bytes& other_;
};

void another_picture_in_the_same_memory_is_not_taken_for_the_first() {
  Bytes file = encode(96, 96);
  file.insert(file.end() - 2, {0x12, 0x34});  // bytes that are too many: the file is read a second time
  CHECK(coefficients_of(read(file)) == reference_coefficients(file));
  const EncodeOptions finer{3, 1, 1};
  for (const Bytes& other : {encode(96, 64), encode(64, 96), encode(96, 96, finer), encode(96, 96, {1, 1, 1})}) {
    Bytes memory = file;
    memory.resize(std::max(file.size(), other.size()));
    Exchanger exchanger(memory, other);
    afd::ReadOptions options{true};
    options.sink = &exchanger;
    std::string message;
    try {
      afd::JpegReader(memory.data(), memory.size(), kDefaultLimits, false).read(options);
    } catch (const afd::JpegFailure& failure) {
      message = failure.kind() == ErrorKind::kCorrupt ? failure.what() : "";
    }
    CHECK(message == "the bytes change while they are read");
  }
}

void threads_keep_the_order_of_a_batch() {
  std::vector<Bytes> files;
  for (int i = 0; i < 40; ++i) files.push_back(i % 5 == 3 ? Bytes{0xFF, 0xD8} : encode(20 + i, 30, kinds()[i % 10]));
  std::vector<afd::Input> inputs;
  for (const Bytes& file : files) inputs.push_back({file.data(), file.size()});
  for (const std::size_t threads : {1, 2, 4, 100}) {
    const std::vector<afd::BatchItem> items = afd::read_batch(inputs, kDefaultLimits, false, {}, threads);
    CHECK(items.size() == files.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      CHECK((items[i].failure != nullptr) == (i % 5 == 3));
      if (!items[i].failure) CHECK(coefficients_of(items[i].picture) == reference_coefficients(files[i]));
    }
  }
  CHECK(afd::read_batch({}, kDefaultLimits, false, {}, 2).empty());
}

}  // namespace

int main(int argc, char** argv) {
  return afd::run_tests(
      {
          {"buffers_are_aligned_and_zeroed_when_used_again", buffers_are_aligned_and_zeroed_when_used_again},
          {"arena_owns_one_aligned_zeroed_buffer", arena_owns_one_aligned_zeroed_buffer},
          {"truncation_at_every_byte_is_typed", truncation_at_every_byte_is_typed},
          {"flipped_bytes_fail_or_decode_and_leak_nothing", flipped_bytes_fail_or_decode_and_leak_nothing},
          {"limits_name_themselves", limits_name_themselves},
          {"arithmetic_blocks_have_a_limit_of_their_own", arithmetic_blocks_have_a_limit_of_their_own},
          {"arithmetic_blocks_that_come_again_count_again", arithmetic_blocks_that_come_again_count_again},
          {"an_interrupted_batch_begins_no_other_picture", an_interrupted_batch_begins_no_other_picture},
          {"scans_are_counted_without_decoding", scans_are_counted_without_decoding},
          {"what_only_looks_like_a_scan_is_not_counted", what_only_looks_like_a_scan_is_not_counted},
          {"exif_is_read_within_its_bounds", exif_is_read_within_its_bounds},
          {"what_is_no_tiff_has_no_orientation", what_is_no_tiff_has_no_orientation},
          {"app1_is_read_within_its_bounds", app1_is_read_within_its_bounds},
          {"threads_share_nothing", threads_share_nothing},
          {"pictures_go_into_the_callers_memory", pictures_go_into_the_callers_memory},
          {"another_picture_in_the_same_memory_is_not_taken_for_the_first",
           another_picture_in_the_same_memory_is_not_taken_for_the_first},
          {"threads_keep_the_order_of_a_batch", threads_keep_the_order_of_a_batch},
      },
      argc, argv);
}
