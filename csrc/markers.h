#pragma once

#include <cstddef>
#include <cstdint>

namespace afd {

// Scans (SOS markers) that the file announces, counted without decoding, up to `stop_after`.
std::uint64_t count_scans(const std::uint8_t* data, std::size_t size, std::uint64_t stop_after);

}  // namespace afd
