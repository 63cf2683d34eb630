// What is looked at before a picture may cost memory or time.

#include <cinttypes>
#include <cstdint>
#include <string>
#include <vector>

#include "jpeg_reader.h"
#include "markers.h"

namespace afd {
namespace {

JpegFailure too_large(const std::string& what, const char* limit) {
  return JpegFailure(ErrorKind::kTooLarge, what + "; pass JpegLimits(" + limit + "=...) to allow more");
}

}  // namespace

void JpegReader::check_input() const {
  if (size_ == 0) throw JpegFailure(ErrorKind::kEmpty, "no bytes");
  if (size_ > limits_.max_bytes) {
    throw too_large(format("%zu bytes exceed the limit of %" PRIu64, size_, limits_.max_bytes), "max_bytes");
  }
  if (size_ == 1 && data_[0] == 0xFF) throw JpegFailure(ErrorKind::kTruncated, "only one byte");
  if (size_ == 1 || data_[0] != 0xFF || data_[1] != 0xD8) {
    throw JpegFailure(ErrorKind::kCorrupt, format("not a JPEG: starts with 0x%02x%02x instead of 0xffd8", data_[0],
                                                  size_ == 1 ? 0u : static_cast<unsigned>(data_[1])));
  }
}

void JpegReader::check_cost(const ReadOptions& options, const std::vector<PlaneShape>& shapes) {
  const std::uint64_t pixels = std::uint64_t{header_.width} * header_.height;
  if (pixels > limits_.max_pixels) {
    throw too_large(format("%" PRIu32 "x%" PRIu32 " pixels exceed the limit of %" PRIu64, header_.width, header_.height,
                           limits_.max_pixels),
                    "max_pixels");
  }
  check_blocks_per_byte();
  check_memory(options, shapes);
  check_scans();
  check_output(options, shapes);
}

// A Huffman-coded picture spends at least one bit on the DC coefficient of each of its blocks.
void JpegReader::check_blocks_per_byte() const {
  std::uint64_t blocks = 0;
  for (const Component& component : header_.components) {
    blocks += std::uint64_t{component.width_in_blocks} * component.height_in_blocks;
  }
  const double allowed = limits_.max_blocks_per_byte * static_cast<double>(size_);
  if (blocks > kAlwaysAllowedBlocks && static_cast<double>(blocks) > allowed) {
    throw too_large(format("%" PRIu64 " blocks in %zu bytes exceed the limit of %g blocks per byte", blocks, size_,
                           limits_.max_blocks_per_byte),
                    "max_blocks_per_byte");
  }
}

void JpegReader::check_memory(const ReadOptions& options, const std::vector<PlaneShape>& shapes) {
  std::uint64_t bytes = CoefficientArena::bytes_for(shapes);
  if (options.pixels) {
    const std::uint64_t copies = options.apply_orientation && header_.orientation > 1 ? 2 : 1;
    bytes += copies * 3 * cinfo_.output_width * cinfo_.output_height;
  }
  if (bytes > limits_.max_memory_bytes) {
    throw too_large(format("%" PRIu64 " bytes of memory exceed the limit of %" PRIu64, bytes, limits_.max_memory_bytes),
                    "max_memory_bytes");
  }
}

void JpegReader::check_output(const ReadOptions& options, const std::vector<PlaneShape>& shapes) const {
  const auto check = [](const char* name, std::uint64_t needed, std::size_t available) {
    if (needed <= available) return;
    throw JpegFailure(ErrorKind::kOutputTooSmall,
                      format("the picture has %" PRIu64 " %s, and the output holds %zu", needed, name, available));
  };
  const Output& output = options.output;
  const std::uint64_t coefficients = CoefficientArena::bytes_for(shapes) / sizeof(JCOEF);
  if (output.coefficients != nullptr) check("coefficients, with padding", coefficients, output.coefficient_count);
  if (!options.pixels || output.samples == nullptr) return;
  check("samples", std::uint64_t{3} * cinfo_.output_width * cinfo_.output_height, output.sample_count);
}

// Every scan of a progressive file can cost as much as a whole picture. check_scan_number stops them while decoding;
// counting them first refuses without decoding any.
void JpegReader::check_scans() const {
  if (!header_.progressive && cinfo_.comps_in_scan == cinfo_.num_components) return;
  const std::uint64_t scans = count_scans(data_, size_, limits_.max_scans + 1);
  if (scans > limits_.max_scans) {
    throw too_large(format("more than %" PRIu64 " scans", limits_.max_scans), "max_scans");
  }
}

void JpegReader::check_scan_number(j_common_ptr cinfo) {
  const int scan = reinterpret_cast<j_decompress_ptr>(cinfo)->input_scan_number;
  if (scan > 0 && static_cast<std::uint64_t>(scan) > reader_of(cinfo).limits_.max_scans) {
    ErrorManager::fail(cinfo, ErrorKind::kTooLarge, "too many scans; pass JpegLimits(max_scans=...) to allow more");
  }
}

}  // namespace afd
