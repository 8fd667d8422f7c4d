#include "pool.h"

#include <sched.h>

namespace qd {
namespace {

constexpr int kSpins = 4000;  // some ten microseconds: the gap between two nodes, not that between two steps

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

bool Pool::start(uint32_t threads) {
  threads_ = threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads;
  for (uint32_t i = 1; i < threads_; ++i) {
    workers_[i].pool = this;
    workers_[i].index = i;
    if (!start_thread(&workers_[i].thread, work, &workers_[i])) return false;
    started_ = i;
  }
  return true;
}

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (uint32_t i = 1; i <= started_; ++i) pthread_join(workers_[i].thread, nullptr);
  started_ = 0;
}

void Pool::share(uint32_t thread) {
  uint64_t part = count_ / threads_, rest = count_ % threads_;  // count * thread may not fit
  uint64_t begin = part * thread + rest * thread / threads_, end = part * (thread + 1) + rest * (thread + 1) / threads_;
  if (begin < end) body_(ctx_, thread, begin, end);
}

bool Pool::wait_for_work(uint32_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (generation_.load(std::memory_order_acquire) != seen) return !stop_.load();
    relax();
  }
  std::unique_lock<std::mutex> lock(mutex_);
  while (generation_.load(std::memory_order_acquire) == seen) wake_.wait(lock);
  return !stop_.load();
}

void* Pool::work(void* ctx) {
  Worker& self = *static_cast<Worker*>(ctx);
  for (uint32_t seen = 0; self.pool->wait_for_work(seen);) {
    ++seen;  // a generation ends only when all have taken part, so none is ever missed
    self.pool->share(self.index);
    self.pool->running_.fetch_sub(1, std::memory_order_release);
  }
  return nullptr;
}

void Pool::run(uint64_t count, Body body, void* ctx) {
  if (threads_ == 1 || count < 2 || !busy_.try_lock()) {
    if (count > 0) body(ctx, 0, 0, count);
    return;
  }
  count_ = count;
  body_ = body;
  ctx_ = ctx;
  running_.store(threads_ - 1, std::memory_order_relaxed);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  share(0);
  for (int i = 0; running_.load(std::memory_order_acquire) != 0; ++i) {
    if (i < kSpins) relax();
    else sched_yield();
  }
  busy_.unlock();
}

}  // namespace qd
