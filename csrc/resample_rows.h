#pragma once

// The two passes of a resize, with the best instructions of the processor.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "processor.h"
#include "resample_axis.h"

namespace afd {

// Rows of RGB samples, `stride` bytes apart.
struct SourceRows {
  const std::uint8_t* first;
  std::size_t stride;
  std::uint32_t column;  // of the picture, where the rows begin
};

// The horizontal pass.
class RowResizer {
 public:
  // Bytes beyond the end of a row that may be read; they count for nothing.
  static constexpr std::size_t kSlack = 64;

  // Throws std::bad_alloc.
  RowResizer(const Axis& axis, Instructions instructions);
  ~RowResizer();

  // Writes `count` rows of the axis's size, one behind the other.
  void resize(const SourceRows& rows, std::uint32_t count, std::uint8_t* out) const;

 private:
  struct Groups;      // the weights for AVX2
  struct WideGroups;  // the weights for AVX-512

  Kernel kernel_;
  std::unique_ptr<const Groups> groups_;
  std::unique_ptr<const WideGroups> wide_groups_;
};

// The vertical pass: writes `bytes` bytes of each row of the axis's size, one behind the other. `first_row` is that of
// the picture where `rows` begin. Throws std::bad_alloc.
void blend_rows(const SourceRows& rows, std::uint32_t first_row, const Axis& axis, std::size_t bytes,
                Instructions instructions, std::uint8_t* out);

}  // namespace afd
