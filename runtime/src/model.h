// A model: its file, its settings, as much of its stack as the budget allows, and the steps that run on it. Each part has a
// file of its own.
#pragma once
#include <condition_variable>
#include <mutex>

#include "blocks.h"
#include "budget.h"
#include "cache.h"
#include "file.h"
#include "kernels/kernels.h"
#include "loader.h"
#include "pool.h"
#include "pressure.h"
#include "source.h"
#include "steps.h"

namespace qd {

struct Settings {  // as it was opened
  const Kernels* kernels = nullptr;
  qd_kv_dtype cache = QD_KV_F16;
  bool exact = false, verify = true, grow = true;
  uint32_t max_chunk = 64;
};

}  // namespace qd

struct qd_model {
  qd_source source{};
  qd::Settings settings;
  qd::Range front, directory, resident;  // bytes of the file, what was made of its records, and its small tensors
  qd::File file;
  qd::CachePlan cache;
  qd::Pool pool;

  mutable std::mutex state;  // of what follows
  std::condition_variable changed;
  qd::Stack stack;
  qd::Loader loader;
  qd::Budget budget;
  qd::BlockPool blocks;
  qd::Steps steps;

  qd::Pressure pressure;  // has a lock of its own

  const float* floats(uint32_t tensor) const {
    return tensor == qd::format::kNone ? nullptr
                                       : reinterpret_cast<const float*>(resident.data + file.tensors[tensor].at);
  }
  const int32_t* ints(uint32_t tensor) const { return reinterpret_cast<const int32_t*>(floats(tensor)); }
};
