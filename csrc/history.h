#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "jpeg_reader.h"
#include "processor.h"

namespace afd {

// Everything here is in libjpeg's quality factors (QF): the standard tables of ITU-T T.81, K.1 and K.2, scaled by
// 200 - 2 QF per cent from 50 on and by 5000 / QF per cent below.

// The table that libjpeg makes of a quality from 1 to 100, natural order, baseline (1 to 255).
QuantTable scaled_table(int quality, bool chroma);

// The quality, 1 to 100, whose standard luminance table is nearest to `table` in the logarithm of the steps, so that
// custom tables are judged by how coarse they are. Where several share a table, the highest of them.
int estimate_quality(const QuantTable& table);

// Luminance blocks, dequantized, natural order: `count` of them, `stride` values apart.
struct LumaBlocks {
  const std::int16_t* first;
  std::size_t count;
  std::size_t stride;
};

// The quality of an earlier and coarser compression on the same block grid; nothing where none shows. Throws
// std::bad_alloc.
std::optional<int> earlier_quality(const LumaBlocks& blocks, const QuantTable& table,
                                   Instructions instructions = Instructions::kFastest);

struct CompressionHistory {
  int quality;   // of the heaviest compression found, 1 to 100
  bool resaved;  // whether it was heavier than the picture's own table
};

CompressionHistory compression_history(const LumaBlocks& blocks, const QuantTable& table,
                                       Instructions instructions = Instructions::kFastest);

}  // namespace afd
