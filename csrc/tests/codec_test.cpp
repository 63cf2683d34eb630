// Unit tests of the codec without Python; meant to run under sanitizers: cmake -DAFD_TESTS=ON -DAFD_SANITIZE=...
//
// Usage: codec_test [PART_OF_A_NAME]

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../batch.h"
#include "../buffer_pool.h"
#include "../exif.h"
#include "../huffman_tables.h"
#include "../jpeg_reader.h"
#include "../markers.h"
#include "../unstuff.h"
#include "outcome.h"
#include "support.h"

namespace {

using afd::Bytes;
using afd::encode;
using afd::EncodeOptions;
using afd::ErrorKind;
using afd::failed_checks;
using afd::kLimits;

afd::Picture read(const Bytes& file, const afd::ReadOptions& options = {}, bool tolerant = false,
                  const afd::Limits& limits = kLimits) {
  return afd::JpegReader(file.data(), file.size(), limits, tolerant).read(options);
}

// Reads the file from an allocation of exactly its size, so that ASan sees a read past its end.
bool fails_with(ErrorKind kind, const Bytes& file, const afd::Limits& limits = kLimits,
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

// Reference: libjpeg as its documentation says, with its own memory manager.
std::vector<JCOEF> reference_coefficients(const Bytes& file) {
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  cinfo.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&cinfo);
  jpeg_mem_src(&cinfo, file.data(), static_cast<unsigned long>(file.size()));
  jpeg_read_header(&cinfo, TRUE);
  jvirt_barray_ptr* arrays = jpeg_read_coefficients(&cinfo);
  std::vector<JCOEF> all;
  for (int c = 0; c < cinfo.num_components; ++c) {
    const jpeg_component_info& info = cinfo.comp_info[c];
    for (JDIMENSION y = 0; y < info.height_in_blocks; ++y) {
      JBLOCKARRAY row = cinfo.mem->access_virt_barray(reinterpret_cast<j_common_ptr>(&cinfo), arrays[c], y, 1, FALSE);
      const JCOEF* first = row[0][0];
      all.insert(all.end(), first, first + std::size_t{info.width_in_blocks} * DCTSIZE2);
    }
  }
  jpeg_finish_decompress(&cinfo);
  jpeg_destroy_decompress(&cinfo);
  return all;
}

// An ordinary one-pass decode; nothing if libjpeg gives up.
Bytes reference_pixels(const Bytes& file, int scale) {
  jpeg_decompress_struct cinfo{};
  afd::ErrorManager errors(true);
  cinfo.err = errors.base();
  Bytes samples;
  bool decoded = errors.guarded([&] {
    jpeg_create_decompress(&cinfo);
    jpeg_mem_src(&cinfo, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_read_header(&cinfo, TRUE);
    cinfo.out_color_space = JCS_RGB;
    cinfo.scale_num = static_cast<unsigned int>(scale);
    cinfo.scale_denom = 8;
    jpeg_start_decompress(&cinfo);
  });
  const std::size_t row_bytes = std::size_t{3} * cinfo.output_width;
  samples.resize(row_bytes * cinfo.output_height);
  decoded = decoded && errors.guarded([&] {
    while (cinfo.output_scanline < cinfo.output_height) {
      JSAMPROW row = samples.data() + row_bytes * cinfo.output_scanline;
      jpeg_read_scanlines(&cinfo, &row, 1);
    }
    jpeg_finish_decompress(&cinfo);
  });
  jpeg_destroy_decompress(&cinfo);
  return decoded ? samples : Bytes();
}

Bytes pixels_of(const afd::Picture& picture) {
  const std::uint8_t* first = picture.pixels->samples.get();
  return Bytes(first, first + std::size_t{3} * picture.pixels->width * picture.pixels->height);
}

std::vector<JCOEF> coefficients_of(const afd::Picture& picture) {
  std::vector<JCOEF> all;
  const afd::CoefficientArena& arena = *picture.coefficients;
  for (std::size_t c = 0; c < arena.plane_count(); ++c) {
    const afd::PlaneShape& shape = arena.shape(c);
    for (std::uint32_t y = 0; y < shape.height_in_blocks; ++y) {
      const JCOEF* first = arena.plane(c) + std::size_t{y} * shape.padded_width_in_blocks * DCTSIZE2;
      all.insert(all.end(), first, first + std::size_t{shape.width_in_blocks} * DCTSIZE2);
    }
  }
  return all;
}

const std::vector<EncodeOptions>& kinds() {
  static const std::vector<EncodeOptions> all{
      {3, 2, 2, false, false, 0}, {3, 1, 1, false, false, 0}, {3, 2, 1, true, false, 0},  {3, 1, 2, false, false, 3},
      {3, 4, 1, false, false, 0}, {1, 1, 1, false, false, 0}, {4, 1, 1, false, false, 0}, {4, 2, 2, true, false, 0},
      {3, 2, 2, false, true, 0},  {3, 2, 2, true, true, 2},
  };
  return all;
}

void coefficients_are_those_of_libjpegs_own_memory() {
  for (const EncodeOptions& kind : kinds()) {
    for (const int size : {1, 17, 64}) {
      const Bytes file = encode(size, size + 5, kind);
      const std::vector<JCOEF> expected = reference_coefficients(file);
      CHECK(coefficients_of(read(file)) == expected);
      for (int scale = 1; scale <= 8; ++scale) CHECK(coefficients_of(read(file, {true, scale, false})) == expected);
    }
  }
}

void every_scale_fills_its_pixels() {
  for (const EncodeOptions& kind : kinds()) {
    const Bytes file = encode(37, 29, kind);
    for (int scale = 1; scale <= 8; ++scale) {
      const afd::Picture picture = read(file, {true, scale, false});
      CHECK(picture.pixels.has_value());
      CHECK(picture.pixels->width == static_cast<std::uint32_t>((37 * scale + 7) / 8));
      CHECK(picture.pixels->height == static_cast<std::uint32_t>((29 * scale + 7) / 8));
    }
  }
}

void pixels_are_those_of_an_ordinary_decode() {
  for (const EncodeOptions& kind : kinds()) {
    if (kind.components == 4) continue;  // libjpeg does not convert CMYK to RGB
    const Bytes file = encode(61, 45, kind);
    for (const int scale : {1, 3, 8})
      CHECK(pixels_of(read(file, {true, scale, false})) == reference_pixels(file, scale));
  }
}

// libjpeg smooths the blocks of a progressive picture whose later scans are missing. It must do so here as well.
void damaged_pixels_are_those_of_an_ordinary_decode() {
  for (const EncodeOptions& kind : kinds()) {
    if (kind.components == 4) continue;
    const Bytes file = encode(61, 45, kind);
    for (std::size_t length = file.size() / 2; length < file.size(); length += 97) {
      const Bytes part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
      const Bytes expected = reference_pixels(part, 8);
      const Bytes pixels = pixels_of(read(part, {true, 8, false}, true));
      CHECK(expected.empty() || pixels == expected);  // cut inside a header, libjpeg gives up and we do not
    }
  }
}

bool decoders_agree_on(const Bytes& file) {
  for (const bool tolerant : {false, true}) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[file.size()]);
    std::copy(file.begin(), file.end(), exact.get());
    const afd::ReadOptions options{file.size() % 4 == 0, 8, false, {}};
    if (!afd::decoders_agree(exact.get(), file.size(), kLimits, tolerant, options)) return false;
  }
  return true;
}

