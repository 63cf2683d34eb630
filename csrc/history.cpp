#include "history.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "natural_order.h"

namespace afd {
namespace {

constexpr QuantTable kStandardLuma = {
    16, 11, 10, 16, 24,  40,  51,  61,   //
    12, 12, 14, 19, 26,  58,  60,  55,   //
    14, 13, 16, 24, 40,  57,  69,  56,   //
    14, 17, 22, 29, 51,  87,  80,  62,   //
    18, 22, 37, 56, 68,  109, 103, 77,   //
    24, 35, 55, 64, 81,  104, 113, 92,   //
    49, 64, 78, 87, 103, 121, 120, 101,  //
    72, 92, 95, 98, 112, 100, 103, 99,
};

constexpr QuantTable kStandardChroma = {
    17, 18, 24, 47, 99, 99, 99, 99,  //
    18, 21, 26, 66, 99, 99, 99, 99,  //
    24, 26, 56, 99, 99, 99, 99, 99,  //
    47, 66, 99, 99, 99, 99, 99, 99,  //
    99, 99, 99, 99, 99, 99, 99, 99,  //
    99, 99, 99, 99, 99, 99, 99, 99,  //
    99, 99, 99, 99, 99, 99, 99, 99,  //
    99, 99, 99, 99, 99, 99, 99, 99,
};

constexpr int kQualities = 100;
using LogTable = std::array<double, DCTSIZE2>;

std::array<LogTable, kQualities> logarithms_of_all_tables() {
  std::array<LogTable, kQualities> all;
  for (int quality = 1; quality <= kQualities; ++quality) {
    const QuantTable table = scaled_table(quality, false);
    std::transform(table.begin(), table.end(), all[quality - 1].begin(), [](int step) { return std::log(step); });
  }
  return all;
}

// Quantizing with a coarse step leaves values at its multiples; a finer step afterwards moves them a little but does
// not fill the gaps between them. For each candidate quality the values that are not near zero are counted, and how
// many of them lie in the middle between two multiples: about half when the candidate never took part, almost none when
// it did. Multiples of a step are multiples of its divisors too, so the best of the coarsest run of candidates wins.
constexpr int kFirstQuality = 3;
constexpr int kLastQuality = 85;
constexpr std::size_t kFrequencies = 21;  // in zigzag order, behind the DC
constexpr int kLeastEvidence = 40;
constexpr double kMostOffGrid = 0.12;
constexpr float kNearZero = 0.3F;
constexpr float kOffGrid = 0.25F;
constexpr float kClearRatio = 1.9F;
constexpr float kLeastStep = 6.0F;
constexpr int kLeastMagnitude = 2;  // those below are near zero for any candidate
// More values find nothing new (250 pictures, 18 histories).
constexpr std::size_t kMostValues = 1536;

// A magnitude and the place of its frequency among those that are tested.
struct Value {
  std::uint16_t magnitude;
  std::uint16_t frequency;
};

std::vector<Value> values_of(const LumaBlocks& blocks) {
  std::vector<Value> values(blocks.count * kFrequencies);
  const std::uint8_t* positions = kNaturalOrder.positions + 1;
  std::size_t count = 0;
  for (std::size_t b = 0; b < blocks.count; ++b) {
    const std::int16_t* block = blocks.first + b * blocks.stride;
    for (std::size_t f = 0; f < kFrequencies; ++f) {
      const int magnitude = std::abs(block[positions[f]]);
      values[count] = {static_cast<std::uint16_t>(magnitude), static_cast<std::uint16_t>(f)};
      count += magnitude >= kLeastMagnitude;
    }
  }
  values.resize(count);
  return values;
}

// Evenly spread over the picture.
std::vector<Value> thinned(const std::vector<Value>& values) {
  if (values.size() <= kMostValues) return values;
  std::vector<Value> chosen;
  chosen.reserve(kMostValues);
  const double step = static_cast<double>(values.size() - 1) / (kMostValues - 1);
  for (std::size_t i = 0; i + 1 < kMostValues; ++i) {
    chosen.push_back(values[static_cast<std::size_t>(static_cast<double>(i) * step)]);
  }
  chosen.push_back(values.back());
  return chosen;
}

// The magnitudes of one frequency after the other.
struct Magnitudes {
  explicit Magnitudes(const std::vector<Value>& values) : sorted(values.size()) {
    for (const Value& value : values) ++ends[value.frequency];
    for (std::size_t f = 1; f < kFrequencies; ++f) ends[f] += ends[f - 1];
    std::array<std::size_t, kFrequencies> next{};
    std::copy(ends.begin(), ends.end() - 1, next.begin() + 1);
    for (const Value& value : values) sorted[next[value.frequency]++] = value.magnitude;
  }

  const float* begin(std::size_t frequency) const { return sorted.data() + (frequency == 0 ? 0 : ends[frequency - 1]); }
  const float* end(std::size_t frequency) const { return sorted.data() + ends[frequency]; }

  std::array<std::size_t, kFrequencies> ends{};
  std::vector<float> sorted;
};

// How far a ratio lies from the nearest whole number, half to even. Adding 1.5 * 2^23 makes a float of this size round
// to a whole number in the addition, on every processor.
AFD_ALWAYS_INLINE float off_whole(float ratio) {
  constexpr float kRounder = 12582912.0F;
  return std::abs(ratio - ((ratio + kRounder) - kRounder));
}

struct Evidence {
  int values = 0;
  int off_grid = 0;

