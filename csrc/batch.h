#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "jpeg_reader.h"

namespace afd {

// Bytes that the caller keeps alive and unchanged, and where their picture goes.
struct Input {
  const std::uint8_t* data;
  std::size_t size;
  Output output = {};
};

struct BatchItem {
  Picture picture;
  std::exception_ptr failure;  // JpegFailure or std::bad_alloc; null if there is a picture
};

// Reads each input as JpegReader does, in up to `threads` threads, one of which is the caller's; in the inputs' order.
std::vector<BatchItem> read_batch(const std::vector<Input>& inputs, const Limits& limits, bool tolerant,
                                  const ReadOptions& options, std::size_t threads);

}  // namespace afd