// Files on which the decoders take different ways: every quality, own tables, no ends of blocks, restarts.
std::vector<Bytes> sequential_files(int width, int height) {
  std::vector<Bytes> files;
  for (const int quality : {1, 10, 50, 75, 90, 95, 100}) {
    for (const bool noise : {false, true}) {
      for (const bool optimize : {false, true}) {
        for (const int restart_interval : {0, 1, 7}) {
          for (const int sampling : {1, 2}) {
            files.push_back(encode(width, height,
                                   {3, sampling, sampling, false, false, restart_interval, quality, optimize, noise}));
          }
          files.push_back(encode(width, height, {1, 1, 1, false, false, restart_interval, quality, optimize, noise}));
        }
      }
    }
  }
  return files;
}

std::vector<Bytes> progressive_files(int width, int height) {
  std::vector<Bytes> files;
  for (const int quality : {1, 10, 50, 75, 90, 95, 100}) {
    for (const bool noise : {false, true}) {
      for (const int restart_interval : {0, 1, 7}) {
        for (const int sampling : {1, 2}) {
          files.push_back(
              encode(width, height, {3, sampling, sampling, true, false, restart_interval, quality, true, noise}));
        }
        files.push_back(encode(width, height, {1, 1, 1, true, false, restart_interval, quality, true, noise}));
      }
    }
  }
  return files;
}

void decoders_agree_on_sound_files() {
  for (const int size : {3, 40, 150}) {
    for (const Bytes& file : sequential_files(size, size + 11)) CHECK(decoders_agree_on(file));
    for (const Bytes& file : progressive_files(size, size + 11)) CHECK(decoders_agree_on(file));
    for (const EncodeOptions& kind : kinds()) CHECK(decoders_agree_on(encode(size, size + 5, kind)));
  }
}

