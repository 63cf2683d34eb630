#include "resample_rows.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#ifdef AFD_HAS_AVX2
#include <immintrin.h>
#endif

namespace afd {
namespace {

// Note [Weights in two halves]: multiplying 32-bit weights is slow; 16-bit pairs multiply and add in one instruction.
// So a weight is 2^11 times a signed high half plus a low half of 11 bits, whose sums stay far below 32 bits.
constexpr int kLowBits = 11;
constexpr std::int32_t kLowMask = (1 << kLowBits) - 1;
constexpr std::int32_t kLargestWeight = 1 << 26;  // what a high half holds

std::int16_t high_half(std::int32_t weight) { return static_cast<std::int16_t>(weight >> kLowBits); }
std::int16_t low_half(std::int32_t weight) { return static_cast<std::int16_t>(weight & kLowMask); }

bool fits_halves(const Kernel& kernel) {
  return std::all_of(kernel.weights.begin(), kernel.weights.end(),
                     [](std::int32_t weight) { return std::abs(weight) < kLargestWeight; });
}

std::uint8_t to_byte(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> kFractionBits, 0, 255)); }

// One row of the result of the horizontal pass; `row` begins at the picture's column `x`.
void resize_row(const Kernel& kernel, const std::uint8_t* row, std::uint32_t x, std::uint8_t* out) {
  for (std::uint32_t i = 0; i < kernel.reaches.size(); ++i, out += 3) {
    const Reach reach = kernel.reaches[i];
    const std::int32_t* weights = kernel.of(i);
    std::int32_t sums[3] = {kHalf, kHalf, kHalf};
    const std::uint8_t* pixel = row + std::size_t{3} * (reach.first - x);
    for (std::uint32_t k = 0; k < reach.end - reach.first; ++k, pixel += 3) {
      for (int c = 0; c < 3; ++c) sums[c] += pixel[c] * weights[k];
    }
    for (int c = 0; c < 3; ++c) out[c] = to_byte(sums[c]);
  }
}

// One row of the result: the weighted sum of `count` rows, `stride` bytes apart.
void blend_row(const std::uint8_t* rows, std::size_t stride, const std::int32_t* weights, std::uint32_t count,
               std::size_t bytes, std::uint8_t* out) {
  for (std::size_t i = 0; i < bytes; ++i) {
    std::int32_t sum = kHalf;
    for (std::uint32_t k = 0; k < count; ++k) sum += rows[k * stride + i] * weights[k];
    out[i] = to_byte(sum);
  }
}

// Taps that one instruction of the AVX2 version weighs.
constexpr std::uint32_t kGroup = 4;
constexpr std::size_t kHalvesPerGroup = 32;

// Samples of the result that the AVX-512 version makes at a time, and bytes of the row that it looks at for them.
constexpr std::uint32_t kWide = 4;
constexpr std::uint32_t kWindow = 64;

// What the AVX-512 version multiplies for one pair of taps of each of `kWide` samples: four 32-bit lanes per sample,
// for R, G, B and nothing, with two 16-bit values each.
struct WidePair {
  std::array<std::uint8_t, 64> positions;  // in the window, of the lower bytes of the values
  std::array<std::int16_t, 32> high;
  std::array<std::int16_t, 32> low;
};

}  // namespace

// The halves of a kernel's weights: for each group of four taps, those of the first two in the lower lane and those of
// the others in the upper one, once for each of R, G, B and nothing.
struct RowResizer::Groups {
  explicit Groups(const Kernel& kernel)
      : halves_per_result(kernel.stride / kGroup * kHalvesPerGroup), halves(halves_per_result * kernel.reaches.size()) {
    std::int16_t* out = halves.data();
    for (std::size_t first = 0; first < kernel.weights.size(); first += kGroup, out += kHalvesPerGroup) {
      for (std::size_t i = 0; i < 16; ++i) {
        const std::int32_t weight = kernel.weights[first + i / 8 * 2 + i % 2];
        out[i] = high_half(weight);
        out[16 + i] = low_half(weight);
      }
    }
  }

  std::size_t halves_per_result;
  std::vector<std::int16_t> halves;
};

struct RowResizer::WideGroups {
  struct Group {
    std::uint32_t first;  // column of the window
    std::size_t pairs;    // index of the first
    std::size_t pairs_end;
  };

  // Whether every group's taps lie in a window.
  static bool fits(const Kernel& kernel) {
    const auto& reaches = kernel.reaches;
    for (std::size_t i = 0; i < reaches.size(); i += kWide) {
      const std::size_t last = std::min(i + kWide, reaches.size()) - 1;
      if (3 * (reaches[last].end - reaches[i].first) > kWindow) return false;
    }
    return true;
  }

