#include "resample.h"

#include <algorithm>
#include <cstring>

#include "pixels.h"
#include "resample_axis.h"
#include "resample_rows.h"

namespace afd {
namespace {

Reach reach_of(const Axis& axis) { return {axis.taps(0).first, axis.taps(axis.size() - 1).end}; }

// See Note [Pillow's arithmetic].
bool is_vertical_first(std::uint32_t width, std::uint32_t height, std::uint32_t size) {
  const std::int64_t lost_rows = std::int64_t{height} - size;
  return lost_rows > 0 && lost_rows > 2 * (std::int64_t{width} - size);
}

// Room for rows, and behind them for what the horizontal pass may read beyond.
ByteBuffer allocate_rows(std::size_t row_bytes, std::size_t count) {
  ByteBuffer rows = allocate_bytes(row_bytes * count + RowResizer::kSlack);
  std::memset(rows.get() + row_bytes * count, 0, RowResizer::kSlack);
  return rows;
}

// The horizontal pass over the rows in `reach` of a view that ends where its memory does: the last ones are resized
// from a copy.
void resize_view(const PictureView& view, Reach reach, const Axis& axis, Instructions instructions, std::uint8_t* out) {
  const RowResizer resizer(axis, instructions);
  const std::size_t row_bytes = std::size_t{3} * view.width;
  const std::uint8_t* first = view.samples + row_bytes * (reach.first - view.y);
  const std::uint32_t below = view.y + view.height - reach.end;
  const std::uint32_t count = reach.end - reach.first;
  const auto rows_of_slack = static_cast<std::uint32_t>((RowResizer::kSlack + row_bytes - 1) / row_bytes);
  const std::uint32_t copied = below >= rows_of_slack ? 0 : std::min(count, rows_of_slack - below);
  const std::uint32_t direct = count - copied;
  resizer.resize({first, row_bytes, view.x}, direct, out);
  if (copied == 0) return;
  const ByteBuffer copy = allocate_rows(row_bytes, copied);
  std::memcpy(copy.get(), first + row_bytes * direct, row_bytes * copied);
  resizer.resize({copy.get(), row_bytes, view.x}, copied, out + std::size_t{3} * axis.size() * direct);
}

void resample_horizontal_first(const PictureView& view, const Axis& across, const Axis& down, Instructions instructions,
                               std::uint8_t* out) {
  const Reach rows = reach_of(down);
  const std::size_t row_bytes = std::size_t{3} * across.size();
  const ByteBuffer resized = allocate_bytes(row_bytes * (rows.end - rows.first));
  resize_view(view, rows, across, instructions, resized.get());
  blend_rows({resized.get(), row_bytes, 0}, rows.first, down, row_bytes, instructions, out);
}

void resample_vertical_first(const PictureView& view, const Axis& across, const Axis& down, Instructions instructions,
                             std::uint8_t* out) {
  const Reach columns = reach_of(across);
  const std::size_t row_bytes = std::size_t{3} * (columns.end - columns.first);
  const std::uint8_t* samples = view.samples + std::size_t{3} * (columns.first - view.x);
  const ByteBuffer blended = allocate_rows(row_bytes, down.size());
  blend_rows({samples, std::size_t{3} * view.width, columns.first}, view.y, down, row_bytes, instructions,
             blended.get());
  RowResizer(across, instructions).resize({blended.get(), row_bytes, columns.first}, down.size(), out);
}

}  // namespace

Reach reach_of(double start, double stop, std::uint32_t length, std::uint32_t size, Filter filter) {
  return reach_of(Axis(start, stop, length, size, filter));
}

void resample(const PictureView& view, std::uint32_t width, std::uint32_t height, const Box& box, std::uint32_t size,
              Filter filter, std::uint8_t* out, Instructions instructions) {
  const Axis across(box.left, box.right, width, size, filter);
  const Axis down(box.top, box.bottom, height, size, filter);
  if (across.is_identity() && down.is_identity()) {
    std::memcpy(out, view.samples, std::size_t{3} * size * size);
  } else if (is_vertical_first(width, height, size)) {
    resample_vertical_first(view, across, down, instructions, out);
  } else {
    resample_horizontal_first(view, across, down, instructions, out);
  }
}

}  // namespace afd
