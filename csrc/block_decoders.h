#pragma once

// How each kind of block is decoded. Everything is inlined into functions that entropy_decoder.cpp compiles once for
// every processor and once for those with AVX2 and BMI2.

#include <cstddef>
#include <cstdint>

#include "bit_reader.h"
#include "huffman_tables.h"
#include "libjpeg.h"
#include "natural_order.h"
#include "processor.h"

namespace afd {

// A block takes up to 64 codes of 31 bits, and the bit buffer reads up to 16 bytes ahead: so far a block can read past
// the end before anybody looks.
inline constexpr std::size_t kPadding = 64 * 31 / 8 + 24;

struct LongCode {
  int symbol;  // or CodeBook::kNoSymbol
  unsigned length;
};

// A code that a table does not hold. See Note [Registers].
inline __attribute__((noinline)) LongCode find_long_code(const CodeBook& codes, std::uint64_t bits) {
  LongCode code{};
  code.symbol = codes.find(static_cast<std::uint32_t>(bits >> 48), code.length);
  return code;
}

// memset would become `rep stos`, which takes longer than the block.
AFD_ALWAYS_INLINE void clear_block(JCOEF* block) {
  using Vector = std::uint64_t __attribute__((vector_size(32), aligned(2), may_alias));
  auto* vectors = reinterpret_cast<Vector*>(block);
  for (int i = 0; i < 4; ++i) vectors[i] = Vector{};
  static_assert(4 * sizeof(Vector) == sizeof(JBLOCK));
}

// One of the blocks that make up an MCU.
struct McuBlock {
  const SymbolTable* symbol_table;  // of DC coefficients, and of AC coefficients in progressive scans
  const AcTable* ac_table;
  int component;            // index into Scan::last_dc
  JCOEF* first;             // of the scan
  JCOEF* next;              // of the current MCU
  std::ptrdiff_t step;      // to the next MCU
  std::ptrdiff_t row_step;  // to the next row of MCUs
};

struct Scan {
  void start_row() {
    for (int i = 0; i < block_count; ++i) blocks[i].next = blocks[i].first + blocks[i].row_step * row;
  }

  McuBlock blocks[D_MAX_BLOCKS_IN_MCU];
  int block_count = 0;
  std::uint32_t mcus_per_row;
  std::uint32_t mcu_rows;
  std::uint32_t row = 0;
  std::uint32_t column = 0;
  int last_dc[MAX_COMPS_IN_SCAN] = {};

