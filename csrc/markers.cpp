#include "markers.h"

#include <cstring>

namespace afd {
namespace {

constexpr std::uint8_t kTem = 0x01;
constexpr std::uint8_t kRst0 = 0xD0;
constexpr std::uint8_t kSoi = 0xD8;
constexpr std::uint8_t kEoi = 0xD9;
constexpr std::uint8_t kSos = 0xDA;

bool has_no_length(std::uint8_t marker) { return marker == kTem || (marker >= kRst0 && marker <= kSoi); }

// Position after the next marker's two bytes, or `size`. In entropy-coded data a 0xFF is followed by 0x00 (stuffing),
// so that this also steps over the data of a scan.
std::size_t after_next_marker(const std::uint8_t* data, std::size_t size, std::size_t position) {
  while (position < size) {
    const void* found = std::memchr(data + position, 0xFF, size - position);
    if (found == nullptr) return size;
    position = static_cast<std::size_t>(static_cast<const std::uint8_t*>(found) - data) + 1;
    while (position < size && data[position] == 0xFF) ++position;
    if (position < size && data[position++] != 0x00) return position;
  }
  return size;
}

}  // namespace

std::uint64_t count_scans(const std::uint8_t* data, std::size_t size, std::uint64_t stop_after,
                          const LookAtScan& look) {
  std::uint64_t scans = 0;
  std::size_t position = 0;
  while (scans < stop_after) {
    position = after_next_marker(data, size, position);
    if (position >= size || data[position - 1] == kEoi) break;
    const std::uint8_t marker = data[position - 1];
    if (has_no_length(marker)) continue;
    if (marker == kSos) {
      ++scans;
      if (look) look(data + position, size - position);
    }
    if (size - position < 2) break;
    position += std::size_t{data[position]} << 8 | data[position + 1];
    if (position >= size) break;
  }
  return scans;
}

}  // namespace afd
