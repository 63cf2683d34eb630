#include "batch.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace afd {

// Threads are made for each call: a pool that outlives it would not survive a fork, and servers fork. They take the
// next picture whenever they are free, because pictures differ in size.
std::vector<BatchItem> read_batch(const std::vector<Input>& inputs, const Limits& limits, bool tolerant,
                                  const ReadOptions& options, std::size_t threads,
                                  const std::function<bool()>& is_interrupted) {
  std::vector<BatchItem> items(inputs.size());
  std::atomic<std::size_t> next{0};
  const std::thread::id caller = std::this_thread::get_id();
  const auto read_some = [&] {
    for (std::size_t i = next++; i < inputs.size(); i = next++) {
      if (is_interrupted && std::this_thread::get_id() == caller && is_interrupted()) {
        next = inputs.size();
        return;
      }
      try {
        ReadOptions own_options = options;
        own_options.output = inputs[i].output;
        items[i].picture = JpegReader(inputs[i].data, inputs[i].size, limits, tolerant).read(own_options);
      } catch (...) {
        items[i].failure = std::current_exception();
      }
    }
  };

  std::vector<std::thread> others;
  const std::size_t wanted = std::min(threads, inputs.size());
  try {
    others.reserve(wanted);
    while (others.size() + 1 < wanted) others.emplace_back(read_some);
  } catch (const std::exception&) {
    // The system has no more threads or no memory for them: those that run do the work.
  }
  read_some();
  for (std::thread& other : others) other.join();
  return items;
}

}  // namespace afd
