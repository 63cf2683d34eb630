#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
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
// The caller's thread asks `is_interrupted`, where there is one, before each of its pictures; once it says so, no
// thread begins another one, and the result holds anything.
std::vector<BatchItem> read_batch(const std::vector<Input>& inputs, const Limits& limits, bool tolerant,
                                  const ReadOptions& options, std::size_t threads,
                                  const std::function<bool()>& is_interrupted = {});

}  // namespace afd
