// Unit tests of the codec without Python; meant to run under sanitizers: cmake -DAFD_TESTS=ON -DAFD_SANITIZE=...

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../exif.h"
#include "../jpeg_reader.h"
#include "../markers.h"

namespace {

using afd::ErrorKind;
using Bytes = std::vector<std::uint8_t>;

int failed_checks = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++failed_checks;                                                    \
    }                                                                     \
  } while (false)

constexpr afd::Limits kLimits{100'000'000, 64 << 20, 100, std::uint64_t{1} << 30, 8.0};

struct EncodeOptions {
  int components = 3;
  int h = 2;
  int v = 2;
  bool progressive = false;
  bool arithmetic = false;
  int restart_interval = 0;
};

Bytes encode(int width, int height, const EncodeOptions& options = {}) {
  jpeg_compress_struct cinfo{};
  jpeg_error_mgr errors{};
  unsigned char* buffer = nullptr;
  unsigned long size = 0;
  cinfo.err = jpeg_std_error(&errors);
  jpeg_create_compress(&cinfo);
  jpeg_mem_dest(&cinfo, &buffer, &size);
  cinfo.image_width = static_cast<JDIMENSION>(width);
  cinfo.image_height = static_cast<JDIMENSION>(height);
  cinfo.input_components = options.components;
  cinfo.in_color_space = options.components == 1 ? JCS_GRAYSCALE : options.components == 3 ? JCS_RGB : JCS_CMYK;
  jpeg_set_defaults(&cinfo);
  cinfo.comp_info[0].h_samp_factor = options.h;
  cinfo.comp_info[0].v_samp_factor = options.v;
  cinfo.arith_code = options.arithmetic ? TRUE : FALSE;
  cinfo.restart_interval = static_cast<unsigned int>(options.restart_interval);
  if (options.progressive) jpeg_simple_progression(&cinfo);
  jpeg_start_compress(&cinfo, TRUE);
  Bytes row(static_cast<std::size_t>(width * options.components));
  while (cinfo.next_scanline < cinfo.image_height) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = static_cast<std::uint8_t>(i * 7 + cinfo.next_scanline * 13 + (i * cinfo.next_scanline) % 31);
    }
    JSAMPROW pointer = row.data();
    jpeg_write_scanlines(&cinfo, &pointer, 1);
  }
  jpeg_finish_compress(&cinfo);
  jpeg_destroy_compress(&cinfo);
  Bytes file(buffer, buffer + size);
  std::free(buffer);
  return file;
}

afd::Picture read(const Bytes& file, const afd::ReadOptions& options = {}, bool tolerant = false,
                  const afd::Limits& limits = kLimits) {
  return afd::JpegReader(file.data(), file.size(), limits, tolerant).read(options);
}

// Reads the file from an allocation of exactly its size, so that ASan sees a read past its end.
bool fails_with(ErrorKind kind, const Bytes& file, const afd::Limits& limits = kLimits) {
  const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[file.size()]);
  std::copy(file.begin(), file.end(), exact.get());
  try {
    afd::JpegReader(exact.get(), file.size(), limits, false).read({});
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

void readers_in_threads_share_nothing() {
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

}  // namespace

int main() {
  const std::pair<const char*, void (*)()> tests[] = {
      {"coefficients_are_those_of_libjpegs_own_memory", coefficients_are_those_of_libjpegs_own_memory},
      {"every_scale_fills_its_pixels", every_scale_fills_its_pixels},
      {"pixels_are_those_of_an_ordinary_decode", pixels_are_those_of_an_ordinary_decode},
      {"damaged_pixels_are_those_of_an_ordinary_decode", damaged_pixels_are_those_of_an_ordinary_decode},
      {"arena_owns_one_aligned_zeroed_buffer", arena_owns_one_aligned_zeroed_buffer},
      {"truncation_at_every_byte_is_typed", truncation_at_every_byte_is_typed},
      {"flipped_bytes_fail_or_decode_and_leak_nothing", flipped_bytes_fail_or_decode_and_leak_nothing},
      {"limits_name_themselves", limits_name_themselves},
      {"scans_are_counted_without_decoding", scans_are_counted_without_decoding},
      {"exif_is_read_within_its_bounds", exif_is_read_within_its_bounds},
      {"app1_is_read_within_its_bounds", app1_is_read_within_its_bounds},
      {"readers_in_threads_share_nothing", readers_in_threads_share_nothing},
  };
  for (const auto& [name, test] : tests) {
    const int before = failed_checks;
    test();
    std::printf("%s %s\n", failed_checks == before ? "ok    " : "FAILED", name);
  }
  return failed_checks == 0 ? 0 : 1;
}
