#include "buffer_pool.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>

namespace afd {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kSmallestKept = std::size_t{64} << 10;  // malloc reuses smaller ones well
constexpr std::size_t kGranularity = std::size_t{64} << 10;   // so that pictures of similar size share buffers
constexpr std::size_t kMaxKeptBytes = std::size_t{32} << 20;
constexpr int kMaxKept = 16;

// AddressSanitizer is to see whether a result is used after its end.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define AFD_ADDRESS_SANITIZER 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(AFD_ADDRESS_SANITIZER)
constexpr bool kKeeps = false;
#else
constexpr bool kKeeps = true;
#endif

// Lies right in front of a buffer.
struct alignas(kAlignment) BufferHeader {
  void* allocation;
  std::size_t capacity;
};

// The buffers that were given back, the oldest first. Only ever locked by trying, and whoever fails does without: a
// fork may copy the lock while another thread holds it.
class BufferPool {
 public:
  // The smallest buffer that fits; null if none does without wasting half of itself.
  BufferHeader* take(std::size_t size) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    int best = -1;
    for (int i = 0; i < count_; ++i) {
      const std::size_t capacity = kept_[i]->capacity;
      const bool fits = capacity >= size && capacity / 2 <= size;
      if (fits && (best < 0 || capacity < kept_[best]->capacity)) best = i;
    }
    return best < 0 ? nullptr : remove(best);
  }

  // Whether the pool has taken the buffer.
  bool keep(BufferHeader* header) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!kKeeps || !lock || header->capacity > kMaxKeptBytes) return false;
    while (count_ == kMaxKept || kept_bytes_ + header->capacity > kMaxKeptBytes) std::free(remove(0)->allocation);
    kept_[count_++] = header;
    kept_bytes_ += header->capacity;
    return true;
  }

 private:
  BufferHeader* remove(int index) {
    BufferHeader* header = kept_[index];
    std::copy(kept_ + index + 1, kept_ + count_, kept_ + index);
    --count_;
    kept_bytes_ -= header->capacity;
    return header;
  }

  std::mutex mutex_;
  BufferHeader* kept_[kMaxKept] = {};
  int count_ = 0;
  std::size_t kept_bytes_ = 0;
};

// Never destroyed: results may be given back while the process ends.
BufferPool& pool() {
  static BufferPool* const instance = new BufferPool;
  return *instance;
}

// Large memory comes in large pages where the system has them: a page fault for every 2 MiB instead of every 4 KiB. For
// the coefficients and pixels of 12 megapixels those would take longer than the decode.
void prefer_large_pages(void* memory, std::size_t size) {
#ifdef __linux__
  constexpr std::uintptr_t kLargePage = std::uintptr_t{2} << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (address + kLargePage - 1) / kLargePage * kLargePage;
  const std::uintptr_t end = (address + size) / kLargePage * kLargePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a hint: it may fail
#else
  (void)memory;
  (void)size;
#endif
}

// calloc where zeros are wanted, because the kernel hands out large buffers as zero pages: blocks that are never
// decoded cost nothing.
BufferHeader* allocate(std::size_t size, bool zeroed) {
  constexpr std::size_t kExtra = sizeof(BufferHeader) + kAlignment;
  if (size > std::numeric_limits<std::size_t>::max() - kExtra - kGranularity) throw std::bad_alloc();
  const std::size_t capacity = size < kSmallestKept ? size : (size + kGranularity - 1) / kGranularity * kGranularity;
  void* allocation = zeroed ? std::calloc(capacity + kExtra, 1) : std::malloc(capacity + kExtra);
  if (allocation == nullptr) throw std::bad_alloc();
  prefer_large_pages(allocation, capacity);
  const auto address = reinterpret_cast<std::uintptr_t>(allocation);
  void* aligned = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  return new (aligned) BufferHeader{allocation, capacity};
}

}  // namespace

void* take_buffer(std::size_t size) {
  BufferHeader* header = size >= kSmallestKept ? pool().take(size) : nullptr;
  if (header == nullptr) header = allocate(size, false);
  return header + 1;
}

void* take_zeroed_buffer(std::size_t size) {
  BufferHeader* header = size >= kSmallestKept ? pool().take(size) : nullptr;
  if (header == nullptr) return allocate(size, true) + 1;
  return std::memset(header + 1, 0, size);
}

void give_back_buffer(void* buffer) {
  if (buffer == nullptr) return;
  BufferHeader* header = static_cast<BufferHeader*>(buffer) - 1;
  if (header->capacity >= kSmallestKept && pool().keep(header)) return;
  std::free(header->allocation);
}

}  // namespace afd
