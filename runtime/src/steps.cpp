#include "steps.h"

#include <new>

#include "model.h"

namespace qd {
namespace {

void put_back(Steps& s, Workspace* w) {
  w->next = s.idle;
  s.idle = w;
}

// Another workspace, where what it takes changes nothing else; null where it would.
Workspace* make_another(qd_model& m) {
  Steps& s = m.steps;
  uint64_t planned = base_locked(m) + stack_held(m, stack_cost(m.file, m.budget.want));
  uint64_t held = total_locked(m) > planned ? total_locked(m) : planned;
  if (!(Checked(held) + s.bytes).at_most(m.budget.bytes)) return nullptr;
  Workspace* w = new (std::nothrow) Workspace;
  if (w == nullptr || !make_workspace(m, s.first.tokens, w)) {
    delete w;
    return nullptr;
  }
  ++s.extra;
  note_peak_locked(m);
  return w;
}

Workspace* take(qd_model& m) {
  Workspace* w = m.steps.idle;
  if (w == nullptr) return make_another(m);
  m.steps.idle = w->next;
  return w;
}

void drop(qd_model& m, Workspace* w) {
  m.budget.lost += w->memory.reset();
  --m.steps.extra;
  delete w;
}

}  // namespace

bool make_steps(qd_model& m) {
  Steps& s = m.steps;
  if (!make_workspace(m, m.settings.max_chunk, &s.first)) return false;
  s.bytes = s.first.memory.bytes;
  put_back(s, &s.first);
  return true;
}

void drop_idle_locked(qd_model& m) {
  Steps& s = m.steps;
  Workspace* w = s.idle;
  s.idle = nullptr;
  while (w != nullptr) {
    Workspace* next = w->next;
    if (w == &s.first) put_back(s, w);
    else drop(m, w);
    w = next;
  }
}

Turn begin_step(qd_model& m, Workspace* own) {
  std::unique_lock<std::mutex> lock(m.state);
  for (;;) {
    shrink_locked(m);
    Workspace* w = shrink_waits(m) ? nullptr : own ? own : take(m);
    if (w != nullptr) {
      ++m.steps.running;
      return {m.stack.have, w};
    }
    m.changed.wait(lock);
  }
}

void end_step(qd_model& m, const Turn& turn, const Workspace* own) {
  std::lock_guard<std::mutex> lock(m.state);
  Steps& s = m.steps;
  --s.running;
  bool more = m.budget.open_sessions > 1 && total_locked(m) <= m.budget.bytes;
  if (own == nullptr) put_back(s, turn.workspace);
  if (own == nullptr && turn.workspace != &s.first && !more) drop_idle_locked(m);
  if (total_locked(m) > m.budget.bytes) replan_locked(m);
  else shrink_locked(m);
  m.changed.notify_all();
}

}  // namespace qd
