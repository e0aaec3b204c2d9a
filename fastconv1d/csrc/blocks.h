// Memory for large outputs on the CPU. The system maps fresh memory page by page, 4 KiB each, when it is first touched,
// and clears it: more work than many convolutions are. So blocks are whole huge pages, where the system offers these,
// and some that were freed are kept for the next output.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastconv1d {

struct Block {
  void* address;
  size_t bytes;
};

class Blocks {
 public:
  static constexpr size_t kPage = size_t{2} << 20, kKept = size_t{256} << 20;

  // Null where the system gives none.
  Block* take(size_t bytes) {
    bytes = (bytes + kPage - 1) / kPage * kPage;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // The smallest that is large enough, but not by much.
      auto best = free_.end();
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if ((*it)->bytes >= bytes && (*it)->bytes <= bytes + bytes / 4 &&
            (best == free_.end() || (*it)->bytes <= (*best)->bytes))
          best = it;
      if (best != free_.end()) {
        Block* const found = best->release();
        free_.erase(best);
        kept_ -= found->bytes;
        return found;
      }
    }
    void* const address = map(bytes);
    return address == nullptr ? nullptr : new Block{address, bytes};
  }

  // Keeps a block, and of those kept lets the oldest go that are too many.
  void give(Block* block) {
    std::vector<std::unique_ptr<Block>> leaving;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      kept_ += block->bytes;
      free_.emplace_back(block);
      while (kept_ > kKept) {
        kept_ -= free_.front()->bytes;
        leaving.push_back(std::move(free_.front()));
        free_.erase(free_.begin());
      }
    }
    for (const auto& one : leaving) unmap(one->address, one->bytes);
  }

 private:
#if defined(__linux__)
  static void* map(size_t bytes) {
    void* const mapped =
        mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    const auto first = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t begin = (first + kPage - 1) / kPage * kPage;
    if (begin > first) munmap(mapped, begin - first);
    munmap(reinterpret_cast<void*>(begin + bytes), first + kPage - begin);
    auto* const address = reinterpret_cast<void*>(begin);
#if defined(MADV_HUGEPAGE)
    (void)madvise(address, bytes, MADV_HUGEPAGE);  // the system may refuse: pages are small then
#endif
    return address;
  }
  static void unmap(void* address, size_t bytes) { munmap(address, bytes); }
#else
  static void* map(size_t) { return nullptr; }
  static void unmap(void*, size_t) {}
#endif

  std::mutex mutex_;
  std::vector<std::unique_ptr<Block>> free_;
  size_t kept_ = 0;
};

}  // namespace fastconv1d
