#pragma once

// Small gray files written bit by bit, with what no encoder writes: the commonest symbols may have the longest codes,
// and several codes stand for one symbol.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <random>
#include <vector>

#include "support.h"

namespace afd {

// A scan's data.
struct Bits {
  void write(std::uint32_t value, unsigned count) {
    for (unsigned i = count; i-- > 0;) {
      byte = static_cast<std::uint8_t>(byte << 1 | (value >> i & 1));
      if (++filled % 8 != 0) continue;
      bytes.push_back(byte);
      if (byte == 0xFF) bytes.push_back(0);
    }
  }

  // The code of length i + 1 for the i-th symbol of a table is i ones and a zero.
  void write_code(std::size_t i) { write((1U << (i + 1)) - 2, static_cast<unsigned>(i + 1)); }

  void fill_up() {
    while (filled % 8 != 0) write(1, 1);
  }

  // Where a restart interval ends before this block.
  bool restart(std::size_t block, std::size_t interval) {
    if (interval == 0 || block == 0 || block % interval != 0) return false;
    fill_up();
    bytes.insert(bytes.end(), {0xFF, static_cast<std::uint8_t>(0xD0 + (block / interval - 1) % 8)});
    return true;
  }

  Bytes bytes;
  std::uint8_t byte = 0;
  std::size_t filled = 0;
};

// The symbols of each table, by the length of their codes.
struct Codes {
  Bytes dc;
  Bytes ac;
};

// Up to and with the frame header: one block high.
inline Bytes beginning_of_file(std::uint8_t frame, std::size_t blocks) {
  Bytes file(7 + DCTSIZE2, 1);  // all steps of the quantization table are 1
  const std::uint8_t start[] = {0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0};
  std::copy(std::begin(start), std::end(start), file.begin());
  const std::size_t width = DCTSIZE * blocks;
  file.insert(file.end(), {0xFF, frame, 0, 11, 8, 0, 8, static_cast<std::uint8_t>(width >> 8),
                           static_cast<std::uint8_t>(width), 1, 1, 0x11, 0});
  return file;
}

inline void append_table(Bytes& file, std::uint8_t number, const Bytes& symbols) {
  file.insert(file.end(), {0xFF, 0xC4, 0, static_cast<std::uint8_t>(19 + symbols.size()), number});
  for (std::size_t length = 1; length <= 16; ++length) file.push_back(length <= symbols.size() ? 1 : 0);
  file.insert(file.end(), symbols.begin(), symbols.end());
}

// `bits` says which bits of the coefficients come, as in the scan's header (T.81, B.2.3).
inline void append_scan(Bytes& file, std::uint8_t first, std::uint8_t last, std::uint8_t bits, const Bytes& data) {
  file.insert(file.end(), {0xFF, 0xDA, 0, 8, 1, 1, 0, first, last, bits});
  file.insert(file.end(), data.begin(), data.end());
}

inline Bytes hand_made(std::size_t blocks, const Codes& codes, const Bytes& data) {
  Bytes file = beginning_of_file(0xC0, blocks);
  append_table(file, 0x00, codes.dc);
  append_table(file, 0x10, codes.ac);
  append_scan(file, 0, 63, 0, data);
  file.insert(file.end(), {0xFF, 0xD9});
  return file;
}

inline std::size_t random_index(const Bytes& symbols, std::minstd_rand& random) { return random() % symbols.size(); }

inline Bytes sizes_of_dc(std::minstd_rand& random) {
  Bytes sizes;
  for (int size = 0; size < 16; ++size) sizes.push_back(static_cast<std::uint8_t>(size));
  std::shuffle(sizes.begin(), sizes.end(), random);
  return sizes;
}

inline Codes unusual_codes(std::minstd_rand& random) {
  Codes codes{sizes_of_dc(random), {0x00, 0x00, 0x50, 0xE0, 0xF0, 0xF0, 0x01, 0x11, 0xE1, 0x0F}};
  while (codes.ac.size() < 16) codes.ac.push_back(static_cast<std::uint8_t>(random() % 256 | 1));
  std::shuffle(codes.ac.begin(), codes.ac.end(), random);
  return codes;
}

inline void write_dc(Bits& bits, const Bytes& sizes, std::minstd_rand& random, int& last) {
  const std::size_t i = random_index(sizes, random);
  const unsigned size = sizes[i];
  const std::uint32_t magnitude = size == 0 ? 0 : 1U << (size - 1) | random() % (1U << (size - 1));
  const bool is_negative = last > 0;
  last += is_negative ? -static_cast<int>(magnitude) : static_cast<int>(magnitude);
  bits.write_code(i);
  bits.write(is_negative ? ~magnitude : magnitude, size);
}

inline bool is_end_of_block(std::uint8_t symbol) { return (symbol & 15) == 0 && symbol != 0xF0; }

inline void write_ac(Bits& bits, const Bytes& symbols, std::minstd_rand& random) {
  const bool has_end = random() % 2 == 0;  // a block that is full has none
  for (int k = 1; k <= 63;) {
    const std::size_t i = random_index(symbols, random);
    const int run = symbols[i] >> 4;
    const bool is_end = is_end_of_block(symbols[i]);
    if (is_end ? !has_end : k + run > 63) continue;
    bits.write_code(i);
    bits.write(static_cast<std::uint32_t>(random()), symbols[i] & 15U);
    k = is_end ? 64 : k + run + 1;
  }
}

inline void write_too_many_ac(Bits& bits, const Bytes& symbols, std::minstd_rand& random) {
  for (int k = 1; k <= 63;) {
    const std::size_t i = random_index(symbols, random);
    const int run = symbols[i] >> 4;
    if (is_end_of_block(symbols[i]) || k + run == 63) continue;
    bits.write_code(i);
    bits.write(static_cast<std::uint32_t>(random()), symbols[i] & 15U);
    k += run + 1;
  }
}

inline constexpr std::size_t kBlocks = 60;

// `too_long` is the block that has more coefficients than a block can have, if any.
inline Bytes random_file(std::minstd_rand& random, std::optional<std::size_t> too_long) {
  const Codes codes = unusual_codes(random);
  Bits bits;
  int last_dc = 0;
  for (std::size_t block = 0; block < kBlocks; ++block) {
    write_dc(bits, codes.dc, random, last_dc);
    block == too_long ? write_too_many_ac(bits, codes.ac, random) : write_ac(bits, codes.ac, random);
  }
  bits.fill_up();
  return hand_made(kBlocks, codes, bits.bytes);
}

// Which coefficients of each block are not zero, by their zigzag index.
using Nonzero = std::vector<std::uint64_t>;

// The AC coefficients of one block after the other, as a progressive scan has them (T.81, G.1.2).
class ProgressiveWriter {
 public:
  ProgressiveWriter(std::minstd_rand& random, std::size_t interval) : random_(random), interval_(interval) {}

