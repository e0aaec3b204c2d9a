// Threads of the CPU's kernels: whoever calls a library lends them.
#pragma once
#include <atomic>
#include <cstdint>

#include "phases.h"
#include "simd.h"

namespace fastconv1d {

// The third argument of `fastconv1d_launch` on the CPU, where `ConvArgs::multiprocessors` is the number of threads.
struct Parallel {
  // Calls body(data, worker) for each worker, 0 <= worker < workers, in threads of its own choice.
  void (*run)(int64_t workers, void (*body)(void* data, int64_t worker), void* data);
};

// Calls work(task, worker) for each task, with workers taking turns as they become free. A task computes the same
// whoever does it, so that results know nothing of threads.
template <class Work>
void for_each(const Parallel& parallel, int64_t threads, int64_t tasks, const Work& work) {
  struct Shared {
    const Work& work;
    int64_t tasks, at_once;
    std::atomic<int64_t> next{0};
  };
  const int64_t workers = smaller(threads, tasks);
  Shared shared{work, tasks, larger(1, tasks / (larger(1, workers) * 16))};
  const auto body = [](void* data, int64_t worker) {
    auto& s = *static_cast<Shared*>(data);
    while (true) {
      const int64_t first = s.next.fetch_add(s.at_once, std::memory_order_relaxed);
      if (first >= s.tasks) return;
      for (int64_t task = first; task < smaller(first + s.at_once, s.tasks); ++task)
        s.work(task, worker);
    }
  };
  if (workers <= 1)
    body(&shared, 0);
  else
    parallel.run(workers, body, &shared);
}

}  // namespace fastconv1d

// The C interface of a library: templates of the element's type.
#define FASTCONV1D_CPU_LIBRARY(launch, workspace)                                            \
  extern "C" int fastconv1d_launch(int64_t, const fastconv1d::ConvArgs* a, void* parallel) { \
    const auto& threads = *static_cast<const fastconv1d::Parallel*>(parallel);               \
    switch (a->mode) {                                                                       \
      case fastconv1d::kIeee:                                                                \
        return launch<float>(*a, threads), 0;                                                \
      case fastconv1d::kBf16:                                                                \
        return launch<fastconv1d::Bf16>(*a, threads), 0;                                     \
      case fastconv1d::kFp16:                                                                \
        return launch<fastconv1d::Fp16>(*a, threads), 0;                                     \
      default:                                                                               \
        return launch<double>(*a, threads), 0;                                               \
    }                                                                                        \
  }                                                                                          \
  extern "C" int64_t fastconv1d_workspace(int64_t, const fastconv1d::ConvArgs* a) {          \
    switch (a->mode) {                                                                       \
      case fastconv1d::kIeee:                                                                \
        return workspace<float>(*a);                                                         \
      case fastconv1d::kBf16:                                                                \
        return workspace<fastconv1d::Bf16>(*a);                                              \
      case fastconv1d::kFp16:                                                                \
        return workspace<fastconv1d::Fp16>(*a);                                              \
      default:                                                                               \
        return workspace<double>(*a);                                                        \
    }                                                                                        \
  }
