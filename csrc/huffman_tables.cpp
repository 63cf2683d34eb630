#include "huffman_tables.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

namespace afd {
namespace {

constexpr int kMaxCodes = 256;

// One symbol of a table, as the bits of an index begin with it. A length of 0: no code of up to kLookupBits bits.
struct Code {
  std::uint8_t length;
  std::uint8_t symbol;
};

struct AcSymbol {
  unsigned advance;
  unsigned value_bits;
};

// Canonical codes (T.81, C.2). No code consists of ones only.
bool make_codes(const JHUFF_TBL& source, CodeBook& book) {
  std::uint32_t code = 0;
  int count = 0;
  for (int length = 1; length <= 16; ++length) {
    const int codes = source.bits[length];
    book.first[length] = count - static_cast<std::int32_t>(code);
    code += static_cast<std::uint32_t>(codes);
    count += codes;
    if (count > kMaxCodes || (codes > 0 && code >= 1u << length)) return false;
    book.end[length] = code << (16 - length);
    code <<= 1;
  }
  std::copy_n(source.huffval, kMaxCodes, book.symbols);
  return true;
}

void fill_lookup(const JHUFF_TBL& source, Code (&lookup)[kLookupSize]) {
  Code* next = lookup;
  const UINT8* symbol = source.huffval;
  for (int length = 1; length <= kLookupBits; ++length) {
    for (int i = 0; i < source.bits[length]; ++i) {
      const Code code{static_cast<std::uint8_t>(length), *symbol++};
      next = std::fill_n(next, kLookupSize >> length, code);
    }
  }
  std::fill(next, lookup + kLookupSize, Code{0, 0});
}

// T.81, F.1.2.2: runs of zeros and categories. Whatever has no value bits and is no run of 16 ends the block.
AcSymbol ac_symbol(std::uint8_t symbol) {
  const unsigned run = symbol >> 4;
  const unsigned value_bits = symbol & 15;
  if (value_bits == 0 && run != 15) return {AcTable::kEndOfBlock, 0};
  return {run + 1, value_bits};
}

// The value in `count` bits (T.81, F.12): a leading 0 means a negative one.
std::uint64_t value_field(std::size_t bits, unsigned count) {
  const int value = static_cast<int>(bits & ((std::size_t{1} << count) - 1));
  const bool negative = count > 0 && (value >> (count - 1)) == 0;
  return static_cast<std::uint16_t>(negative ? value - (1 << count) + 1 : value);
}

// A table may have several codes for symbol 0; one of them will do.
unsigned end_of_block_length(const Code (&lookup)[kLookupSize]) {
  const Code* code =
      std::find_if(std::begin(lookup), std::end(lookup), [](const Code& c) { return c.length > 0 && c.symbol == 0; });
  return code == std::end(lookup) ? 0 : code->length;
}

// See Note [Two symbols].
std::uint64_t ac_entry(const Code (&lookup)[kLookupSize], std::size_t index, unsigned end_length) {
  const Code first = lookup[index];
  if (first.length == 0) return 0;
  const AcSymbol symbol = ac_symbol(first.symbol);
  const unsigned used = first.length + symbol.value_bits;
  const std::uint64_t advance = std::uint64_t{symbol.advance} << 8;
  if (used > kLookupBits) {
    return advance | std::uint64_t{first.length} << 24 | std::uint64_t{symbol.value_bits} << 32;
  }
  const std::uint64_t value = value_field(index >> (kLookupBits - used), symbol.value_bits);
  const std::uint64_t alone = advance | std::uint64_t{used} << 24 | value << 48;

  const Code second = lookup[index << used & (kLookupSize - 1)];
  const AcSymbol next = ac_symbol(second.symbol);
  const unsigned both = used + second.length + next.value_bits;
  if (symbol.advance == AcTable::kEndOfBlock || second.length == 0 || both > kLookupBits) {
    return alone | used | value << 32;
  }
  const std::uint64_t next_value = value_field(index >> (kLookupBits - both), next.value_bits);
  const std::uint64_t pair = alone | std::uint64_t{next.advance} << 16 | next_value << 32;

  const Code third = lookup[index << both & (kLookupSize - 1)];
  const unsigned all = both + third.length;
  const bool is_end = third.length > 0 && third.length == end_length && third.symbol == 0;
  if (next.advance == AcTable::kEndOfBlock || !is_end || all > kLookupBits) return pair | both;
  return pair | all | AcTable::kEndOfBlock;
}

// See Note [Skipping].
std::uint16_t skip_entry(const Code (&lookup)[kLookupSize], std::size_t index) {
  unsigned used = 0;
  unsigned advance = 0;
  for (;;) {
    const Code code = lookup[index << used & (kLookupSize - 1)];
    const AcSymbol symbol = ac_symbol(code.symbol);
    const unsigned length = used + code.length + symbol.value_bits;
    const auto so_far = static_cast<std::uint16_t>(used | advance << 6);
    if (code.length == 0 || length > kLookupBits) return so_far;
    if (symbol.advance == AcTable::kEndOfBlock) {
      return static_cast<std::uint16_t>(length | advance << 6 | AcTable::kSkipsToEnd);
    }
    if (advance + symbol.advance >= DCTSIZE2) return so_far;
    used = length;
    advance += symbol.advance;
  }
}

bool same(const JHUFF_TBL& left, const JHUFF_TBL& right) {
  return std::memcmp(left.bits, right.bits, sizeof left.bits) == 0 &&
         std::memcmp(left.huffval, right.huffval, sizeof left.huffval) == 0;
}

}  // namespace

bool make_table(const JHUFF_TBL& source, SymbolTable& table) {
  if (!make_codes(source, table.codes)) return false;
  Code lookup[kLookupSize];
  fill_lookup(source, lookup);
  for (std::size_t i = 0; i < kLookupSize; ++i) {
    table.entries[i] = static_cast<std::uint16_t>(lookup[i].symbol << 8 | lookup[i].length);
  }
  const UINT8* end = source.huffval + std::accumulate(source.bits + 1, source.bits + 17, 0);
  table.largest_symbol = end == source.huffval ? 0 : *std::max_element(source.huffval, end);
  return true;
}

bool make_table(const JHUFF_TBL& source, AcTable& table) {
  if (!make_codes(source, table.codes)) return false;
  Code lookup[kLookupSize];
  fill_lookup(source, lookup);
  table.end_of_block_length = end_of_block_length(lookup);
  for (std::size_t i = 0; i < kLookupSize; ++i) {
    table.entries[i] = ac_entry(lookup, i, table.end_of_block_length);
    table.skips[i] = skip_entry(lookup, i);
  }
  return true;
}

// The one that was used least recently makes room, so that a scan never loses a table to another one of its own.
template <typename Table>
const Table* TableCache::Entries<Table>::find(const JHUFF_TBL& source) {
  ++uses_;
  Entry* oldest = entries_;
  for (Entry& entry : entries_) {
    if (entry.last_use != 0 && same(entry.source, source)) {
      entry.last_use = uses_;
      return &entry.table;
    }
    if (entry.last_use < oldest->last_use) oldest = &entry;
  }
  oldest->last_use = 0;
  if (!make_table(source, oldest->table)) return nullptr;
  oldest->source = source;
  oldest->last_use = uses_;
  return &oldest->table;
}

template class TableCache::Entries<SymbolTable>;
template class TableCache::Entries<AcTable>;

}  // namespace afd
