// The thread that follows what the system says about memory.
#pragma once
#include <pthread.h>

#include <cstdint>
#include <mutex>

struct qd_model;

namespace qd {

struct Pressure {
  std::mutex switching;  // of on and thread: held by who turns it on or off, until the thread has ended
  bool on = false;
  pthread_t thread{};
  bool stop = false;  // under the model's lock
  uint64_t most = 0;  // the budget that there was when it began
};

void stop_pressure(qd_model& m);

}  // namespace qd
