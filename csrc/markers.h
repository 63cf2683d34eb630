#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace afd {

// Gets what follows the marker of a scan, from its length to the end of the file.
using LookAtScan = std::function<void(const std::uint8_t* segment, std::size_t size)>;

// Scans (SOS markers) that the file announces, counted without decoding, up to `stop_after`; `look` sees each.
std::uint64_t count_scans(const std::uint8_t* data, std::size_t size, std::uint64_t stop_after,
                          const LookAtScan& look = {});

}  // namespace afd
