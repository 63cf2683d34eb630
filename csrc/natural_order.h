#pragma once

#include <cstdint>

#include "huffman_tables.h"
#include "libjpeg.h"

namespace afd {

// Natural order by zigzag index minus 63, for negative indices and as far as AcTable's advances go beyond. The
// coefficients beyond go where the DC coefficient is stored last.
struct NaturalOrder {
  static constexpr int kFirst = -63;
  static constexpr int kLast = AcTable::kEndOfBlock + 32;

  constexpr NaturalOrder() {
    int row = 0;
    int column = 0;
    for (int i = 0; i < DCTSIZE2; ++i) {
      positions[i] = static_cast<std::uint8_t>(8 * row + column);
      const bool up = (row + column) % 2 == 0;
      int& forward = up ? column : row;
      int& backward = up ? row : column;
      if (forward == 7) {
        ++backward;
      } else {
        ++forward;
        if (backward > 0) --backward;
      }
    }
  }

  const std::uint8_t* end() const { return positions - kFirst; }

  std::uint8_t positions[kLast - kFirst + 1] = {};
};

inline constexpr NaturalOrder kNaturalOrder;

}  // namespace afd
