// A model: the file's tables, its resident part, and as much of the stack as the budget allows.
//
// Growing and shrinking. `want` is how many blocks the budget pays for, `have` how many are loaded and checked; a step
// uses the `have` of its start. A shrink is applied when no step runs: by whoever lowers the budget, or by the end of
// the step. Growth is the loader's: it reads whole pages above what is loaded, without the lock, and publishes whole
// blocks under it.
#pragma once
#include <condition_variable>
#include <mutex>

#include "file.h"
#include "kernels/kernels.h"
#include "pool.h"
#include "source.h"
#include "workspace.h"

struct qd_model {
  qd_source source{};
  qd::File file;
  const qd::Kernels* kernels = nullptr;
  qd_kv_dtype cache = QD_KV_F16;
  uint64_t granule = qd::kSmallPage;  // of the stack's memory: a page of the system
  bool exact = false, verify = true, grow = true;
  uint32_t max_chunk = 64;

  qd::Range front, resident, stack, view_memory;
  qd::TermView* views = nullptr;  // one per term; of the last step's rung
  uint32_t views_rung = 0;
  qd::Pool pool;
  qd::Workspace workspace;  // decoders: shared by the sessions; encoders have one per session

  std::mutex step;           // one step at a time
  mutable std::mutex state;  // what follows
  std::condition_variable changed;
  bool running = false, loading = false, stop = false, loader_started = false;
  uint32_t want = 0, have = 0, pinned = 0, broken = qd::format::kNone, sessions = 0;
  qd_status broken_status = QD_OK;
  uint64_t budget = 0, loaded = 0, in_flight = 0, kv = 0, session_scratch = 0, peak = 0;
  pthread_t loader{};

  pthread_t pressure{};
  bool pressure_on = false, pressure_stop = false;  // under `state`
  uint64_t pressure_most = 0;

  const float* floats(uint32_t tensor) const {
    return tensor == qd::format::kNone ? nullptr
                                       : reinterpret_cast<const float*>(resident.data + file.tensors[tensor].at);
  }
  const int32_t* ints(uint32_t tensor) const { return reinterpret_cast<const int32_t*>(floats(tensor)); }
};

namespace qd {

// Reads, and unless told not to, checks the pages of [at, at + n) of the file; `at` is on a page.
qd_status read_pages(const qd_model& m, uint64_t at, uint8_t* to, uint64_t n, qd_error* err);
// At open: the stack's bytes [0, to) by all threads, each page once.
qd_status read_stack(qd_model& m, uint64_t to, qd_error* err);
uint64_t stack_cost(const File& file, uint32_t rung);  // bytes of a rung: whole pages of the file
uint64_t held(const qd_model& m,
              uint64_t stack_bytes);  // what so many bytes of the stack take: whole pages of the system

// ---- budget.cpp; those with `_locked` want m.state held
uint64_t fixed_bytes(const qd_model& m);
uint64_t base_locked(const qd_model& m);   // all but the stack
uint64_t floor_locked(const qd_model& m);
uint64_t total_locked(const qd_model& m);
bool pending_locked(const qd_model& m);
uint32_t affordable(const qd_model& m, uint64_t base, uint64_t budget);
void replan_locked(qd_model& m);           // sets want, shrinks if it may, wakes the loader
qd_status load_now(qd_model& m, qd_error* err);  // at open: up to `want`
void* load_loop(void* model);
uint32_t begin_step(qd_model& m);          // takes m.step; the rung of the step
void end_step(qd_model& m);
void stop_pressure(qd_model& m);

}  // namespace qd
