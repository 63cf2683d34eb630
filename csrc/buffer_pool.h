#pragma once

#include <cstddef>

namespace afd {

// Memory for results, aligned to a cache line. A fresh buffer costs a page fault for every 4 KiB, up to half as much as
// decoding a heavily compressed picture: those that were given back are used again, by any thread. Up to 32 MiB of them
// are kept.
//
// Both throw std::bad_alloc.
void* take_buffer(std::size_t size);
void* take_zeroed_buffer(std::size_t size);

void give_back_buffer(void* buffer);

}  // namespace afd
