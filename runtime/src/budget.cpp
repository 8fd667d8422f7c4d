// The budget: what is held, what may be held, and the rung that follows.
#include "budget.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "model.h"

namespace qd {
namespace {

uint64_t workspaces(const qd_model& m) { return m.steps.bytes * (m.steps.first.memory.data ? 1 + m.steps.extra : 0); }

// All but the stack, with one step at a time.
uint64_t floor_base(const qd_model& m) { return base_locked(m) - m.steps.bytes * m.steps.extra; }

// What is held only because the system did not take it back.
uint64_t unreturned_locked(const qd_model& m) {
  return m.budget.lost + stack_now(m) - stack_held(m, m.stack.loaded + m.stack.in_flight);
}

}  // namespace

uint64_t fixed_bytes(const qd_model& m) {
  return m.front.bytes + m.resident.bytes + m.directory.bytes + sizeof m + m.pool.threads() * kStackBytes +
         m.budget.lost;
}

uint64_t base_locked(const qd_model& m) { return fixed_bytes(m) + workspaces(m) + m.budget.sessions + m.budget.caches; }

uint64_t floor_locked(const qd_model& m) {
  return floor_base(m) + stack_held(m, stack_cost(m.file, m.file.header.floor_rung));
}

uint64_t total_locked(const qd_model& m) { return base_locked(m) + prompt_cache_bytes(m) + stack_now(m); }

void note_peak_locked(qd_model& m) { m.budget.peak = std::max(m.budget.peak, total_locked(m)); }

// A step that runs in a workspace of its own beyond a lowered budget gives it back when it ends.
bool pending_locked(const qd_model& m) {
  return is_loading(m) || (m.steps.extra > 0 && total_locked(m) > m.budget.bytes);
}

uint32_t affordable(const qd_model& m, uint64_t base, uint64_t budget) {
  uint32_t low = m.file.header.floor_rung, high = m.file.count(format::kRungs);
  while (low < high) {  // costs rise with the rung
    uint32_t middle = low + (high - low + 1) / 2;
    if (base + stack_held(m, stack_cost(m.file, middle)) <= budget) low = middle;
    else high = middle - 1;
  }
  return low;
}

namespace {

// The prompt cache has what the weights leave, and as a whole no more than a quarter of the machine.
uint64_t prompt_cache_room(const qd_model& m) {
  Checked used = Checked(base_locked(m)) + stack_held(m, stack_cost(m.file, m.budget.want));
  uint64_t room = used.at_most(m.budget.bytes) ? m.budget.bytes - used.value() : 0;
  uint64_t held = m.blocks.count * block_held(m), left = m.blocks.most > held ? m.blocks.most - held : 0;
  return std::min({room, left, machine_bytes() / 4});
}

}  // namespace

void replan_locked(qd_model& m) {
  drop_idle_locked(m);
  m.budget.want = affordable(m, base_locked(m), m.budget.bytes);
  if (m.budget.pinned) m.budget.want = std::min(m.budget.want, m.budget.pinned);
  trim_prompt_cache_locked(m, prompt_cache_room(m));
  shrink_locked(m);
  note_peak_locked(m);
  m.changed.notify_all();
}

}  // namespace qd

using namespace qd;

extern "C" qd_status qd_set_budget(qd_model* m, uint64_t bytes, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_set_budget: no model");
  std::lock_guard<std::mutex> lock(m->state);
  if (bytes == 0) bytes = UINT64_MAX;
  if (bytes < floor_locked(*m)) return fail_floor(err, bytes, floor_locked(*m));
  m->budget.bytes = bytes;
  m->budget.usual = 0;
  m->loader.broken = format::kNone;  // another try
  replan_locked(*m);
  return pending_locked(*m) ? QD_PENDING : QD_OK;
}

// A part of what may be held above the floor, in quarters, by the level; the usual budget comes back with the level 0.
extern "C" qd_status qd_pressure(qd_model* m, qd_level level, qd_error* err) {
  constexpr uint64_t kQuarters[] = {4, 3, 2, 0};
  if (m == nullptr || level < QD_PRESSURE_NONE || level > QD_PRESSURE_CRITICAL)
    return fail(err, QD_BAD_ARGUMENT, "qd_pressure: no model, or no such level");
  std::lock_guard<std::mutex> lock(m->state);
  Budget& budget = m->budget;
  if (budget.usual == 0) budget.usual = budget.bytes;
  uint64_t floor = floor_locked(*m);
  uint64_t whole = base_locked(*m) + stack_held(*m, stack_cost(m->file, m->file.count(format::kRungs)));
  uint64_t most = std::min(budget.usual, whole), above = most > floor ? most - floor : 0;
  budget.bytes = level == QD_PRESSURE_NONE ? budget.usual : floor + above / 4 * kQuarters[level];
  if (level == QD_PRESSURE_NONE) budget.usual = 0;
  replan_locked(*m);
  return pending_locked(*m) ? QD_PENDING : QD_OK;
}

