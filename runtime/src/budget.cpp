// The budget: what is held, what may be held, and the loader that makes up the difference.
#include <algorithm>
#include <chrono>

#include "model.h"

namespace qd {
namespace {

using format::kPage;
constexpr uint64_t kReadBytes = 16 * kPage;  // a shrink never waits longer for the loader than this takes

uint32_t goal(const qd_model& m) { return std::min(m.want, m.broken); }

// Whole pages of the system within the stack's bytes [from, to); what comes behind `to` is not there.
void give_back(qd_model& m, uint64_t from, uint64_t to) {
  uint64_t first = held(m, from), end = held(m, to);
  if (first < end) decommit(m.stack.data + first, end - first);
}

// The pages above `cost` go back. What the loader is reading into lies above m.loaded and is its own to give back.
void shrink_locked(qd_model& m) {
  uint32_t rung = goal(m);
  uint64_t cost = stack_cost(m.file, rung);
  if (m.running || (rung >= m.have && m.loaded <= cost)) return;
  if (rung > m.have) return;  // growing: the pages above are on their way to a block
  if (m.loaded > cost) {
    give_back(m, cost, m.loaded);
    m.loaded = cost;
  }
  m.have = rung;
}

qd_status check_blocks(const qd_model& m, uint32_t from, uint32_t to, qd_error* err) {
  for (uint32_t i = from; i < to; ++i)
    if (uint32_t id = m.file.order[i]; !block_is_sound(m.file, id, m.stack.data + m.file.blocks[id].at))
      return fail(err, QD_BAD_FILE, "block %u: a code, row or column is out of range", id);
  return QD_OK;
}

uint32_t rung_within(const File& f, uint32_t from, uint32_t most, uint64_t loaded) {
  while (from < most && f.rungs[from].bytes <= loaded) ++from;
  return from;
}

// One read of the loader. Enters and leaves with the lock.
void load_some(qd_model& m, std::unique_lock<std::mutex>& lock) {
  uint64_t from = m.loaded, to = std::min(from + kReadBytes, stack_cost(m.file, goal(m)));
  uint32_t have = m.have, next = rung_within(m.file, have, goal(m), to);
  m.loading = true;
  m.in_flight = to - from;
  m.peak = std::max(m.peak, total_locked(m));
  lock.unlock();
  qd_error err{sizeof err, QD_OK, 0, {}};
  qd_status status = read_pages(m, m.file.header.stack_at + from, m.stack.data + from, to - from, &err);
  lock.lock();
  // The blocks that are now whole may begin below `from`, so they are looked at with the lock: a shrink could take
  // them.
  bool stale = m.loaded != from || goal(m) < have || stack_cost(m.file, goal(m)) < to;
  if (status == QD_OK && !stale) status = check_blocks(m, have, next, &err);
  m.loading = false;
  m.in_flight = 0;
  if (status != QD_OK || stale) {
    give_back(m, from, to);
    if (status != QD_OK) {
      m.broken = m.have;
      m.broken_status = status;
      log_line(1, err.text);
    }
  } else {
    m.loaded = to;
    m.have = std::max(m.have, next);
  }
  shrink_locked(m);
  m.changed.notify_all();
}

}  // namespace

uint64_t stack_cost(const File& f, uint32_t rung) {
  uint64_t bytes = rung == 0 ? 0 : f.rungs[rung - 1].bytes;
  return std::min(round_up(bytes, kPage), f.header.stack_bytes);
}

uint64_t held(const qd_model& m, uint64_t stack_bytes) {
  return std::min(round_up(stack_bytes, m.granule), round_up(m.file.header.stack_bytes, kSmallPage));
}

uint64_t fixed_bytes(const qd_model& m) {
  return m.front.bytes + m.resident.bytes + m.view_memory.bytes + sizeof m + m.pool.threads() * kStackBytes;
}

uint64_t base_locked(const qd_model& m) { return fixed_bytes(m) + m.workspace.memory.bytes + m.session_scratch + m.kv; }
uint64_t floor_locked(const qd_model& m) {
  return base_locked(m) + held(m, stack_cost(m.file, m.file.header.floor_rung));
}
uint64_t total_locked(const qd_model& m) { return base_locked(m) + held(m, m.loaded + m.in_flight); }

bool pending_locked(const qd_model& m) { return m.loading || (m.have != goal(m) && (m.grow || m.have > goal(m))); }

uint32_t affordable(const qd_model& m, uint64_t base, uint64_t budget) {
  uint32_t low = m.file.header.floor_rung, high = m.file.count(format::kRungs);
  while (low < high) {  // costs rise with the rung
    uint32_t middle = low + (high - low + 1) / 2;
    if (base + held(m, stack_cost(m.file, middle)) <= budget) low = middle;
    else high = middle - 1;
  }
  return low;
}

void replan_locked(qd_model& m) {
  m.want = affordable(m, base_locked(m), m.budget);
  if (m.pinned) m.want = std::min(m.want, m.pinned);
  shrink_locked(m);
  m.peak = std::max(m.peak, total_locked(m));
  m.changed.notify_all();
}

qd_status load_now(qd_model& m, qd_error* err) {
  uint64_t to = stack_cost(m.file, m.want);
  if (qd_status s = read_stack(m, to, err)) return s;
  if (qd_status s = check_blocks(m, 0, m.want, err)) return s;
  m.loaded = to;
  m.have = m.want;
  m.peak = total_locked(m);
  return QD_OK;
}

void* load_loop(void* ctx) {
  qd_model& m = *static_cast<qd_model*>(ctx);
  std::unique_lock<std::mutex> lock(m.state);
  while (!m.stop) {
    if (m.have < goal(m)) load_some(m, lock);
    else m.changed.wait(lock);
  }
  return nullptr;
}

uint32_t begin_step(qd_model& m) {
  m.step.lock();
  std::lock_guard<std::mutex> lock(m.state);
  shrink_locked(m);
  m.running = true;
  return m.have;
}

void end_step(qd_model& m) {
  {
    std::lock_guard<std::mutex> lock(m.state);
    m.running = false;
    shrink_locked(m);
    m.changed.notify_all();
  }
  m.step.unlock();
}

}  // namespace qd