  explicit WideGroups(const Kernel& kernel) {
    const auto count = static_cast<std::uint32_t>(kernel.reaches.size());
    for (std::uint32_t i = 0; i < count; i += kWide) {
      const std::uint32_t end = std::min(i + kWide, count);
      std::uint32_t taps = 0;
      for (std::uint32_t k = i; k < end; ++k) taps = std::max(taps, kernel.reaches[k].end - kernel.reaches[k].first);
      const std::size_t first_pair = pairs.size();
      for (std::uint32_t tap = 0; tap < taps; tap += 2) pairs.push_back(pair_of(kernel, i, end, tap));
      groups.push_back({kernel.reaches[i].first, first_pair, pairs.size()});
    }
  }

  std::vector<Group> groups;
  std::vector<WidePair> pairs;

 private:
  static WidePair pair_of(const Kernel& kernel, std::uint32_t first, std::uint32_t end, std::uint32_t tap) {
    WidePair pair{};
    for (std::uint32_t i = first; i < end; ++i) {
      const Reach reach = kernel.reaches[i];
      for (std::uint32_t k = tap; k < std::min(tap + 2, reach.end - reach.first); ++k) {
        for (std::uint32_t c = 0; c < 3; ++c) {
          const std::uint32_t value = 8 * (i - first) + 2 * c + (k - tap);
          pair.positions[2 * value] =
              static_cast<std::uint8_t>(3 * (reach.first + k - kernel.reaches[first].first) + c);
          pair.high[value] = high_half(kernel.of(i)[k]);
          pair.low[value] = low_half(kernel.of(i)[k]);
        }
      }
    }
    return pair;
  }
};

namespace {

#ifdef AFD_HAS_AVX2

// As `resize_row`; reads up to RowResizer::kSlack bytes beyond the row's end.
AFD_TARGET_AVX2 void resize_row_avx2(const Kernel& kernel, const std::int16_t* group_halves,
                                     std::size_t halves_per_result, const std::uint8_t* row, std::uint32_t x,
                                     std::uint8_t* out) {
  // Bytes of four pixels to 16-bit pairs: R0 R1 G0 G1 B0 B1 0 0, and R2 R3 G2 G3 B2 B3 0 0 in the upper lane.
  const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const auto count = static_cast<std::uint32_t>(kernel.reaches.size());
  for (std::uint32_t i = 0; i < count; ++i, out += 3) {
    const Reach reach = kernel.reaches[i];
    const std::uint8_t* pixels = row + std::size_t{3} * (reach.first - x);
    const std::uint8_t* const end = row + std::size_t{3} * (reach.end - x);
    const auto* halves = reinterpret_cast<const __m256i*>(group_halves + i * halves_per_result);
    __m256i high = _mm256_setzero_si256();
    __m256i low = _mm256_setzero_si256();
    for (; pixels < end; pixels += 3 * kGroup, halves += 2) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels));
      const __m256i words = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
      high = _mm256_add_epi32(high, _mm256_madd_epi16(words, _mm256_loadu_si256(halves)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(words, _mm256_loadu_si256(halves + 1)));
    }
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
    __m128i folded = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    folded = _mm_srai_epi32(_mm_add_epi32(folded, _mm_set1_epi32(kHalf)), kFractionBits);
    folded = _mm_packs_epi32(folded, folded);
    const int pixel = _mm_cvtsi128_si32(_mm_packus_epi16(folded, folded));
    std::memcpy(out, &pixel, i + 1 < count ? 4 : 3);  // one byte too many, which the next pixel overwrites
  }
}