extern "C" qd_status qd_wait_budget(qd_model* m, uint32_t timeout_ms, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_wait_budget: no model");
  auto until = std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms);
  std::unique_lock<std::mutex> lock(m->state);
  while (pending_locked(*m))
    if (m->changed.wait_until(lock, until) == std::cv_status::timeout && pending_locked(*m)) return QD_PENDING;
  const Loader& loader = m->loader;
  if (loader.broken != format::kNone && m->budget.want > loader.broken)
    return fail(err, loader.broken_status, "stack: block %u cannot be loaded; the model runs without it", loader.broken);
  uint64_t kept = unreturned_locked(*m);
  if (kept > 0 && total_locked(*m) > m->budget.bytes)
    return fail(err, QD_NO_MEMORY, "budget: the system does not take %llu bytes back; unlock the memory (munlockall)",
                static_cast<unsigned long long>(kept));
  return QD_OK;
}

extern "C" qd_status qd_set_rung(qd_model* m, uint32_t rung, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_set_rung: no model");
  {
    std::lock_guard<std::mutex> lock(m->state);
    uint32_t low = m->file.header.floor_rung, high = m->file.count(format::kRungs);
    if (rung != 0 && (rung < low || rung > high))
      return fail(err, QD_BAD_ARGUMENT, "rung: found %u, allowed %u to %u, or 0 to let go", rung, low, high);
    uint64_t cost = base_locked(*m) + stack_held(*m, stack_cost(m->file, rung));
    if (rung != 0 && cost > m->budget.bytes) return fail_floor(err, m->budget.bytes, cost);
    m->budget.pinned = rung;
    replan_locked(*m);
  }
  qd_status s = qd_wait_budget(m, 0x7fffffff, err);
  return s;
}

extern "C" qd_status qd_memory_now(const qd_model* m, qd_memory* out) {
  if (m == nullptr || out == nullptr || out->size < offsetof(qd_memory, unreturned)) return QD_BAD_ARGUMENT;
  qd_memory now = QD_INIT(qd_memory);
  now.size = out->size;
  {
    std::lock_guard<std::mutex> lock(m->state);
    now.rungs = m->file.count(format::kRungs);
    now.rung = m->stack.have;
    now.pending = pending_locked(*m);
    now.budget = m->budget.bytes;
    now.total = total_locked(*m);
    now.weights = stack_now(*m);
    now.kv = m->budget.caches + prompt_cache_bytes(*m);
    now.scratch = workspaces(*m) + m->budget.sessions;
    now.fixed = fixed_bytes(*m);
    now.floor = floor_locked(*m);
    now.ceiling = floor_base(*m) + stack_held(*m, stack_cost(m->file, now.rungs));
    now.peak = m->budget.peak;
    now.unreturned = unreturned_locked(*m);
    now.prompt_cache = prompt_cache_bytes(*m);
  }
  std::memcpy(out, &now, std::min<size_t>(out->size, sizeof now));  // of an older program: without the newer fields
  return QD_OK;
}

extern "C" qd_status qd_rung_at(const qd_model* m, uint32_t index, qd_rung* out) {
  if (m == nullptr || out == nullptr || out->size < sizeof *out || index > m->file.count(format::kRungs))
    return QD_BAD_ARGUMENT;
  out->index = index;
  out->bytes = index ? m->file.rungs[index - 1].bytes : 0;
  out->error = index ? m->file.rungs[index - 1].error : 0;
  return QD_OK;
}

extern "C" qd_status qd_plan(const qd_model* m, uint64_t budget, qd_rung* out, qd_error* err) {
  if (m == nullptr || out == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_plan: a null pointer");
  uint32_t rung;
  {
    std::lock_guard<std::mutex> lock(m->state);
    if (budget == 0) budget = UINT64_MAX;
    if (budget < floor_locked(*m)) return fail_floor(err, budget, floor_locked(*m));
    rung = affordable(*m, floor_base(*m), budget);
  }
  return qd_rung_at(m, rung, out);
}
