#pragma once

// How entropy-coded data is read, bit by bit.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "processor.h"

namespace afd {

// The next bits, left-aligned; `count` of them are valid, and those behind are zero or the right ones. Reads up to 8
// bytes past `next`.
struct BitReader {
  AFD_ALWAYS_INLINE explicit BitReader(const std::uint8_t* data) : start(data), next(data) {}

  // At least 56 valid bits, without a branch.
  AFD_ALWAYS_INLINE void refill() {
    bits |= load(next) >> count;
    next += (63 - count) >> 3;
    count |= 56;
  }

  AFD_ALWAYS_INLINE void drop(std::uint64_t length) {
    bits <<= length;
    count -= length;
  }

  // Drops the value of `length` bits (0 to 15) and returns it (T.81, F.12).
  AFD_ALWAYS_INLINE int take_value(unsigned length) {
    const auto value = static_cast<int>((bits >> 1) >> (63 - length));
    const int if_negative = ~static_cast<int>(static_cast<std::int64_t>(bits) >> 63);
    drop(length);
    return value - (if_negative & ((1 << length) - 1));
  }

  // Drops up to 15 bits and returns them.
  AFD_ALWAYS_INLINE unsigned take_bits(unsigned length) {
    const auto value = static_cast<unsigned>((bits >> 1) >> (63 - length));
    drop(length);
    return value;
  }

  AFD_ALWAYS_INLINE std::ptrdiff_t position() const { return 8 * (next - start) - static_cast<std::ptrdiff_t>(count); }

  static AFD_ALWAYS_INLINE std::uint64_t load(const std::uint8_t* data) {
    std::uint64_t value;
    std::memcpy(&value, data, sizeof value);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
  }

  const std::uint8_t* start;
  const std::uint8_t* next;
  std::uint64_t bits = 0;
  std::uint64_t count = 0;
};

// Note [Registers]: the functions that are not inlined take and return values, because a reader whose address is known
// elsewhere would live in memory.

// The reader before it dropped its last `length` bits, refilled.
inline __attribute__((noinline)) BitReader rewound(BitReader reader, std::uint64_t length) {
  const std::ptrdiff_t target = reader.position() - static_cast<std::ptrdiff_t>(length);
  reader.next = reader.start + target / 8;
  reader.bits = BitReader::load(reader.next) << (target % 8);
  reader.next += 7;
  reader.count = static_cast<std::uint64_t>(56 - target % 8);
  reader.refill();
  return reader;
}

// Drops up to 63 bits and returns them; at least 32 must be valid.
AFD_ALWAYS_INLINE std::uint64_t take_many_bits(BitReader& reader, unsigned count) {
  std::uint64_t value = 0;
  if (__builtin_expect(count > 32, 0)) {
    value = reader.bits >> 32;
    reader.drop(32);
    reader.refill();
    count -= 32;
  }
  value = value << count | (reader.bits >> 1) >> (63 - count);
  reader.drop(count);
  return value;
}

}  // namespace afd