// Four rows of the horizontal pass, `stride` bytes apart, whose weights are loaded once; reads as `resize_row_avx2`
// does.
AFD_TARGET_AVX2 void resize_4_rows_avx2(const Kernel& kernel, const std::int16_t* group_halves,
                                        std::size_t halves_per_result, const std::uint8_t* rows, std::size_t stride,
                                        std::uint32_t x, std::uint8_t* out) {
  constexpr int kRows = 4;
  const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                         6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i half = _mm256_set1_epi32(kHalf);
  const auto count = static_cast<std::uint32_t>(kernel.reaches.size());
  const std::size_t out_stride = std::size_t{3} * count;
  for (std::uint32_t i = 0; i < count; ++i, out += 3) {
    const Reach reach = kernel.reaches[i];
    const std::uint8_t* pixels = rows + std::size_t{3} * (reach.first - x);
    const std::uint8_t* const end = rows + std::size_t{3} * (reach.end - x);
    const auto* halves = reinterpret_cast<const __m256i*>(group_halves + i * halves_per_result);
    __m256i high[kRows];
    __m256i low[kRows];
    for (int r = 0; r < kRows; ++r) high[r] = low[r] = _mm256_setzero_si256();
    for (; pixels < end; pixels += 3 * kGroup, halves += 2) {
      const __m256i high_weights = _mm256_loadu_si256(halves);
      const __m256i low_weights = _mm256_loadu_si256(halves + 1);
      for (int r = 0; r < kRows; ++r) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels + r * stride));
        const __m256i words = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), pairs);
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(words, high_weights));
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(words, low_weights));
      }
    }
    __m256i two[2];  // rows in lanes: 0 and 1, 2 and 3
    for (int r = 0; r < 2; ++r) {
      const __m256i a = _mm256_add_epi32(_mm256_slli_epi32(high[2 * r], kLowBits), low[2 * r]);
      const __m256i b = _mm256_add_epi32(_mm256_slli_epi32(high[2 * r + 1], kLowBits), low[2 * r + 1]);
      const __m256i sum =
          _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
      two[r] = _mm256_srai_epi32(_mm256_add_epi32(sum, half), kFractionBits);
    }
    const __m256i words = _mm256_packs_epi32(two[0], two[1]);  // rows 0 and 2, 1 and 3
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const auto even = static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm256_castsi256_si128(bytes)));
    const auto odd = static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm256_extracti128_si256(bytes, 1)));
    const std::uint32_t results[kRows] = {static_cast<std::uint32_t>(even), static_cast<std::uint32_t>(odd),
                                          static_cast<std::uint32_t>(even >> 32),
                                          static_cast<std::uint32_t>(odd >> 32)};
    if (__builtin_expect(i + 1 < count, 1)) {
      for (int r = 0; r < kRows; ++r) std::memcpy(out + r * out_stride, &results[r], 4);  // one byte too many, likewise
    } else {
      for (int r = 0; r < kRows; ++r) std::memcpy(out + r * out_stride, &results[r], 3);
    }
  }
}

// In what follows intrinsics have the forms with a mask, because GCC 12 takes the others' unused operand for an
// uninitialized variable.
AFD_TARGET_AVX512 AFD_ALWAYS_INLINE __m512i whole_sums(__m512i high, __m512i low) {
  constexpr __mmask16 kAll = 0xFFFF;
  const __m512i sum = _mm512_add_epi32(_mm512_maskz_slli_epi32(kAll, high, kLowBits), low);
  return _mm512_maskz_srai_epi32(kAll, _mm512_add_epi32(sum, _mm512_set1_epi32(kHalf)), kFractionBits);
}

// `kRows` rows of the horizontal pass, `stride` bytes apart; reads up to RowResizer::kSlack bytes beyond their ends.
template <int kRows, typename WideGroups>
AFD_TARGET_AVX512 void resize_rows_avx512(const WideGroups& wide, std::uint32_t size, const std::uint8_t* rows,
                                          std::size_t stride, std::uint32_t x, std::uint8_t* out) {
  constexpr __mmask16 kAll = 0xFFFF;
  const __mmask64 lower_bytes = 0x5555555555555555;
  const __m128i rgb = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  std::uint32_t done = 0;
  for (const auto& group : wide.groups) {
    const std::uint8_t* pixels = rows + std::size_t{3} * (group.first - x);
    __m512i windows[kRows];
    __m512i high[kRows];
    __m512i low[kRows];
    for (int r = 0; r < kRows; ++r) {
      windows[r] = _mm512_loadu_si512(pixels + static_cast<std::size_t>(r) * stride);
      high[r] = low[r] = _mm512_setzero_si512();
    }
    for (std::size_t p = group.pairs; p < group.pairs_end; ++p) {
      const WidePair& pair = wide.pairs[p];
      const __m512i positions = _mm512_loadu_si512(pair.positions.data());
      const __m512i high_weights = _mm512_loadu_si512(pair.high.data());
      const __m512i low_weights = _mm512_loadu_si512(pair.low.data());
      for (int r = 0; r < kRows; ++r) {
        const __m512i words = _mm512_maskz_permutexvar_epi8(lower_bytes, positions, windows[r]);
        high[r] = _mm512_dpwssd_epi32(high[r], words, high_weights);
        low[r] = _mm512_dpwssd_epi32(low[r], words, low_weights);
      }
    }
    const std::uint32_t results = std::min(kWide, size - done);
    const auto mask = static_cast<__mmask16>((1U << (3 * results)) - 1);
    for (int r = 0; r < kRows; ++r) {
      const __m512i clipped = _mm512_maskz_max_epi32(kAll, whole_sums(high[r], low[r]), _mm512_setzero_si512());
      const __m128i bytes = _mm512_maskz_cvtusepi32_epi8(kAll, clipped);
      std::uint8_t* target = out + std::size_t{3} * (static_cast<std::size_t>(r) * size + done);
      _mm_mask_storeu_epi8(target, mask, _mm_shuffle_epi8(bytes, rgb));
    }
    done += results;
  }
}