  // Of progressive scans (T.81, G.1.1).
  int start;
  int end;
  int shift;
  unsigned end_of_band_run = 0;  // blocks to come that have no code of their own
  // Per block of the arena, a bit for each coefficient in zigzag order that an earlier scan has made nonzero.
  std::uint64_t* nonzero = nullptr;
  const JCOEF* arena = nullptr;
};

// Drops a code and returns its symbol or CodeBook::kNoSymbol.
AFD_ALWAYS_INLINE int take_symbol(BitReader& reader, const SymbolTable& table) {
  const unsigned entry = table.entries[reader.bits >> (64 - kLookupBits)];
  reader.drop(entry & 63);
  if (__builtin_expect((entry & 63) != 0, 1)) return static_cast<int>(entry >> 8);
  const LongCode code = find_long_code(table.codes, reader.bits);
  reader.drop(code.length);
  return code.symbol;
}

// The table has no symbol above 15.
AFD_ALWAYS_INLINE bool decode_dc(BitReader& reader, const SymbolTable& table, int& last_dc) {
  const int size = take_symbol(reader, table);
  if (size < 0) return false;
  last_dc += reader.take_value(static_cast<unsigned>(size));
  return last_dc == static_cast<JCOEF>(last_dc);
}

// Decodes one AC symbol that its table does not hold with its value bits; needs 31 bits. Returns the zigzag index,
// which is past the end by more than any advance if there is no such code.
AFD_ALWAYS_INLINE std::ptrdiff_t decode_long_ac(BitReader& reader, const AcTable& table, std::uint64_t entry,
                                                std::ptrdiff_t index, JCOEF* block) {
  unsigned size = (entry >> 32) & 15;
  int advance = (entry >> 8) & 0xFF;
  if (__builtin_expect(entry == 0, 0)) {
    const LongCode code = find_long_code(table.codes, reader.bits);
    if (code.symbol == CodeBook::kNoSymbol) return 32;
    reader.drop(code.length);
    size = static_cast<unsigned>(code.symbol & 15);
    advance = (code.symbol >> 4) + 1;
    if (size == 0 && advance != 16) return index + AcTable::kEndOfBlock;
  }
  reader.drop((entry >> 24) & 63);
  const int value = reader.take_value(size);
  index += advance;
  block[kNaturalOrder.end()[index]] = static_cast<JCOEF>(value);
  return index;
}

// Whether a block that ended at this index did so as it should: by an end of block, or at its last coefficient.
AFD_ALWAYS_INLINE bool ends_well(std::ptrdiff_t index) {
  return index == 0 || index >= AcTable::kEndOfBlock + NaturalOrder::kFirst;
}

// See Note [Two symbols]. The zigzag index runs from -63, for the DC coefficient, to 0. Finds the reader refilled and
// leaves it so: a DC coefficient takes up to 31 of 56 bits, and two look-ups 22. Whatever else takes more bits refills
// it first.
AFD_ALWAYS_INLINE bool decode_sequential(BitReader& reader, const SymbolTable& symbol_table, const AcTable& ac_table,
                                         int& last_dc, JCOEF* block) {
  static_assert(31 + 2 * kLookupBits <= 56);
  const std::uint8_t* natural = kNaturalOrder.end();
  clear_block(block);
  if (!decode_dc(reader, symbol_table, last_dc)) return false;
  std::ptrdiff_t index = NaturalOrder::kFirst;
  std::ptrdiff_t first = index;
  std::uint64_t entry;
  do {
    for (int twice = 0; twice < 2; ++twice) {
      entry = ac_table.entries[reader.bits >> (64 - kLookupBits)];
      if (__builtin_expect((entry & 63) == 0, 0)) {
        reader.refill();
        index = first = decode_long_ac(reader, ac_table, entry, index, block);
        break;
      }
      reader.drop(entry & 63);
      first = index + static_cast<std::ptrdiff_t>(entry >> 8 & 0xFF);
      index = first + static_cast<std::ptrdiff_t>(entry >> 16 & 0xFF);
      block[natural[first]] = static_cast<JCOEF>(entry >> 48);
      block[natural[index]] = static_cast<JCOEF>(entry >> 32);
      index += static_cast<std::ptrdiff_t>(entry & AcTable::kEndOfBlock);
      if (index >= 0) break;
    }
    reader.refill();
  } while (index < 0);
  block[0] = static_cast<JCOEF>(last_dc);
  // Whatever the entry says of symbols behind the last coefficient is the next block's.
  if (__builtin_expect(first < 0, 1)) {
    if (__builtin_expect(index < AcTable::kEndOfBlock, 1)) return ends_well(index);
    reader = rewound(reader, ac_table.end_of_block_length);
    return index == AcTable::kEndOfBlock;
  }
  if (first == 0 && index > 0) reader = rewound(reader, (entry & 63) - (entry >> 24 & 63));
  return ends_well(first);
}

// As `decode_sequential`, for a block whose values nobody wants: those that it leaves mean nothing. See Note
// [Skipping].
AFD_ALWAYS_INLINE bool skip_sequential(BitReader& reader, const SymbolTable& symbol_table, const AcTable& ac_table,
                                       int& last_dc, JCOEF* block) {
  const BitReader start = reader;
  const int dc = last_dc;
  if (!decode_dc(reader, symbol_table, last_dc)) return false;
  std::ptrdiff_t index = NaturalOrder::kFirst;
  unsigned entry;
  do {
    for (int twice = 0; twice < 2; ++twice) {
      const std::size_t next = reader.bits >> (64 - kLookupBits);
      entry = ac_table.skips[next];
      if (__builtin_expect((entry & 63) == 0, 0)) {
        reader.refill();
        index = decode_long_ac(reader, ac_table, ac_table.entries[next], index, block);
        break;
      }
      reader.drop(entry & 63);
      index += static_cast<std::ptrdiff_t>(entry >> 6 & 63);
      if (index >= 0 || (entry & AcTable::kSkipsToEnd) != 0) break;
    }
    reader.refill();
  } while (index < 0 && (entry & AcTable::kSkipsToEnd) == 0);
  if (__builtin_expect((entry & 63) == 0, 0)) return ends_well(index);
  // At its last coefficient a block ends without a symbol for it. Whatever the entry holds behind that is the next
  // block's, or a fault.
  const bool ends_here = (entry & AcTable::kSkipsToEnd) != 0 ? index < 0 : index == 0;
  if (__builtin_expect(ends_here, 1)) return true;
  reader = start;
  last_dc = dc;
  return decode_sequential(reader, symbol_table, ac_table, last_dc, block);
}

AFD_ALWAYS_INLINE bool decode_dc_first(BitReader& reader, const SymbolTable& table, int& last_dc, int shift,
                                       JCOEF* block) {
  reader.refill();
  if (!decode_dc(reader, table, last_dc)) return false;
  const int value = last_dc * (1 << shift);
  block[0] = static_cast<JCOEF>(value);
  return value == block[0];
}

AFD_ALWAYS_INLINE bool refine_dc(BitReader& reader, int shift, JCOEF* block) {
  reader.refill();
  block[0] = static_cast<JCOEF>(block[0] | static_cast<int>(reader.take_bits(1) << shift));
  return true;
}

// The first scan of a band of AC coefficients (T.81, G.1.2.2).
AFD_ALWAYS_INLINE bool decode_ac_first(BitReader& reader, const SymbolTable& table, Scan& scan, JCOEF* block) {
  if (scan.end_of_band_run > 0) {
    --scan.end_of_band_run;
    return true;
  }
  const std::uint8_t* natural = kNaturalOrder.positions;
  std::uint64_t nonzero = 0;
  for (int k = scan.start; k <= scan.end; ++k) {
    reader.refill();
    const int symbol = take_symbol(reader, table);
    if (symbol < 0) return false;
    const auto run = static_cast<unsigned>(symbol >> 4);
    const auto size = static_cast<unsigned>(symbol & 15);
    if (size == 0 && run != 15) {
      scan.end_of_band_run = (1u << run) - 1 + reader.take_bits(run);
      break;
    }
    k += static_cast<int>(run);
    if (k > scan.end || static_cast<int>(size) + scan.shift > 15) return false;
    block[natural[k]] = static_cast<JCOEF>(reader.take_value(size) * (1 << scan.shift));
    nonzero |= std::uint64_t{size != 0} << k;
  }
  scan.nonzero[(block - scan.arena) / DCTSIZE2] |= nonzero;
  return true;
}

// The lowest bit of the set but `index` (0 to 15). Most indices are small, and no branch could tell which.
AFD_ALWAYS_INLINE std::uint64_t find_bit(std::uint64_t set, unsigned index) {
  for (unsigned i = 0; i < 3; ++i) set &= set - std::uint64_t{index > i};
  for (unsigned i = 3; i < index; ++i) set &= set - 1;
  return set & -set;
}

// Adds one more bit, from left-aligned ones, to each of the coefficients in the set.
AFD_ALWAYS_INLINE void correct(std::uint64_t set, std::uint64_t corrections, int shift, JCOEF* block) {
  for (; set != 0; set &= set - 1, corrections <<= 1) {
    JCOEF& coefficient = block[kNaturalOrder.positions[__builtin_ctzll(set)]];
    const int sign = (coefficient >> 15) | 1;
    coefficient = static_cast<JCOEF>(coefficient + sign * static_cast<int>(corrections >> 63 << shift));
  }
}

// Note [AC refinement]: a later scan (T.81, G.1.2.3) has a correction bit for each coefficient that is nonzero already,
// and runs that count those that are still zero. libjpeg looks at each coefficient to know; most of a progressive
// file's time goes there. Here a bit mask per block knows, so that blocks without anything to correct are not touched,
// and the correction bits are gathered for one pass over the block.
AFD_ALWAYS_INLINE bool refine_ac(BitReader& reader, const SymbolTable& table, Scan& scan, JCOEF* block) {
  std::uint64_t& nonzero = scan.nonzero[(block - scan.arena) / DCTSIZE2];
  const std::uint64_t band = ~std::uint64_t{0} >> (63 - scan.end) & ~std::uint64_t{0} << scan.start;
  const std::uint64_t old = nonzero & band;
  std::uint64_t zeros = band & ~old;
  std::uint64_t uncorrected = old;
  std::uint64_t corrections = 0;
  if (scan.end_of_band_run == 0) {
    while ((zeros | uncorrected) != 0) {
      reader.refill();
      const int symbol = take_symbol(reader, table);
      if (symbol < 0 || (symbol & 15) > 1) return false;
      const auto run = static_cast<unsigned>(symbol >> 4);
      const unsigned is_new = symbol & 15;
      if (is_new == 0 && run != 15) {
        scan.end_of_band_run = (1u << run) + reader.take_bits(run);
        break;
      }
      const int value = (2 * static_cast<int>(reader.take_bits(is_new)) - 1) * (1 << scan.shift);
      const std::uint64_t position = find_bit(zeros, run);
      if (position == 0) return false;
      const std::uint64_t passed = uncorrected & (position - 1);
      const auto count = static_cast<unsigned>(__builtin_popcountll(passed));
      corrections = corrections << count | take_many_bits(reader, count);
      uncorrected ^= passed;
      zeros &= ~(position | (position - 1));
      nonzero |= is_new != 0 ? position : 0;
      block[kNaturalOrder.positions[__builtin_ctzll(position)]] = static_cast<JCOEF>(is_new != 0 ? value : 0);
    }
  }
  if (scan.end_of_band_run > 0) {
    const auto count = static_cast<unsigned>(__builtin_popcountll(uncorrected));
    reader.refill();
    corrections = corrections << count | take_many_bits(reader, count);
    --scan.end_of_band_run;
  }
  if (corrections != 0) correct(old, corrections << (64 - __builtin_popcountll(old)), scan.shift, block);
  return true;
}

enum class Coding { kSequential, kSkipped, kDcFirst, kDcRefinement, kAcFirst, kAcRefinement };

template <Coding kCoding>
AFD_ALWAYS_INLINE bool decode_block(BitReader& reader, Scan& scan, const McuBlock& block) {
  int& last_dc = scan.last_dc[block.component];
  if constexpr (kCoding == Coding::kSequential) {
    return decode_sequential(reader, *block.symbol_table, *block.ac_table, last_dc, block.next);
  } else if constexpr (kCoding == Coding::kSkipped) {
    return skip_sequential(reader, *block.symbol_table, *block.ac_table, last_dc, block.next);
  } else if constexpr (kCoding == Coding::kDcFirst) {
    return decode_dc_first(reader, *block.symbol_table, last_dc, scan.shift, block.next);
  } else if constexpr (kCoding == Coding::kDcRefinement) {
    return refine_dc(reader, scan.shift, block.next);
  } else if constexpr (kCoding == Coding::kAcFirst) {
    return decode_ac_first(reader, *block.symbol_table, scan, block.next);
  } else {
    return refine_ac(reader, *block.symbol_table, scan, block.next);
  }
}

}  // namespace afd
