// Threads that share out ranges of rows. The caller takes part. One at a time has the threads: who finds them busy works
// alone, with the same result.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "platform.h"

namespace qd {

class Pool {
 public:
  using Body = void (*)(void* ctx, uint32_t thread, uint64_t begin, uint64_t end);
  bool start(uint32_t threads);
  void stop();
  uint32_t threads() const { return threads_; }
  void run(uint64_t count, Body body, void* ctx);

  // fn(thread, begin, end): one contiguous range of [0, count) for each thread.
  template <class F>
  void parallel_for(uint64_t count, F& fn) {
    run(
        count,
        [](void* ctx, uint32_t thread, uint64_t begin, uint64_t end) { (*static_cast<F*>(ctx))(thread, begin, end); },
        &fn);
  }

 private:
  struct Worker {
    Pool* pool;
    uint32_t index;
    pthread_t thread;
  };
  static void* work(void* worker);
  bool wait_for_work(uint32_t seen);
  void share(uint32_t thread);

  static constexpr uint32_t kMaxThreads = 64;
  Worker workers_[kMaxThreads];
  uint32_t threads_ = 1, started_ = 0;
  std::atomic<uint32_t> generation_{0}, running_{0};
  std::atomic<bool> stop_{false};
  std::mutex busy_;  // held by who has the threads
  std::mutex mutex_;
  std::condition_variable wake_;
  uint64_t count_ = 0;
  Body body_ = nullptr;
  void* ctx_ = nullptr;
};

}  // namespace qd