// The 16-bit halves of the weights of two rows, as one lane of what is multiplied holds them.
struct WeightPair {
  explicit WeightPair(std::int32_t first, std::int32_t second)
      : high(lane(first >> kLowBits, second >> kLowBits)), low(lane(first & kLowMask, second & kLowMask)) {}

  static std::int32_t lane(std::int32_t first, std::int32_t second) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(first) & 0xFFFF) | static_cast<std::uint32_t>(second)
                                                                                        << 16);
  }

  std::int32_t high;
  std::int32_t low;
};

AFD_TARGET_AVX2 AFD_ALWAYS_INLINE __m256i whole_sums(__m256i high, __m256i low) {
  const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kFractionBits);
}

// As `blend_row`, 32 bytes at a time. Unpacking and packing both work within lanes, so that the order comes out right.
AFD_TARGET_AVX2 void blend_row_avx2(const std::uint8_t* rows, std::size_t stride, const std::int32_t* weights,
                                    std::uint32_t count, std::size_t bytes, std::uint8_t* out) {
  constexpr std::size_t kAtOnce = 32;
  const std::size_t in_vectors = bytes / kAtOnce * kAtOnce;
  const __m256i zero = _mm256_setzero_si256();
  for (std::size_t i = 0; i < in_vectors; i += kAtOnce) {
    __m256i high[4] = {zero, zero, zero, zero};
    __m256i low[4] = {zero, zero, zero, zero};
    for (std::uint32_t k = 0; k < count; k += 2) {
      const std::uint8_t* first = rows + k * stride + i;
      const WeightPair pair(weights[k], k + 1 < count ? weights[k + 1] : 0);
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(k + 1 < count ? first + stride : first));
      const __m256i lower = _mm256_unpacklo_epi8(a, b);
      const __m256i upper = _mm256_unpackhi_epi8(a, b);
      const __m256i words[4] = {_mm256_unpacklo_epi8(lower, zero), _mm256_unpackhi_epi8(lower, zero),
                                _mm256_unpacklo_epi8(upper, zero), _mm256_unpackhi_epi8(upper, zero)};
      const __m256i high_weights = _mm256_set1_epi32(pair.high);
      const __m256i low_weights = _mm256_set1_epi32(pair.low);
      for (int part = 0; part < 4; ++part) {
        high[part] = _mm256_add_epi32(high[part], _mm256_madd_epi16(words[part], high_weights));
        low[part] = _mm256_add_epi32(low[part], _mm256_madd_epi16(words[part], low_weights));
      }
    }
    const __m256i first = _mm256_packs_epi32(whole_sums(high[0], low[0]), whole_sums(high[1], low[1]));
    const __m256i second = _mm256_packs_epi32(whole_sums(high[2], low[2]), whole_sums(high[3], low[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_packus_epi16(first, second));
  }
  blend_row(rows + in_vectors, stride, weights, count, bytes - in_vectors, out + in_vectors);
}

// As `blend_row`.
AFD_TARGET_AVX512 void blend_row_avx512(const std::uint8_t* rows, std::size_t stride, const std::int32_t* weights,
                                        std::uint32_t count, std::size_t bytes, std::uint8_t* out) {
  constexpr __mmask32 kAllWords = 0xFFFFFFFF;
  constexpr std::size_t kAtOnce = 32;  // bytes
  constexpr int kParts = 2;            // of so many bytes, for which each pair of weights is made once
  for (std::size_t i = 0; i < bytes; i += kParts * kAtOnce) {
    __mmask32 masks[kParts];
    __m512i high[kParts][2];
    __m512i low[kParts][2];
    for (int part = 0; part < kParts; ++part) {
      const std::size_t begin = i + part * kAtOnce;
      const std::size_t left = bytes - std::min(begin, bytes);
      masks[part] = left < kAtOnce ? (__mmask32{1} << left) - 1 : kAllWords;
      high[part][0] = high[part][1] = low[part][0] = low[part][1] = _mm512_setzero_si512();
    }
    for (std::uint32_t k = 0; k < count; k += 2) {
      const bool paired = k + 1 < count;
      const WeightPair pair(weights[k], paired ? weights[k + 1] : 0);
      const __m512i high_weights = _mm512_set1_epi32(pair.high);
      const __m512i low_weights = _mm512_set1_epi32(pair.low);
      const std::uint8_t* first = rows + k * stride + i;
      const std::uint8_t* second = paired ? first + stride : first;
      for (int part = 0; part < kParts; ++part, first += kAtOnce, second += kAtOnce) {
        const __m512i a = _mm512_maskz_cvtepu8_epi16(kAllWords, _mm256_maskz_loadu_epi8(masks[part], first));
        const __m512i b = _mm512_maskz_cvtepu8_epi16(kAllWords, _mm256_maskz_loadu_epi8(masks[part], second));
        const __m512i lower = _mm512_maskz_unpacklo_epi16(kAllWords, a, b);
        const __m512i upper = _mm512_maskz_unpackhi_epi16(kAllWords, a, b);
        high[part][0] = _mm512_dpwssd_epi32(high[part][0], lower, high_weights);
        high[part][1] = _mm512_dpwssd_epi32(high[part][1], upper, high_weights);
        low[part][0] = _mm512_dpwssd_epi32(low[part][0], lower, low_weights);
        low[part][1] = _mm512_dpwssd_epi32(low[part][1], upper, low_weights);
      }
    }
    for (int part = 0; part < kParts; ++part) {
      // Packing undoes what unpacking did to the order.
      const __m512i words = _mm512_maskz_packs_epi32(kAllWords, whole_sums(high[part][0], low[part][0]),
                                                     whole_sums(high[part][1], low[part][1]));
      const __m512i clipped = _mm512_maskz_max_epi16(kAllWords, words, _mm512_setzero_si512());
      _mm256_mask_storeu_epi8(out + i + part * kAtOnce, masks[part], _mm512_maskz_cvtusepi16_epi8(kAllWords, clipped));
    }
  }
}

#endif

}  // namespace

