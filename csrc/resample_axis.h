#pragma once

// The arithmetic of a resize along one axis.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "resample.h"

namespace afd {

// Note [Pillow's arithmetic]: weights are computed in double precision, normalized to a sum of 1, and rounded to fixed
// point with 22 fractional bits, half away from zero. Each axis has a pass of its own, whose result is rounded to
// bytes. The horizontal pass comes first, unless the picture loses more than twice as many rows as columns (since
// Pillow 13). The box has single precision.
inline constexpr int kFractionBits = 22;
inline constexpr std::int32_t kHalf = 1 << (kFractionBits - 1);

inline double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// Keys's cubic convolution kernel with a = -0.5. Pillow evaluates it in this very order.
inline double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

// One axis of a resize.
class Axis {
 public:
  Axis(double start, double stop, std::uint32_t length, std::uint32_t size, Filter filter)
      : start_(static_cast<float>(start)),
        stop_(static_cast<float>(stop)),
        length_(length),
        size_(size),
        weigh_(filter == Filter::kBicubic ? bicubic : bilinear),
        scale_(static_cast<double>(static_cast<float>(stop_ - start_)) / size),
        stretch_(std::max(scale_, 1.0)),
        support_((filter == Filter::kBicubic ? 2.0 : 1.0) * stretch_) {}

  bool is_identity() const { return length_ == size_ && start_ == 0.0f && stop_ == static_cast<float>(size_); }

  double center(std::uint32_t i) const { return start_ + (i + 0.5) * scale_; }

  // Samples that the i-th sample of the result is made of; none where single precision puts it behind the last one.
  Reach taps(std::uint32_t i) const {
    const auto first = static_cast<std::int64_t>(center(i) - support_ + 0.5);
    const auto end = static_cast<std::int64_t>(center(i) + support_ + 0.5);
    const std::int64_t last = std::min<std::int64_t>(end, length_);
    return {static_cast<std::uint32_t>(std::clamp<std::int64_t>(first, 0, last)), static_cast<std::uint32_t>(last)};
  }

  std::uint32_t most_taps() const { return static_cast<std::uint32_t>(std::ceil(support_)) * 2 + 1; }

  // Writes the weights of taps(i); `scratch` has room for them.
  void weights(std::uint32_t i, double* scratch, std::int32_t* out) const {
    const Reach reach = taps(i);
    const std::uint32_t count = reach.end - reach.first;
    double sum = 0.0;
    for (std::uint32_t k = 0; k < count; ++k) {
      scratch[k] = weigh_((k + reach.first - center(i) + 0.5) * (1.0 / stretch_));
      sum += scratch[k];
    }
    for (std::uint32_t k = 0; k < count; ++k) {
      const double weight = (sum != 0.0 ? scratch[k] / sum : scratch[k]) * (1 << kFractionBits);
      out[k] = static_cast<std::int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
  }

  std::uint32_t size() const { return size_; }

 private:
  float start_;
  float stop_;
  std::uint32_t length_;
  std::uint32_t size_;
  double (*weigh_)(double);
  double scale_;
  double stretch_;
  double support_;
};

// The weights of all samples of a result, each with room for `stride` of them, a multiple
// of four; those behind the last tap are zero.
struct Kernel {
  explicit Kernel(const Axis& axis)
      : stride((axis.most_taps() + 3) / 4 * 4), weights(std::size_t{stride} * axis.size()) {
    std::vector<double> scratch(axis.most_taps());
    reaches.reserve(axis.size());
    for (std::uint32_t i = 0; i < axis.size(); ++i) {
      reaches.push_back(axis.taps(i));
      axis.weights(i, scratch.data(), &weights[std::size_t{stride} * i]);
    }
  }

  const std::int32_t* of(std::uint32_t i) const { return &weights[std::size_t{stride} * i]; }

  std::uint32_t stride;
  std::vector<Reach> reaches;
  std::vector<std::int32_t> weights;
};

}  // namespace afd
