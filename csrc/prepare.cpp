#include "prepare.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "orientation.h"

namespace afd {
namespace {

// A JPEG is decoded at a reduced scale only while its crop keeps this many times the model's resolution.
constexpr double kOversampling = 2.0;

bool is_luma_first(const Header& header) {
  return std::strcmp(header.color_space, "ycbcr") == 0 || std::strcmp(header.color_space, "grayscale") == 0;
}

Box scaled(const Box& box, double scale) {
  return {box.left * scale, box.top * scale, box.right * scale, box.bottom * scale};
}

std::uint32_t scaled_side(std::uint32_t side, int scale) {
  return static_cast<std::uint32_t>((std::uint64_t{side} * static_cast<unsigned>(scale) + DCTSIZE - 1) / DCTSIZE);
}

// A JPEG's pixels at a reduced scale, and the crop in them.
struct Plan {
  Plan(const Header& header, const Box& whole_box, const PrepareOptions& options)
      : scale(decoding_scale(whole_box, options.size)),
        width(scaled_side(header.width, scale)),
        height(scaled_side(header.height, scale)),
        box(scaled(whole_box, scale / static_cast<double>(DCTSIZE))) {
    const Reach columns = reach_of(box.left, box.right, width, options.size, options.filter);
    const Reach rows = reach_of(box.top, box.bottom, height, options.size, options.filter);
    region = {columns.first, rows.first, columns.end - columns.first, rows.end - rows.first};
  }

  int scale;
  std::uint32_t width;
  std::uint32_t height;
  Box box;
  Region region;  // what the filter reads
};

Pixels resized(const Pixels& pixels, const Plan& plan, const PrepareOptions& options) {
  Pixels result;
  result.width = result.height = options.size;
  result.samples = allocate_bytes(std::size_t{3} * options.size * options.size);
  const PictureView view{pixels.samples.get(), pixels.x, pixels.y, pixels.width, pixels.height};
  resample(view, plan.width, plan.height, plan.box, options.size, options.filter, result.samples.get(),
           options.instructions);
  return result;
}

ComponentTables tables_of(const Header& header) {
  ComponentTables tables;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    tables[i] = *header.components[std::min(i, header.components.size() - 1)].quant_table;
  }
  return tables;
}

void make_heavier(QuantTable& table, const QuantTable& earlier) {
  std::transform(table.begin(), table.end(), earlier.begin(), table.begin(),
                 [](std::uint16_t a, std::uint16_t b) { return std::max(a, b); });
}

// The standard knows no step of zero (T.81, B.2.4.1); files may have one all the same.
void make_positive(QuantTable& table) {
  for (std::uint16_t& step : table) step = std::max<std::uint16_t>(step, 1);
}

QuantTable transposed(const QuantTable& table) {
  QuantTable result;
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = table[i % DCTSIZE * DCTSIZE + i / DCTSIZE];
  return result;
}

// Where the middle `side` of `length` pixels start. The wider part of an odd margin comes first in the upright picture.
std::int64_t crop_start(std::uint32_t length, std::int64_t side, bool is_mirrored) {
  return (std::int64_t{length} - side + (is_mirrored ? 0 : 1)) / 2;
}

}  // namespace

Box crop_box(std::uint32_t width, std::uint32_t height, double crop_fraction, int orientation) {
  const Orientation turn(orientation);
  const auto side = std::max<std::int64_t>(1, static_cast<std::int64_t>(crop_fraction * std::min(width, height)));
  const std::int64_t left = crop_start(width, side, turn.mirrors_x);
  const std::int64_t top = crop_start(height, side, turn.mirrors_y);
  return {static_cast<double>(left), static_cast<double>(top), static_cast<double>(left + side),
          static_cast<double>(top + side)};
}

int decoding_scale(const Box& box, std::uint32_t size) {
  const double side = std::min(box.right - box.left, box.bottom - box.top);
  for (const int scale : {1, 2, 4}) {
    if (side * scale / DCTSIZE >= kOversampling * size) return scale;
  }
  return DCTSIZE;
}

Grid allocate_grid(std::uint32_t side) {
  const std::size_t bytes = std::size_t{side} * side * kCellCoefficients * sizeof(std::int16_t);
  return Grid(static_cast<std::int16_t*>(take_buffer(bytes)));
}

BlockFeatures features_of(Grid stored, std::uint32_t side, const ComponentTables& tables, int orientation,
                          Instructions instructions) {
  const LumaBlocks luma{stored.get(), std::size_t{side} * side, kCellCoefficients};
  BlockFeatures features{std::move(stored), side, tables, compression_history(luma, tables[0], instructions)};
  for (QuantTable& table : features.tables) make_positive(table);
  if (features.history.resaved) {
    for (std::size_t i = 0; i < tables.size(); ++i) {
      make_heavier(features.tables[i], scaled_table(features.history.quality, i > 0));
    }
  }
  if (orientation == 1) return features;
  if (Orientation(orientation).swaps_axes) {
    for (QuantTable& table : features.tables) table = transposed(table);
  }
  Grid upright = allocate_grid(side);
  orient_grid(features.blocks.get(), side, orientation, upright.get());
  features.blocks = std::move(upright);
  return features;
}

std::optional<PreparedJpeg> prepare(const std::uint8_t* data, std::size_t size, const Limits& limits,
                                    const PrepareOptions& options) {
  JpegReader reader(data, size, limits, false);
  const Header& header = reader.header();
  if (!is_luma_first(header)) return std::nullopt;
  const Box whole{0, 0, static_cast<double>(header.width), static_cast<double>(header.height)};
  const int orientation = header.orientation;
  const Box box =
      options.crop_fraction ? crop_box(header.width, header.height, *options.crop_fraction, orientation) : whole;

  const Plan plan(header, box, options);
  const std::uint32_t side = cells_of(options.size);
  Grid blocks = allocate_grid(side);
  GridCollector collector(box, options.size, blocks.get(), options.instructions);

  ReadOptions read_options;
  read_options.pixels = true;
  read_options.scale = plan.scale;
  read_options.region = plan.region;
  read_options.sink = &collector;
  Picture picture = reader.read(read_options);

  PreparedJpeg prepared;
  prepared.box = box;
  prepared.rgb = resized(*picture.pixels, plan, options);
  if (orientation > 1) prepared.rgb = oriented(prepared.rgb, orientation);
  prepared.features =
      features_of(std::move(blocks), side, tables_of(picture.header), orientation, options.instructions);
  prepared.header = std::move(picture.header);
  return prepared;
}

}  // namespace afd
