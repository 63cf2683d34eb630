// Times our reader and libjpeg-turbo's own decoder in C on the same files; benchmarks/extraction.py builds and runs it.
//
// Usage: decoders ROUNDS FILE...
//
// Each reader reads each file ROUNDS times in a row: the first time, its caches are cold. Prints, for each file and
// reader, the reader's name and its best processor time in seconds.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <limits>
#include <vector>

#include "../csrc/jpeg_reader.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

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
  afd::JpegReader(file.data(), file.size(), afd::kDefaultLimits, true).read({kPixels, 8, false, kDecoder});
}

struct Reader {
  const char* name;
  void (*read)(const Bytes&);
};

// What Python's time.process_time() says.
double processor_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void time_file(const std::vector<Reader>& readers, const Bytes& file, int rounds) {
  for (const Reader& reader : readers) {
    double best = std::numeric_limits<double>::infinity();
    for (int round = 0; round < rounds; ++round) {
      const double start = processor_seconds();
      reader.read(file);
      best = std::min(best, processor_seconds() - start);
    }
    std::printf("%s\t%.9f\n", reader.name, best);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const std::vector<Reader> readers{
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
  return 0;
}
