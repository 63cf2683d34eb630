#pragma once

#include <cstddef>
#include <cstdint>

namespace afd {

// EXIF orientation (1 to 8) in the payload of an APP1 segment; 0 if the segment is not EXIF or does not say.
int exif_orientation(const std::uint8_t* payload, std::size_t size);

}  // namespace afd