  // All bits but the lowest.
  Bytes write_first(const Bytes& symbols, Nonzero& nonzero) {
    for (std::size_t block = 0; block < nonzero.size(); ++block) {
      if (is_in_run(block)) continue;
      const bool has_end = random_() % 2 == 0;
      for (unsigned k = 1; k <= 63;) {
        const std::size_t i = random_index(symbols, random_);
        const unsigned run = symbols[i] >> 4U;
        const unsigned size = symbols[i] & 15U;
        if (is_end_of_block(symbols[i])) {
          if (!has_end || !end_of_band(i, run, nonzero.size() - block, block)) continue;
          break;
        }
        if (k + run > 63) continue;
        bits_.write_code(i);
        bits_.write(static_cast<std::uint32_t>(random_()), size);
        k += run + 1;
        if (size > 0) nonzero[block] |= std::uint64_t{1} << (k - 1);
      }
    }
    bits_.fill_up();
    return bits_.bytes;
  }

  // The lowest bit: corrections of those that are not zero already, and new ones.
  Bytes write_refinement(const Bytes& symbols, const Nonzero& nonzero) {
    for (std::size_t block = 0; block < nonzero.size(); ++block) {
      unsigned k = 1;
      if (!is_in_run(block)) {
        while (k <= 63) {
          const std::size_t i = random_index(symbols, random_);
          const unsigned run = symbols[i] >> 4U;
          if (is_end_of_block(symbols[i])) {
            if (!end_of_band(i, run, nonzero.size() - block, block)) continue;
            break;
          }
          if (zeros_from(k, nonzero[block]) <= run) continue;
          bits_.write_code(i);
          bits_.write(static_cast<std::uint32_t>(random_()), symbols[i] & 15U);
          k = correct(k, run, nonzero[block]);
        }
      }
      correct(k, 64, nonzero[block]);
    }
    bits_.fill_up();
    return bits_.bytes;
  }

