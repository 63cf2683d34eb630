#pragma once

// The coefficients of a picture as rows bring them, for tests that compare them with those of a whole decode.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../jpeg_reader.h"

namespace afd {

// Of each component the blocks, without padding.
using Planes = std::vector<std::vector<JCOEF>>;

class Recorder final : public CoefficientSink {
 public:
  void begin(const Header& header) override {
    components_ = header.components;
    planes.assign(components_.size(), {});
    is_in_order = true;
  }
  void take(std::size_t component, std::uint32_t row, const JCOEF* blocks) noexcept override {
    if (row >= components_[component].height_in_blocks) return;
    const std::size_t count = std::size_t{components_[component].width_in_blocks} * DCTSIZE2;
    is_in_order = is_in_order && planes[component].size() == row * count;
    planes[component].insert(planes[component].end(), blocks, blocks + count);
  }

  Planes planes;
  bool is_in_order = true;

 private:
  std::vector<Component> components_;
};

inline Planes planes_of(const Picture& picture) {
  Recorder recorder;
  recorder.begin(picture.header);
  for (std::size_t i = 0; i < picture.header.components.size(); ++i) {
    const PlaneShape& shape = picture.coefficients->shape(i);
    for (std::uint32_t y = 0; y < shape.height_in_blocks; ++y) {
      recorder.take(i, y, picture.coefficients->plane(i) + std::size_t{y} * shape.padded_width_in_blocks * DCTSIZE2);
    }
  }
  return recorder.planes;
}

// The blocks of a component along an axis that lie under [start, start + length) of pixels of `scale` eighths of the
// size; `factor` is the component's sampling factor of that axis, and `most` the picture's largest.
struct BlocksUnder {
  BlocksUnder(std::uint32_t start, std::uint32_t length, int scale, int factor, int most)
      : first(start * static_cast<std::uint32_t>(factor) / static_cast<std::uint32_t>(scale * most)),
        last((start + length - 1) * static_cast<std::uint32_t>(factor) / static_cast<std::uint32_t>(scale * most)) {}

  std::uint32_t first;
  std::uint32_t last;
};

inline bool same_blocks_under(const Region& region, int scale, const Header& header, const Planes& left,
                              const Planes& right) {
  int most_h = 1;
  int most_v = 1;
  for (const Component& component : header.components) {
    most_h = std::max(most_h, component.h);
    most_v = std::max(most_v, component.v);
  }
  for (std::size_t i = 0; i < header.components.size(); ++i) {
    const Component& component = header.components[i];
    const BlocksUnder columns(region.x, region.width, scale, component.h, most_h);
    const BlocksUnder rows(region.y, region.height, scale, component.v, most_v);
    for (std::uint32_t y = rows.first; y <= rows.last; ++y) {
      const std::size_t row = std::size_t{y} * component.width_in_blocks;
      const auto first = static_cast<std::ptrdiff_t>((row + columns.first) * DCTSIZE2);
      const auto end = static_cast<std::ptrdiff_t>((row + columns.last + 1) * DCTSIZE2);
      if (!std::equal(left[i].begin() + first, left[i].begin() + end, right[i].begin() + first)) return false;
    }
  }
  return true;
}

}  // namespace afd