using namespace qd;

extern "C" qd_status qd_set_budget(qd_model* m, uint64_t bytes, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_set_budget: no model");
  std::lock_guard<std::mutex> lock(m->state);
  if (bytes == 0) bytes = UINT64_MAX;
  if (bytes < floor_locked(*m)) return fail_floor(err, bytes, floor_locked(*m));
  m->budget = bytes;
  m->broken = format::kNone;  // another try
  replan_locked(*m);
  return pending_locked(*m) ? QD_PENDING : QD_OK;
}

extern "C" qd_status qd_wait_budget(qd_model* m, uint32_t timeout_ms, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_wait_budget: no model");
  auto until = std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms);
  std::unique_lock<std::mutex> lock(m->state);
  while (pending_locked(*m))
    if (m->changed.wait_until(lock, until) == std::cv_status::timeout && pending_locked(*m)) return QD_PENDING;
  if (m->broken != format::kNone && m->want > m->broken)
    return fail(err, m->broken_status, "stack: block %u cannot be loaded; the model runs without it", m->broken);
  return QD_OK;
}

extern "C" qd_status qd_set_rung(qd_model* m, uint32_t rung, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_set_rung: no model");
  {
    std::lock_guard<std::mutex> lock(m->state);
    uint32_t low = m->file.header.floor_rung, high = m->file.count(format::kRungs);
    if (rung != 0 && (rung < low || rung > high))
      return fail(err, QD_BAD_ARGUMENT, "rung: found %u, allowed %u to %u, or 0 to let go", rung, low, high);
    uint64_t cost = base_locked(*m) + held(*m, stack_cost(m->file, rung));
    if (rung != 0 && cost > m->budget) return fail_floor(err, m->budget, cost);
    m->pinned = rung;
    replan_locked(*m);
  }
  qd_status s = qd_wait_budget(m, 0x7fffffff, err);
  return s;
}

extern "C" qd_status qd_memory_now(const qd_model* m, qd_memory* out) {
  if (m == nullptr || out == nullptr || out->size < sizeof *out) return QD_BAD_ARGUMENT;
  std::lock_guard<std::mutex> lock(m->state);
  out->rungs = m->file.count(format::kRungs);
  out->rung = m->have;
  out->pending = pending_locked(*m);
  out->budget = m->budget;
  out->total = total_locked(*m);
  out->weights = held(*m, m->loaded + m->in_flight);
  out->kv = m->kv;
  out->scratch = m->workspace.memory.bytes + m->session_scratch;
  out->fixed = fixed_bytes(*m);
  out->floor = floor_locked(*m);
  out->ceiling = base_locked(*m) + held(*m, stack_cost(m->file, out->rungs));
  out->peak = m->peak;
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
    rung = affordable(*m, base_locked(*m), budget);
  }
  return qd_rung_at(m, rung, out);
}