RowResizer::RowResizer(const Axis& axis, Instructions instructions) : kernel_(axis) {
  if (!use_avx2(instructions) || !fits_halves(kernel_)) return;
  if (use_avx512(instructions) && WideGroups::fits(kernel_)) {
    wide_groups_ = std::make_unique<WideGroups>(kernel_);
  } else {
    groups_ = std::make_unique<Groups>(kernel_);
  }
}

RowResizer::~RowResizer() = default;

void RowResizer::resize(const SourceRows& rows, std::uint32_t count, std::uint8_t* out) const {
  const auto size = static_cast<std::uint32_t>(kernel_.reaches.size());
  const std::size_t row_bytes = std::size_t{3} * size;
  const std::uint8_t* row = rows.first;
  std::uint32_t y = 0;
#ifdef AFD_HAS_AVX2
  if (wide_groups_) {
    for (; y + 4 <= count; y += 4, row += 4 * rows.stride, out += 4 * row_bytes) {
      resize_rows_avx512<4>(*wide_groups_, size, row, rows.stride, rows.column, out);
    }
  }
  if (groups_) {
    for (; y + 4 <= count; y += 4, row += 4 * rows.stride, out += 4 * row_bytes) {
      resize_4_rows_avx2(kernel_, groups_->halves.data(), groups_->halves_per_result, row, rows.stride, rows.column,
                         out);
    }
  }
#endif
  for (; y < count; ++y, row += rows.stride, out += row_bytes) {
#ifdef AFD_HAS_AVX2
    if (wide_groups_) {
      resize_rows_avx512<1>(*wide_groups_, size, row, rows.stride, rows.column, out);
      continue;
    }
    if (groups_) {
      resize_row_avx2(kernel_, groups_->halves.data(), groups_->halves_per_result, row, rows.column, out);
      continue;
    }
#endif
    resize_row(kernel_, row, rows.column, out);
  }
}

void blend_rows(const SourceRows& rows, std::uint32_t first_row, const Axis& axis, std::size_t bytes,
                Instructions instructions, std::uint8_t* out) {
  const Kernel kernel(axis);
  auto* blend = blend_row;
#ifdef AFD_HAS_AVX2
  if (use_avx2(instructions) && fits_halves(kernel)) {
    blend = use_avx512(instructions) ? blend_row_avx512 : blend_row_avx2;
  }
#endif
  (void)instructions;
  for (std::uint32_t i = 0; i < axis.size(); ++i, out += bytes) {
    const Reach reach = kernel.reaches[i];
    const std::uint8_t* first = rows.first + std::size_t{reach.first - first_row} * rows.stride;
    blend(first, rows.stride, kernel.of(i), reach.end - reach.first, bytes, out);
  }
}

}  // namespace afd
