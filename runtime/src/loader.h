// The resident part of the stack, and the thread that makes it grow.
//
// Growth is the loader's: it reads whole pages above what is loaded, without the lock, and publishes whole blocks under
// it. A shrink gives the pages above a rung back; what the system does not take back stays counted, and is tried again.
#pragma once
#include <pthread.h>

#include "file.h"
#include "kernels/kernels.h"
#include "platform.h"

struct qd_model;

namespace qd {

struct Stack {
  Range memory;
  uint64_t granule = 4096;     // in which its memory comes and goes: a page of the system
  TermView* views = nullptr;   // one per term, in the directory; where its planes lie, of no rung
  uint32_t have = 0;           // blocks that are loaded and checked
  uint64_t loaded = 0;         // bytes, from the start
  uint64_t in_flight = 0;      // bytes behind them that the loader is reading
  uint64_t kept = 0;           // end of what the system did not take back; 0: it took everything
};

struct Loader {
  pthread_t thread{};
  bool started = false, stop = false, reading = false;
  uint32_t broken = format::kNone;  // the first block that cannot be loaded
  qd_status broken_status = QD_OK;
};

uint64_t stack_cost(const File& file, uint32_t rung);  // bytes of a rung: whole pages of the file
uint64_t stack_held(const qd_model& model, uint64_t stack_bytes);  // what these take: whole pages of the system
uint64_t stack_now(const qd_model& model);                         // what is held now; wants the lock

// Reads, and unless told not to, checks the pages of [at, at + n) of the file; `at` is on a page.
qd_status read_pages(const qd_model& model, uint64_t at, uint8_t* to, uint64_t n, qd_error* err);
// At open: all that the budget wants, by all threads.
qd_status load_now(qd_model& model, qd_error* err);
bool start_loader(qd_model& model);
void stop_loader(qd_model& model);
// Gives what is above the goal back, unless a step runs. Wants the lock, as does `shrink_waits`: whether a step keeps it
// from doing so.
void shrink_locked(qd_model& model);
bool shrink_waits(const qd_model& model);
uint32_t goal(const qd_model& model);  // blocks that there are to be
bool is_loading(const qd_model& model);

}  // namespace qd