// Where ours leaves everything to libjpeg, agreement says nothing.
void our_decoder_takes_sound_files() {
  for (const Bytes& file : sequential_files(40, 51)) {
    CHECK(read(file).own_scans == 1);
    CHECK(read(file, {false, 8, false, afd::Decoder::kLibjpeg}).own_scans == 0);
  }
  for (const Bytes& file : progressive_files(40, 51)) CHECK(read(file).own_scans >= 6);
  for (const EncodeOptions& kind : kinds()) {
    const int own_scans = read(encode(40, 51, kind)).own_scans;
    CHECK(kind.arithmetic ? own_scans == 0 : kind.progressive ? own_scans >= 10 : own_scans == 1);
  }
}

void decoders_agree_on_truncated_files() {
  for (const EncodeOptions& kind : {EncodeOptions{},
                                    {1, 1, 1, false, false, 3},
                                    {3, 1, 1, false, false, 0, 100, true, true},
                                    {3, 2, 2, true},
                                    {1, 1, 1, true, false, 2, 95, false, true}}) {
    const Bytes file = encode(24, 20, kind);
    for (std::size_t length = 2; length < file.size(); ++length) {
      Bytes part(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
      CHECK(decoders_agree_on(part));
      part.insert(part.end(), {0xFF, 0xD9});
      CHECK(decoders_agree_on(part));
    }
  }
}

void decoders_agree_on_damaged_files() {
  std::minstd_rand random(2);
  for (const EncodeOptions& kind : {EncodeOptions{},
                                    {1, 2, 2, false, false, 3},
                                    {3, 1, 1, false, false, 0, 95, true, true},
                                    {3, 2, 1, true},
                                    {1, 1, 1, true, false, 2, 95, false, true}}) {
    const Bytes file = encode(24, 20, kind);
    for (std::size_t i = 0; i < file.size(); ++i) {
      for (const int value : {0x00, 0xFF, 0xD0, static_cast<int>(random() >> 8 & 0xFF)}) {
        Bytes damaged = file;
        damaged[i] = static_cast<std::uint8_t>(value);
        CHECK(decoders_agree_on(damaged));
        damaged.insert(damaged.begin() + static_cast<std::ptrdiff_t>(i), static_cast<std::uint8_t>(value));
        CHECK(decoders_agree_on(damaged));
        damaged.erase(damaged.begin() + static_cast<std::ptrdiff_t>(i),
                      damaged.begin() + static_cast<std::ptrdiff_t>(i + 2));
        CHECK(decoders_agree_on(damaged));
      }
    }
  }
}

// A table that a scan already holds must survive the making of the scan's other tables.
void cached_tables_outlive_the_next_seven_calls() {
  afd::TableCache cache;
  const auto table_of = [&cache](int number) {
    JHUFF_TBL source{};
    source.bits[8] = 1;
    source.huffval[0] = static_cast<UINT8>(number);
    return cache.symbol_table(source);
  };
  for (int number = 0; number < 8; ++number) CHECK(table_of(number) != nullptr);
  for (int first = 0; first < 8; ++first) {
    const afd::SymbolTable* held = table_of(first);
    for (int i = 1; i < 8; ++i) table_of((first + 3 * i) % 11);
    CHECK(held->entries[0] == (first << 8 | 8));
    CHECK(table_of(first) == held);
  }
}

void unstuffing_stops_at_markers() {
  const Bytes data{1, 0xFF, 0, 2, 0xFF, 0, 0xFF, 0, 3, 0xFF, 0xD3, 4};
  Bytes out(data.size());
  const afd::Segment segment = afd::unstuff(data.data(), data.data() + data.size(), out.data());
  CHECK((Bytes(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(segment.size)) ==
         Bytes{1, 0xFF, 2, 0xFF, 0xFF, 3}));
  CHECK(segment.end_marker == data.data() + 9);
  for (std::size_t length = 0; length <= 10; ++length) {
    CHECK(afd::unstuff(data.data(), data.data() + length, out.data()).end_marker == nullptr);
  }
  const Bytes filled{1, 0xFF, 0xFF, 0xD9};
  CHECK(afd::unstuff(filled.data(), filled.data() + filled.size(), out.data()).end_marker == nullptr);
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
            read(damaged, {true, 8, true}, tolerant, {1 << 20, 1 << 20, 20, 64 << 20, 8.0});
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
  afd::Limits limits = kLimits;
  limits.max_pixels = 64 * 64 - 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits = kLimits;
  limits.max_bytes = file.size() - 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits = kLimits;
  limits.max_scans = 9;  // jpeg_simple_progression makes ten
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_scans = 10;
  CHECK(!fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_memory_bytes = 64 * 64 * 3;  // two bytes for each of 1.5 samples per pixel
  CHECK(!fails_with(ErrorKind::kTooLarge, file, limits));
  limits.max_memory_bytes -= 1;
  CHECK(fails_with(ErrorKind::kTooLarge, file, limits));
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

void exif_is_read_within_its_bounds() {
  const std::uint8_t segment[] = {'E', 'x', 'i', 'f',  0, 0, 'M', 'M', 0, 42, 0, 0, 0, 8,
                                  0,   1,   1,   0x12, 0, 3, 0,   0,   0, 1,  0, 6, 0, 0};
  CHECK(afd::exif_orientation(segment, sizeof segment) == 6);
  for (std::size_t length = 0; length < sizeof segment - 2; ++length) {
    const Bytes part(segment, segment + length);
    CHECK(afd::exif_orientation(part.data(), part.size()) == 0);
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
  for (const std::uint8_t declared : {0, 1, 2, 3}) {  // shorter than what follows: the rest is junk before a marker
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
      CHECK(fails_with(ErrorKind::kOutputTooSmall, file, kLimits, wrong));
    }
  }
}

void threads_keep_the_order_of_a_batch() {
  std::vector<Bytes> files;
  for (int i = 0; i < 40; ++i) files.push_back(i % 5 == 3 ? Bytes{0xFF, 0xD8} : encode(20 + i, 30, kinds()[i % 10]));
  std::vector<afd::Input> inputs;
  for (const Bytes& file : files) inputs.push_back({file.data(), file.size()});
  for (const std::size_t threads : {1, 2, 4, 100}) {
    const std::vector<afd::BatchItem> items = afd::read_batch(inputs, kLimits, false, {}, threads);
    CHECK(items.size() == files.size());
    for (std::size_t i = 0; i < items.size(); ++i) {
      CHECK((items[i].failure != nullptr) == (i % 5 == 3));
      if (!items[i].failure) CHECK(coefficients_of(items[i].picture) == reference_coefficients(files[i]));
    }
  }
  CHECK(afd::read_batch({}, kLimits, false, {}, 2).empty());
}

}  // namespace

int main(int argc, char** argv) {
  const std::pair<const char*, void (*)()> tests[] = {
      {"coefficients_are_those_of_libjpegs_own_memory", coefficients_are_those_of_libjpegs_own_memory},
      {"every_scale_fills_its_pixels", every_scale_fills_its_pixels},
      {"pixels_are_those_of_an_ordinary_decode", pixels_are_those_of_an_ordinary_decode},
      {"damaged_pixels_are_those_of_an_ordinary_decode", damaged_pixels_are_those_of_an_ordinary_decode},
      {"decoders_agree_on_sound_files", decoders_agree_on_sound_files},
      {"our_decoder_takes_sound_files", our_decoder_takes_sound_files},
      {"decoders_agree_on_truncated_files", decoders_agree_on_truncated_files},
      {"decoders_agree_on_damaged_files", decoders_agree_on_damaged_files},
      {"cached_tables_outlive_the_next_seven_calls", cached_tables_outlive_the_next_seven_calls},
      {"unstuffing_stops_at_markers", unstuffing_stops_at_markers},
      {"buffers_are_aligned_and_zeroed_when_used_again", buffers_are_aligned_and_zeroed_when_used_again},
      {"arena_owns_one_aligned_zeroed_buffer", arena_owns_one_aligned_zeroed_buffer},
      {"truncation_at_every_byte_is_typed", truncation_at_every_byte_is_typed},
      {"flipped_bytes_fail_or_decode_and_leak_nothing", flipped_bytes_fail_or_decode_and_leak_nothing},
      {"limits_name_themselves", limits_name_themselves},
      {"scans_are_counted_without_decoding", scans_are_counted_without_decoding},
      {"exif_is_read_within_its_bounds", exif_is_read_within_its_bounds},
      {"app1_is_read_within_its_bounds", app1_is_read_within_its_bounds},
      {"threads_share_nothing", threads_share_nothing},
      {"pictures_go_into_the_callers_memory", pictures_go_into_the_callers_memory},
      {"threads_keep_the_order_of_a_batch", threads_keep_the_order_of_a_batch},
  };
  for (const auto& [name, test] : tests) {
    if (argc > 1 && std::strstr(name, argv[1]) == nullptr) continue;
    const int before = failed_checks;
    test();
    std::printf("%s %s\n", failed_checks == before ? "ok    " : "FAILED", name);
  }
  return failed_checks == 0 ? 0 : 1;
}
