// What is looked at before a picture may cost memory or time.

#include <algorithm>
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
  const std::uint64_t blocks = block_count();
  check_blocks_per_byte(blocks);
  check_arithmetic_blocks(blocks);
  check_memory(options, shapes);
  check_scans();
  check_output(options, shapes);
}

std::uint64_t JpegReader::block_count() const {
  std::uint64_t blocks = 0;
  for (const Component& component : header_.components) {
    blocks += std::uint64_t{component.width_in_blocks} * component.height_in_blocks;
  }
  return blocks;
}

// A Huffman-coded picture spends at least one bit on the DC coefficient of each of its blocks.
void JpegReader::check_blocks_per_byte(std::uint64_t blocks) const {
  const double allowed = limits_.max_blocks_per_byte * static_cast<double>(size_);
  if (blocks > kAlwaysAllowedBlocks && static_cast<double>(blocks) > allowed) {
    throw too_large(format("%" PRIu64 " blocks in %zu bytes exceed the limit of %g blocks per byte", blocks, size_,
                           limits_.max_blocks_per_byte),
                    "max_blocks_per_byte");
  }
}

// A block can take 2,000 arithmetic decisions, and these next to no bits: where data have run out, decoders go on with
// zeros, as encoders expect. So bytes do not bound what such a picture costs.
void JpegReader::check_arithmetic_blocks(std::uint64_t blocks) const {
  if (!header_.arithmetic || blocks <= limits_.max_arithmetic_blocks) return;
  throw too_large(
      format("%" PRIu64 " arithmetic-coded blocks exceed the limit of %" PRIu64, blocks, limits_.max_arithmetic_blocks),
      "max_arithmetic_blocks");
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

// The blocks of the components that a scan's header names (T.81, B.2.3).
std::uint64_t JpegReader::blocks_named(const std::uint8_t* segment, std::size_t size) const {
  std::uint64_t blocks = 0;
  const std::size_t end = size < 3 ? 0 : std::min<std::size_t>(size, 3 + 2 * std::size_t{segment[2]});
  for (std::size_t i = 3; i < end; i += 2) {
    const auto named = std::find_if(header_.components.begin(), header_.components.end(),
                                    [id = segment[i]](const Component& component) { return component.id == id; });
    if (named != header_.components.end()) blocks += std::uint64_t{named->width_in_blocks} * named->height_in_blocks;
  }
  return blocks;
}

// Every scan of a progressive file can cost as much as a whole picture. check_scan_number and check_scan_blocks stop
// them while decoding; counting them first refuses without decoding any.
void JpegReader::check_scans() const {
  if (!header_.progressive && cinfo_.comps_in_scan == cinfo_.num_components) return;
  std::uint64_t blocks = 0;
  const auto add = [this, &blocks](const std::uint8_t* segment, std::size_t size) {
    blocks += blocks_named(segment, size);
  };
  const std::uint64_t scans = count_scans(data_, size_, limits_.max_scans + 1, add);
  if (scans > limits_.max_scans) {
    throw too_large(format("more than %" PRIu64 " scans", limits_.max_scans), "max_scans");
  }
  if (blocks > limits_.max_scan_blocks) {
    throw too_large(format("%" PRIu64 " blocks in %" PRIu64 " scans exceed the limit of %" PRIu64, blocks, scans,
                           limits_.max_scan_blocks),
                    "max_scan_blocks");
  }
}

void JpegReader::check_scan_number(j_common_ptr cinfo) {
  const int scan = reinterpret_cast<j_decompress_ptr>(cinfo)->input_scan_number;
  if (scan > 0 && static_cast<std::uint64_t>(scan) > reader_of(cinfo).limits_.max_scans) {
    ErrorManager::fail(cinfo, ErrorKind::kTooLarge, "too many scans; pass JpegLimits(max_scans=...) to allow more");
  }
}

// Called for each scan before it is decoded. One that leaves all blocks as they are takes next to no bytes, but libjpeg
// looks at each of their coefficients. And nothing forbids a sequential file to bring a component again and again.
void JpegReader::check_scan_blocks() {
  const bool refines = header_.progressive && cinfo_.Ah != 0;
  const int band = header_.progressive ? cinfo_.Se - cinfo_.Ss + 1 : DCTSIZE2;
  for (int i = 0; i < cinfo_.comps_in_scan; ++i) {
    const jpeg_component_info& component = *cinfo_.cur_comp_info[i];
    const std::uint64_t blocks = std::uint64_t{component.width_in_blocks} * component.height_in_blocks;
    scan_blocks_ += blocks;
    if (!refines) new_coefficients_ += blocks * static_cast<std::uint64_t>(band);
  }
  const auto common = reinterpret_cast<j_common_ptr>(&cinfo_);
  if (scan_blocks_ > limits_.max_scan_blocks) {
    ErrorManager::fail(common, ErrorKind::kTooLarge,
                       "too many blocks in all scans together; pass JpegLimits(max_scan_blocks=...) to allow more");
  }
  if (header_.arithmetic && new_coefficients_ / DCTSIZE2 > limits_.max_arithmetic_blocks) {
    ErrorManager::fail(common, ErrorKind::kTooLarge,
                       "arithmetic-coded blocks come again; pass JpegLimits(max_arithmetic_blocks=...) to allow more");
  }
}

}  // namespace afd
