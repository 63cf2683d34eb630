#include "exif.h"

#include <cstring>

namespace afd {
namespace {

constexpr std::uint32_t kOrientationTag = 0x0112;
constexpr std::uint32_t kShortType = 3;
constexpr std::uint32_t kLongType = 4;
constexpr std::size_t kEntryBytes = 12;

// A TIFF structure in memory; every read is bounds-checked, and a read outside gives 0, which is no valid value of
// anything that is looked for here.
class Tiff {
 public:
  Tiff(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {
    big_endian_ = size >= 2 && data[0] == 'M';
  }

  bool valid() const {
    if (size_ < 8 || data_[0] != data_[1]) return false;
    return (data_[0] == 'I' || data_[0] == 'M') && read16(2) == 42;
  }

  std::size_t size() const { return size_; }

  std::uint32_t read16(std::size_t offset) const {
    if (offset > size_ || size_ - offset < 2) return 0;
    const std::uint32_t first = data_[offset];
    const std::uint32_t second = data_[offset + 1];
    return big_endian_ ? first << 8 | second : second << 8 | first;
  }

  std::uint32_t read32(std::size_t offset) const {
    const std::uint32_t first = read16(offset);
    const std::uint32_t second = read16(offset + 2);
    return big_endian_ ? first << 16 | second : second << 16 | first;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
  bool big_endian_;
};

}  // namespace

int exif_orientation(const std::uint8_t* payload, std::size_t size) {
  static constexpr char kIdentifier[] = "Exif\0";  // with its implied terminator: the six bytes of the identifier
  if (size < sizeof kIdentifier || std::memcmp(payload, kIdentifier, sizeof kIdentifier) != 0) return 0;
  const Tiff tiff(payload + sizeof kIdentifier, size - sizeof kIdentifier);
  if (!tiff.valid()) return 0;

  const std::size_t directory = tiff.read32(4);
  const std::uint32_t entries = tiff.read16(directory);
  for (std::uint32_t i = 0; i < entries; ++i) {
    const std::size_t entry = directory + 2 + i * kEntryBytes;
    if (entry >= tiff.size()) return 0;  // more are claimed than there are, perhaps in millions of segments
    if (tiff.read16(entry) != kOrientationTag) continue;
    const std::uint32_t type = tiff.read16(entry + 2);
    const std::uint32_t count = tiff.read32(entry + 4);
    if (count == 0 || (type != kShortType && type != kLongType)) return 0;
    const std::uint32_t value = type == kShortType ? tiff.read16(entry + 8) : tiff.read32(entry + 8);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 0;
  }
  return 0;
}

}  // namespace afd
