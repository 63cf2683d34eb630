#pragma once

#include <cstddef>
#include <cstdint>

#include "libjpeg.h"

namespace afd {

inline constexpr int kLookupBits = 11;
inline constexpr std::size_t kLookupSize = std::size_t{1} << kLookupBits;

// Codes of any length, for those that a look-up table does not hold.
struct CodeBook {
  static constexpr int kNoSymbol = -1;

  // The symbol of the code that the 16 bits begin with, and its length; kNoSymbol if there is none.
  int find(std::uint32_t bits, unsigned& length) const {
    for (length = 1; length <= 16; ++length) {
      if (bits < end[length]) return symbols[(first[length] + (bits >> (16 - length))) & 0xFF];
    }
    return kNoSymbol;
  }

  std::uint32_t end[17];   // one past the last code of the length and of shorter ones, left-aligned in 16 bits
  std::int32_t first[17];  // index of the length's first symbol minus its first code
  std::uint8_t symbols[256];
};

// By the next kLookupBits bits: the length of the code (0 if it is longer) and, eight bits up, its symbol.
struct SymbolTable {
  std::uint16_t entries[kLookupSize];
  CodeBook codes;
  int largest_symbol;
};

// Note [Two symbols]: most codes of AC coefficients are so short that kLookupBits bits hold two of them with their
// value bits, and often the end of the block behind. An entry is what those bits say, so that one look-up decodes all:
//
//   bits  0-5   length of the whole; 0 if not even one symbol fits with its value bits
//   bit   7     as a number kEndOfBlock: whether two coefficients end the block
//   bits  8-15  advance of the zigzag index to the first coefficient, kEndOfBlock for an end of block
//   bits 16-23  advance from the first to the second, likewise; 0 if there is only one
//   bits 24-31  length of the first symbol with its value bits
//   bits 32-47  value of the second coefficient; of the first if there is only one
//   bits 48-63  value of the first coefficient
//
// A run of 16 zeros is a coefficient of value zero. Where only the code fits, its advance is in its place, the length
// of the code in bits 24-31 and the number of value bits in bits 32-47. An entry of 0 is a code that does not fit.
//
// Note [Skipping]: where nobody wants a block's values, all symbols that kLookupBits bits hold are passed over at once:
//
//   bits  0-5   length of the whole; 0 if not even one symbol fits with its value bits
//   bits  6-11  advance of the zigzag index, an end of block aside
//   bit  15     whether the last symbol is an end of block
struct AcTable {
  static constexpr int kEndOfBlock = 128;
  static constexpr unsigned kSkipsToEnd = 1U << 15;

  std::uint64_t entries[kLookupSize];
  std::uint16_t skips[kLookupSize];
  CodeBook codes;
  unsigned end_of_block_length;  // of the code for symbol 0 that may stand behind two others; 0 if there is none
};

// Return whether the table is one that the standard allows.
bool make_table(const JHUFF_TBL& source, SymbolTable& table);
bool make_table(const JHUFF_TBL& source, AcTable& table);

// The tables of the last files. Most files have the standard tables: a picture should not pay for making them again.
class TableCache {
 public:
  // Null if the table is none that the standard allows. A result is valid for at least the next seven calls.
  const SymbolTable* symbol_table(const JHUFF_TBL& source) { return symbols_.find(source); }
  const AcTable* ac_table(const JHUFF_TBL& source) { return ac_.find(source); }

 private:
  template <typename Table>
  class Entries {
   public:
    const Table* find(const JHUFF_TBL& source);

   private:
    struct Entry {
      std::uint64_t last_use = 0;  // 0: empty
      JHUFF_TBL source;
      Table table;
    };

    // One scan needs up to four tables of either kind.
    static constexpr std::size_t kCount = 8;

    Entry entries_[kCount];
    std::uint64_t uses_ = 0;
  };

  Entries<SymbolTable> symbols_;
  Entries<AcTable> ac_;
};

}  // namespace afd
