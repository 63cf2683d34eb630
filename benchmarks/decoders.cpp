// Times our reader and libjpeg-turbo's own decoder in C on the same files; benchmarks/extraction.py builds and runs it.
//
// Usage: decoders ROUNDS FILE...
//
// The readers take turns on each file, so that whatever else the machine does slows all of them alike. Prints, for each
// reader, its name and the sum over all files of its best time in seconds.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <limits>
#include <vector>

#include "../csrc/jpeg_reader.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr afd::Limits kLimits{100'000'000, 64 << 20, 64, std::uint64_t{1} << 30, 8.0};

void open(jpeg_decompress_struct& cinfo, jpeg_error_mgr& errors, const Bytes& file) {
  cinfo.err = jpeg_std_error(&errors);
  jpeg_create_decompress(&cinfo);
  jpeg_mem_src(&cinfo, file.data(), static_cast<unsigned long>(file.size()));
  jpeg_read_header(&cinfo, TRUE);
}

void close(jpeg_decompress_struct& cinfo) {
  jpeg_finish_decompress(&cinfo);
  jpeg_destroy_decompress(&cinfo);
}

// libjpeg's fastest way to coefficients: they stay in its own memory, nothing is copied.
void libjpeg_coefficients(const Bytes& file) {
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  open(cinfo, errors, file);
  jpeg_read_coefficients(&cinfo);
  close(cinfo);
}

void libjpeg_pixels(const Bytes& file) {
  jpeg_decompress_struct cinfo{};
  jpeg_error_mgr errors{};
  open(cinfo, errors, file);
  cinfo.out_color_space = JCS_RGB;
  jpeg_start_decompress(&cinfo);
  const std::size_t row_bytes = std::size_t{3} * cinfo.output_width;
  const afd::ByteBuffer samples = afd::allocate_bytes(row_bytes * cinfo.output_height);
  while (cinfo.output_scanline < cinfo.output_height) {
    JSAMPROW row = samples.get() + row_bytes * cinfo.output_scanline;
    jpeg_read_scanlines(&cinfo, &row, 1);
  }
  close(cinfo);
}

template <bool kPixels, afd::Decoder kDecoder>
void ours(const Bytes& file) {
  afd::JpegReader(file.data(), file.size(), kLimits, true).read({kPixels, 8, false, kDecoder});
}

struct Reader {
  const char* name;
  void (*read)(const Bytes&);
  double seconds = 0;
};

void time_file(std::vector<Reader>& readers, const Bytes& file, int rounds) {
  std::vector<double> best(readers.size(), std::numeric_limits<double>::infinity());
  for (int round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < readers.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      readers[i].read(file);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      best[i] = std::min(best[i], time.count());
    }
  }
  for (std::size_t i = 0; i < readers.size(); ++i) readers[i].seconds += best[i];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  std::vector<Reader> readers{
      {"libjpeg-turbo in C: coefficients", libjpeg_coefficients},
      {"libjpeg-turbo in C: RGB", libjpeg_pixels},
      {"ours in C++: coefficients", ours<false, afd::Decoder::kFastest>},
      {"ours in C++: coefficients, portable", ours<false, afd::Decoder::kPortable>},
      {"ours in C++: coefficients + RGB", ours<true, afd::Decoder::kFastest>},
  };
  for (int i = 2; i < argc; ++i) {
    std::ifstream stream(argv[i], std::ios::binary);
    const Bytes file{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    time_file(readers, file, std::atoi(argv[1]));
  }
  for (const Reader& reader : readers) std::printf("%s\t%.9f\n", reader.name, reader.seconds);
  return 0;
}
