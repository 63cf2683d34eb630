#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "block_grid.h"
#include "history.h"
#include "jpeg_reader.h"
#include "resample.h"

namespace afd {

// The central square that a model sees of the upright picture, where it lies in the stored one of `width` x `height`
// pixels under an EXIF orientation from 1 to 8: EfficientNet's evaluation preprocessing, down to the rounding.
Box crop_box(std::uint32_t width, std::uint32_t height, double crop_fraction, int orientation);

struct PrepareOptions {
  std::uint32_t size;                   // side of the model's input
  std::optional<double> crop_fraction;  // of the shorter side; nothing takes the whole picture as the crop
  Filter filter;
  Instructions instructions = Instructions::kFastest;
};

using ComponentTables = std::array<QuantTable, kCellBlocks>;  // of Y, Cb, Cr

struct GridMemory {
  void operator()(std::int16_t* memory) const { give_back_buffer(memory); }
};
using Grid = std::unique_ptr<std::int16_t, GridMemory>;

// Throws std::bad_alloc.
Grid allocate_grid(std::uint32_t side);

// What the classifier takes besides pixels.
struct BlockFeatures {
  Grid blocks;             // int16 [side, side, 3, 8, 8], dequantized, upright
  std::uint32_t side;      // cells
  ComponentTables tables;  // upright; the heaviest that the history shows; no step of zero
  CompressionHistory history;
};

// Judges stored blocks, int16 [side, side, 3, 8, 8], by their own tables, and turns them upright.
BlockFeatures features_of(Grid stored, std::uint32_t side, const ComponentTables& tables, int orientation,
                          Instructions instructions = Instructions::kFastest);

struct PreparedJpeg {
  Pixels rgb;  // [size, size], upright
  BlockFeatures features;
  Box box;  // the crop in the stored picture
  Header header;
};

// Decodes a JPEG and makes the classifier's inputs of it; nothing if its components are not Y, Cb, Cr or Y alone.
// Throws JpegFailure and std::bad_alloc.
std::optional<PreparedJpeg> prepare(const std::uint8_t* data, std::size_t size, const Limits& limits,
                                    const PrepareOptions& options);

// The smallest of 1, 2, 4 and 8 eighths that keeps the crop well above the model's resolution.
int decoding_scale(const Box& box, std::uint32_t size);

}  // namespace afd