 private:
  bool is_in_run(std::size_t block) {
    bits_.restart(block, interval_);
    if (run_ == 0) return false;
    --run_;
    return true;
  }

  // An end of band for this block and some that follow, if there are so many.
  bool end_of_band(std::size_t code, unsigned size, std::size_t blocks_left, std::size_t block) {
    const std::size_t more = (std::size_t{1} << size) - 1 + (random_() & ((1U << size) - 1));
    const std::size_t room = interval_ == 0 ? blocks_left : std::min(blocks_left, interval_ - block % interval_);
    if (more >= room) return false;
    bits_.write_code(code);
    bits_.write(static_cast<std::uint32_t>(more - ((std::size_t{1} << size) - 1)), size);
    run_ = more;
    return true;
  }

  static unsigned zeros_from(unsigned k, std::uint64_t nonzero) {
    unsigned zeros = 0;
    for (; k <= 63; ++k) zeros += (nonzero >> k & 1) == 0 ? 1 : 0;
    return zeros;
  }

  // Passes `run` zeros and the one behind them; returns the position after that.
  unsigned correct(unsigned k, unsigned run, std::uint64_t nonzero) {
    for (; k <= 63; ++k) {
      if ((nonzero >> k & 1) != 0) {
        bits_.write(static_cast<std::uint32_t>(random_()), 1);
      } else if (run-- == 0) {
        return k + 1;
      }
    }
    return k;
  }

  std::minstd_rand& random_;
  std::size_t interval_;
  Bits bits_;
  std::size_t run_ = 0;  // blocks to come that have no code of their own
};

// Three scans: DC, AC without their lowest bit, and that bit.
inline Bytes random_progressive_file(std::minstd_rand& random, std::size_t interval) {
  Bytes file = beginning_of_file(0xC2, kBlocks);
  file.insert(file.end(), {0xFF, 0xDD, 0, 4, 0, static_cast<std::uint8_t>(interval)});
  const Bytes sizes = sizes_of_dc(random);
  append_table(file, 0x00, sizes);
  Bits dc;
  int last_dc = 0;
  for (std::size_t block = 0; block < kBlocks; ++block) {
    if (dc.restart(block, interval)) last_dc = 0;
    write_dc(dc, sizes, random, last_dc);
  }
  dc.fill_up();
  append_scan(file, 0, 0, 0, dc.bytes);

  Bytes symbols{0x00, 0x00, 0x10, 0x20, 0xF0, 0x01, 0x01, 0x11, 0xE1, 0x0E, 0x02, 0x01};
  if (random() % 2 == 0) symbols = {0x00, 0x01, 0x02, 0x03, 0x04, 0x11};  // blocks with hardly a zero
  std::shuffle(symbols.begin(), symbols.end(), random);
  append_table(file, 0x10, symbols);
  Nonzero nonzero(kBlocks);
  append_scan(file, 1, 63, 0x01, ProgressiveWriter(random, interval).write_first(symbols, nonzero));

  symbols = {0x00, 0x10, 0x20, 0xF0, 0x01, 0x01, 0x11, 0x21, 0x51, 0xE1, 0xF1, 0x31, 0x41, 0x61, 0x71, 0x81};
  std::shuffle(symbols.begin(), symbols.end(), random);
  append_table(file, 0x10, symbols);
  append_scan(file, 1, 63, 0x10, ProgressiveWriter(random, interval).write_refinement(symbols, nonzero));
  file.insert(file.end(), {0xFF, 0xD9});
  return file;
}

}  // namespace afd
