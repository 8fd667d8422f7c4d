// What may be held, what is held, and which rung that makes. Those with `_locked` want the model's lock.
#pragma once
#include <cstdint>

#include "checked.h"

struct qd_model;

namespace qd {

struct Budget {
  uint64_t bytes = 0;                  // what may be held
  uint64_t usual = 0;                  // the same without pressure; 0: there is none
  uint64_t caches = 0, sessions = 0;   // bytes of the sessions: key/value caches, and the rest
  uint64_t lost = 0;                   // bytes of closed sessions that the system did not take back
  uint64_t peak = 0;
  uint32_t want = 0;                   // blocks that it pays for
  uint32_t pinned = 0;                 // at most so many; 0: as many as it pays for
  uint32_t open_sessions = 0;
};

uint64_t fixed_bytes(const qd_model& m);
uint64_t base_locked(const qd_model& m);   // all but the stack and the prompt cache, which is dropped before it
uint64_t floor_locked(const qd_model& m);  // the least that works, with one step at a time
uint64_t total_locked(const qd_model& m);
bool pending_locked(const qd_model& m);
uint32_t affordable(const qd_model& m, uint64_t base, uint64_t budget);
void replan_locked(qd_model& m);           // sets want, shrinks if it may, wakes the loader
void note_peak_locked(qd_model& m);

}  // namespace qd