  bool explains() const { return values >= kLeastEvidence && off_grid < kMostOffGrid * values; }
};

AFD_ALWAYS_INLINE void weigh_loop(const float* begin, const float* end, float step, Evidence& evidence) {
  int values = 0;
  int off_grid = 0;
  for (const float* magnitude = begin; magnitude != end; ++magnitude) {
    const float ratio = *magnitude / step;
    const int counted = ratio > kNearZero;
    values += counted;
    off_grid += counted & static_cast<int>(off_whole(ratio) > kOffGrid);
  }
  evidence.values += values;
  evidence.off_grid += off_grid;
}

using Weigh = void (*)(const float*, const float*, float, Evidence&);

void weigh_portable(const float* begin, const float* end, float step, Evidence& evidence) {
  weigh_loop(begin, end, step, evidence);
}

#ifdef AFD_HAS_AVX2
AFD_TARGET_AVX2 void weigh_avx2(const float* begin, const float* end, float step, Evidence& evidence) {
  weigh_loop(begin, end, step, evidence);
}
#endif

Weigh weigh_for(Instructions instructions) {
#ifdef AFD_HAS_AVX2
  if (use_avx2(instructions)) return weigh_avx2;
#endif
  (void)instructions;
  return weigh_portable;
}

// The steps of one candidate, or zero where its step is not clearly coarser than the picture's own.
using Steps = std::array<float, kFrequencies>;

Steps usable_steps(int quality, const QuantTable& own) {
  const QuantTable table = scaled_table(quality, false);
  const std::uint8_t* positions = kNaturalOrder.positions + 1;
  Steps steps{};
  for (std::size_t f = 0; f < kFrequencies; ++f) {
    const float step = table[positions[f]];
    if (std::max(kClearRatio * static_cast<float>(own[positions[f]]), kLeastStep) <= step) steps[f] = step;
  }
  return steps;
}

Evidence evidence_for(const Steps& steps, const Magnitudes& magnitudes, Weigh weigh) {
  Evidence evidence;
  for (std::size_t f = 0; f < kFrequencies; ++f) {
    if (steps[f] > 0) weigh(magnitudes.begin(f), magnitudes.end(f), steps[f], evidence);
  }
  return evidence;
}

// Mean distance of the counted values from the candidate's multiples.
double misfit(const Steps& steps, const Magnitudes& magnitudes, const Evidence& evidence) {
  double sum = 0.0;
  for (std::size_t f = 0; f < kFrequencies; ++f) {
    if (steps[f] == 0) continue;
    for (const float* magnitude = magnitudes.begin(f); magnitude != magnitudes.end(f); ++magnitude) {
      const float ratio = *magnitude / steps[f];
      if (ratio > kNearZero) sum += off_whole(ratio);
    }
  }
  return sum / evidence.values;
}

}  // namespace

QuantTable scaled_table(int quality, bool chroma) {
  const int percent = quality < 50 ? 5000 / quality : 200 - 2 * quality;
  QuantTable table = chroma ? kStandardChroma : kStandardLuma;
  for (std::uint16_t& step : table) step = static_cast<std::uint16_t>(std::clamp((step * percent + 50) / 100, 1, 255));
  return table;
}

int estimate_quality(const QuantTable& table) {
  static const std::array<LogTable, kQualities> standard = logarithms_of_all_tables();
  LogTable wanted;
  std::transform(table.begin(), table.end(), wanted.begin(), [](int step) { return std::log(std::max(step, 1)); });
  int nearest = kQualities;
  double least = HUGE_VAL;
  for (int quality = kQualities; quality >= 1; --quality) {
    double distance = 0.0;
    for (int i = 0; i < DCTSIZE2 && distance < least; ++i) distance += std::abs(standard[quality - 1][i] - wanted[i]);
    if (distance < least) {
      least = distance;
      nearest = quality;
    }
  }
  return nearest;
}

std::optional<int> earlier_quality(const LumaBlocks& blocks, const QuantTable& table, Instructions instructions) {
  const Magnitudes magnitudes(thinned(values_of(blocks)));
  const Weigh weigh = weigh_for(instructions);
  std::optional<int> best;
  double least = HUGE_VAL;
  for (int quality = kFirstQuality; quality <= kLastQuality; ++quality) {
    const Steps steps = usable_steps(quality, table);
    const Evidence evidence = evidence_for(steps, magnitudes, weigh);
    if (!evidence.explains()) {
      if (best) break;  // the coarsest run ends
      continue;
    }
    const double distance = misfit(steps, magnitudes, evidence);
    if (!best || distance < least) {
      least = distance;
      best = quality;
    }
  }
  return best;
}

CompressionHistory compression_history(const LumaBlocks& blocks, const QuantTable& table, Instructions instructions) {
  const int own = estimate_quality(table);
  const std::optional<int> earlier = earlier_quality(blocks, table, instructions);
  if (earlier && *earlier < own) return {*earlier, true};
  return {own, false};
}

}  // namespace afd
