#pragma once

// All that a caller can observe of a decode, for tests that compare decoders.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../jpeg_reader.h"

namespace afd {

struct Outcome {
  bool operator==(const Outcome& other) const {
    return failure == other.failure && message == other.message && coefficients == other.coefficients &&
           quant_tables == other.quant_tables && samples == other.samples && warnings == other.warnings &&
           warning_count == other.warning_count;
  }

  std::optional<ErrorKind> failure;
  std::string message;
  std::vector<JCOEF> coefficients;  // the whole arena, with its padding
  std::vector<QuantTable> quant_tables;
  std::vector<std::uint8_t> samples;
  std::vector<std::string> warnings;
  std::size_t warning_count = 0;
};

inline Outcome outcome_of(const std::uint8_t* data, std::size_t size, const Limits& limits, bool tolerant,
                          const ReadOptions& options) {
  Outcome outcome;
  try {
    const Picture picture = JpegReader(data, size, limits, tolerant).read(options);
    const JCOEF* first = picture.coefficients->plane(0);
    outcome.coefficients.assign(first, first + picture.coefficients->size_bytes() / sizeof(JCOEF));
    for (const Component& component : picture.header.components) outcome.quant_tables.push_back(*component.quant_table);
    if (picture.pixels) {
      const std::uint8_t* samples = picture.pixels->samples.get();
      outcome.samples.assign(samples, samples + std::size_t{3} * picture.pixels->width * picture.pixels->height);
    }
    outcome.warnings = picture.warnings;
    outcome.warning_count = picture.warning_count;
  } catch (const JpegFailure& failure) {
    outcome.failure = failure.kind();
    outcome.message = failure.what();
  }
  return outcome;
}

// Whether our decoders, on any processor, do what libjpeg's does.
inline bool decoders_agree(const std::uint8_t* data, std::size_t size, const Limits& limits, bool tolerant,
                           ReadOptions options) {
  options.decoder = Decoder::kLibjpeg;
  const Outcome expected = outcome_of(data, size, limits, tolerant, options);
  for (const Decoder decoder : {Decoder::kFastest, Decoder::kPortable}) {
    options.decoder = decoder;
    if (!(outcome_of(data, size, limits, tolerant, options) == expected)) return false;
  }
  return true;
}

}  // namespace afd
