// Unit tests of what is decoded: our decoders against libjpeg's, bit for bit.
//
// Usage: decoders_test [PART_OF_A_NAME]

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "../error.h"
#include "../huffman_tables.h"
#include "../unstuff.h"
#include "hand_made.h"
#include "outcome.h"
#include "reading.h"
#include "recorder.h"
#include "support.h"

namespace {

using afd::Bytes;
using afd::Codes;
using afd::coefficients_of;
using afd::encode;
using afd::EncodeOptions;
using afd::hand_made;
using afd::kBlocks;
using afd::kDefaultLimits;
using afd::kinds;
using afd::pixels_of;
using afd::random_file;
using afd::random_progressive_file;
using afd::read;
using afd::reference_coefficients;

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
    if (!afd::decoders_agree(exact.get(), file.size(), kDefaultLimits, tolerant, options)) return false;
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

// One code stands for up to 32767 empty blocks.
void runs_of_empty_blocks_may_be_long() {
  EncodeOptions flat{1, 1, 1, true};
  flat.flat = true;
  const Bytes file = encode(1460, 1460, flat);
  const afd::Picture picture = read(file);
  CHECK(picture.own_scans == 6);
  CHECK(coefficients_of(picture) == reference_coefficients(file));
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

std::vector<JCOEF> some_blocks_of(const std::vector<JCOEF>& row) {
  return std::vector<JCOEF>(row.begin() + 40 * DCTSIZE2, row.begin() + 45 * DCTSIZE2);
}

// Those blocks of a picture where nobody wants the others; nothing if libjpeg had to decode it.
std::vector<JCOEF> some_blocks(const Bytes& file, afd::Decoder decoder) {
  afd::Recorder recorder;
  afd::ReadOptions options{true, 8, false, decoder};
  options.region = afd::Region{40 * DCTSIZE, 0, 5 * DCTSIZE, DCTSIZE};
  options.sink = &recorder;
  if (read(file, options).own_scans != 1) return {};
  return some_blocks_of(recorder.planes[0]);
}

void any_tables_are_decoded() {
  std::minstd_rand random(8);
  for (int i = 0; i < 200; ++i) {
    const Bytes file = random_file(random, {});
    const std::vector<JCOEF> expected = reference_coefficients(file);
    for (const afd::Decoder decoder : {afd::Decoder::kFastest, afd::Decoder::kPortable}) {
      const afd::Picture picture = read(file, {false, 8, false, decoder});
      CHECK(picture.own_scans == 1);
      CHECK(coefficients_of(picture) == expected);
      CHECK(some_blocks(file, decoder) == some_blocks_of(expected));
    }
  }
}

void any_tables_of_progressive_files_are_decoded() {
  std::minstd_rand random(10);
  for (int i = 0; i < 300; ++i) {
    const Bytes file = random_progressive_file(random, i % 2 == 0 ? 0 : 7);
    const std::vector<JCOEF> expected = reference_coefficients(file);
    for (const afd::Decoder decoder : {afd::Decoder::kFastest, afd::Decoder::kPortable}) {
      const afd::Picture picture = read(file, {false, 8, false, decoder});
      CHECK(picture.own_scans == 3);
      CHECK(coefficients_of(picture) == expected);
    }
  }
}

// libjpeg stores what is counted beyond a block as the block's last coefficient, without a warning.
void runs_beyond_the_last_coefficient_are_libjpegs() {
  std::minstd_rand random(9);
  for (int i = 0; i < 1500; ++i) {
    const Bytes file = random_file(random, kBlocks / 2);
    CHECK(read(file).own_scans == 0);
    CHECK(coefficients_of(read(file)) == reference_coefficients(file));
  }
}

// Ones fill the last byte, and no code consists of ones only: what is missing there must not pass for an end of block,
// nor where nobody wants the block.
void a_block_without_its_end_is_damage() {
  const Codes codes{{0}, {0}};
  CHECK(read(hand_made(4, codes, {0b00000000})).own_scans == 1);
  const Bytes cut = hand_made(4, codes, {0b00000001});
  CHECK(decoders_agree_on(cut));
  afd::Recorder recorder;
  afd::ReadOptions options{true};
  options.region = afd::Region{0, 0, 8, 8};
  for (afd::CoefficientSink* sink :
       {static_cast<afd::CoefficientSink*>(nullptr), static_cast<afd::CoefficientSink*>(&recorder)}) {
    options.sink = sink;
    CHECK(read(cut, options, true).warning_count > 0);
  }
}

// Differences may add up to what no coefficient can hold, and in the end to what no integer can: nothing of ours.
void a_dc_coefficient_of_more_than_16_bits_is_libjpegs() {
  const Codes codes{{15}, {0}};
  const Bytes once = hand_made(1, codes, {0b01111111, 0b11111111, 0x00, 0b01111111});
  CHECK(read(once).own_scans == 1 && coefficients_of(read(once))[0] == 32767);
  const Bytes twice = hand_made(2, codes, {0b01111111, 0b11111111, 0x00, 0b00111111, 0b11111111, 0x00, 0b10111111});
  CHECK(read(twice).own_scans == 0);
  CHECK(decoders_agree_on(twice));
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
  const Bytes temporary{1, 0xFF, 0x01, 2};  // TEM, the marker of the lowest number
  CHECK(afd::unstuff(temporary.data(), temporary.data() + temporary.size(), out.data()).end_marker == &temporary[1]);
  const Bytes filled{1, 0xFF, 0xFF, 0xD9};
  CHECK(afd::unstuff(filled.data(), filled.data() + filled.size(), out.data()).end_marker == nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  return afd::run_tests(
      {
          {"coefficients_are_those_of_libjpegs_own_memory", coefficients_are_those_of_libjpegs_own_memory},
          {"every_scale_fills_its_pixels", every_scale_fills_its_pixels},
          {"pixels_are_those_of_an_ordinary_decode", pixels_are_those_of_an_ordinary_decode},
          {"damaged_pixels_are_those_of_an_ordinary_decode", damaged_pixels_are_those_of_an_ordinary_decode},
          {"decoders_agree_on_sound_files", decoders_agree_on_sound_files},
          {"runs_of_empty_blocks_may_be_long", runs_of_empty_blocks_may_be_long},
          {"our_decoder_takes_sound_files", our_decoder_takes_sound_files},
          {"decoders_agree_on_truncated_files", decoders_agree_on_truncated_files},
          {"decoders_agree_on_damaged_files", decoders_agree_on_damaged_files},
          {"any_tables_are_decoded", any_tables_are_decoded},
          {"any_tables_of_progressive_files_are_decoded", any_tables_of_progressive_files_are_decoded},
          {"runs_beyond_the_last_coefficient_are_libjpegs", runs_beyond_the_last_coefficient_are_libjpegs},
          {"a_block_without_its_end_is_damage", a_block_without_its_end_is_damage},
          {"a_dc_coefficient_of_more_than_16_bits_is_libjpegs", a_dc_coefficient_of_more_than_16_bits_is_libjpegs},
          {"cached_tables_outlive_the_next_seven_calls", cached_tables_outlive_the_next_seven_calls},
          {"unstuffing_stops_at_markers", unstuffing_stops_at_markers},
      },
      argc, argv);
}
