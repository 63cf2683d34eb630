#pragma once

// What the tests share: checks, what runs them, and a writer of files. They are meant to run under sanitizers:
// cmake -DAFD_TESTS=ON -DAFD_SANITIZE=...

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <vector>

#include "../libjpeg.h"
#include "../limits.h"

namespace afd {

using Bytes = std::vector<std::uint8_t>;

inline int failed_checks = 0;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++afd::failed_checks;                                               \
    }                                                                     \
  } while (false)

struct Test {
  const char* name;
  void (*run)();
};

// Runs the tests whose name has the program's argument in it, or all; returns the program's status.
inline int run_tests(std::initializer_list<Test> tests, int argc, char** argv) {
  for (const Test& test : tests) {
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    const int before = failed_checks;
    test.run();
    std::printf("%s %s\n", failed_checks == before ? "ok    " : "FAILED", test.name);
  }
  return failed_checks == 0 ? 0 : 1;
}

struct EncodeOptions {
  int components = 3;
  int h = 2;
  int v = 2;
  bool progressive = false;
  bool arithmetic = false;
  int restart_interval = 0;
  int quality = 75;
  bool optimize = false;
  bool noise = false;  // blocks without a zero: codes of every length, and blocks without an end
  bool flat = false;
  bool interleaved = true;  // of sequential files
};

inline Bytes encode(int width, int height, const EncodeOptions& options = {}) {
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
  cinfo.optimize_coding = options.optimize ? TRUE : FALSE;
  jpeg_set_quality(&cinfo, options.quality, TRUE);
  if (options.progressive) jpeg_simple_progression(&cinfo);
  std::vector<jpeg_scan_info> scans;
  for (int i = 0; i < options.components; ++i) scans.push_back({1, {i}, 0, DCTSIZE2 - 1, 0, 0});
  if (!options.interleaved) {
    cinfo.scan_info = scans.data();
    cinfo.num_scans = options.components;
  }
  jpeg_start_compress(&cinfo, TRUE);
  std::minstd_rand random(1);
  Bytes row(static_cast<std::size_t>(width * options.components));
  while (cinfo.next_scanline < cinfo.image_height) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::size_t pattern = i * 7 + cinfo.next_scanline * 13 + (i * cinfo.next_scanline) % 31;
      row[i] = static_cast<std::uint8_t>(options.noise ? random() >> 8 : options.flat ? 90 : pattern);
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

}  // namespace afd
