// Reading pages of the file: checked, and at open by all threads, into memory that is made on the way; and the thread that
// reads on when the budget has grown.
#include "loader.h"

#include <algorithm>
#include <atomic>
#include <mutex>

#include "crc32c.h"
#include "model.h"

namespace qd {

using format::kPage;

qd_status read_pages(const qd_model& m, uint64_t at, uint8_t* to, uint64_t n, qd_error* err) {
  if (qd_status s = read_fully(m.source, at, to, n, err)) return s;
  for (uint64_t i = 0; m.settings.verify && i < n; i += kPage) {
    uint64_t bytes = std::min<uint64_t>(kPage, n - i), page = (at + i - m.file.header.resident_at) / kPage;
    if (crc32c(0, to + i, bytes) != m.file.pages[page])
      return fail(err, QD_CHECKSUM, "page %llu: its checksum does not match; fetch the file again",
                  static_cast<unsigned long long>(page));
  }
  return QD_OK;
}

namespace {

constexpr uint64_t kReadBytes = 16 * kPage;  // of the loader at once: a shrink never waits longer than this takes
constexpr uint64_t kTurnBytes = 32 * kPage;  // of a thread at open

struct Loading {
  qd_model& m;
  uint64_t turn;     // threads take turns at so much: whole pages of the system, so that no page is made by two of them
  uint64_t to, bad;  // bad: where the first turn began that failed
  qd_error* err;
  std::atomic<bool> huge;
  std::atomic<uint64_t> next{0};
  std::mutex mutex{};  // of what follows, and of bad and err
  HugePagePatience patience{};
  qd_status status = QD_OK;

  // Makes the huge page at `at`; where that takes too long, the pages of all later turns are small.
  void make_page(uint64_t at) {
    uint64_t start = thread_ns();
    *static_cast<volatile uint8_t*>(m.stack.memory.data + at) = 0;
    uint64_t taken = thread_ns() - start;
    std::lock_guard<std::mutex> lock(mutex);
    uint64_t rest = next;
    if (!huge || patience.lasts(taken) || rest >= m.stack.memory.bytes) return;
    huge = false;
    use_pages(m.stack.memory.data + rest, m.stack.memory.bytes - rest, false);
  }

  void failed(uint64_t at, qd_status s, const qd_error& own) {
    next = to;  // no more turns
    std::lock_guard<std::mutex> lock(mutex);
    if (at >= bad) return;
    bad = at;
    status = fail(err, s, "%s", own.text);
  }

  void take_turns() {
    for (uint64_t at; (at = next.fetch_add(turn)) < to;) {
      qd_error own{sizeof own, QD_OK, 0, {}};
      if (huge) make_page(at);
      uint64_t n = std::min(turn, to - at);
      if (qd_status s = read_pages(m, m.file.header.stack_at + at, m.stack.memory.data + at, n, &own)) failed(at, s, own);
    }
  }
};

// Turns are given out in order, so that those before a bad one have been taken when it is found: the error is that of
// the first bad one, whatever the number of threads.
qd_status read_stack(qd_model& m, uint64_t to, qd_error* err) {
  bool huge = m.stack.granule == page_sizes().huge;
  Loading loading{m, std::max(kTurnBytes, m.stack.granule), to, to, err, {huge}};
  auto body = [&](uint32_t, uint64_t, uint64_t) { loading.take_turns(); };
  m.pool.parallel_for(m.pool.threads(), body);
  // In the background there is time: for growth, and for the system to put small pages together.
  if (huge && !loading.huge) use_pages(m.stack.memory.data, m.stack.memory.bytes, true);
  return loading.status;
}

qd_status check_blocks(const qd_model& m, uint32_t from, uint32_t to, qd_error* err) {
  for (uint32_t i = from; i < to; ++i)
    if (uint32_t id = m.file.order[i]; !block_is_sound(m.file, id, m.stack.memory.data + m.file.blocks[id].at))
      return fail(err, QD_BAD_FILE, "block %u: a code, row or column is out of range", id);
  return QD_OK;
}

uint32_t rung_within(const File& f, uint32_t from, uint32_t most, uint64_t loaded) {
  while (from < most && f.rungs[from].bytes <= loaded) ++from;
  return from;
}

// Whole pages of the system within the stack's bytes [from, to), and what an earlier call could not give back; what comes
// behind `to` is not there.
void give_back(qd_model& m, uint64_t from, uint64_t to) {
  Stack& s = m.stack;
  uint64_t first = stack_held(m, from), end = std::max(stack_held(m, to), s.kept);
  if (first >= end) return;
  bool gone = decommit(s.memory.data + first, end - first);
  if (!gone && s.kept == 0) log_line(1, "stack: the system does not take memory back; is it locked?");
  s.kept = gone ? 0 : end;
}

bool may_shrink(const qd_model& m) {
  uint32_t rung = goal(m);  // above what there is: growing, and the pages above are on their way to a block
  return rung < m.stack.have || (rung == m.stack.have && m.stack.loaded > stack_cost(m.file, rung));
}

// One read of the loader. Enters and leaves with the lock.
void load_some(qd_model& m, std::unique_lock<std::mutex>& lock) {
  Stack& s = m.stack;
  uint64_t from = s.loaded, to = std::min(from + kReadBytes, stack_cost(m.file, goal(m)));
  uint32_t have = s.have, next = rung_within(m.file, have, goal(m), to);
  m.loader.reading = true;
  s.in_flight = to - from;
  note_peak_locked(m);
  lock.unlock();
  qd_error err{sizeof err, QD_OK, 0, {}};
  qd_status status = read_pages(m, m.file.header.stack_at + from, s.memory.data + from, to - from, &err);
  lock.lock();
  // The blocks that are now whole may begin below `from`, so they are looked at with the lock: a shrink could take
  // them.
  bool stale = s.loaded != from || goal(m) < have || stack_cost(m.file, goal(m)) < to;
  if (status == QD_OK && !stale) status = check_blocks(m, have, next, &err);
  m.loader.reading = false;
  s.in_flight = 0;
  if (status != QD_OK || stale) {
    give_back(m, from, to);
    if (status != QD_OK) {
      m.loader.broken = s.have;
      m.loader.broken_status = status;
      log_line(1, err.text);
    }
  } else {
    s.loaded = to;
    s.have = std::max(s.have, next);
  }
  shrink_locked(m);
  m.changed.notify_all();
}

void* load_loop(void* ctx) {
  qd_model& m = *static_cast<qd_model*>(ctx);
  std::unique_lock<std::mutex> lock(m.state);
  while (!m.loader.stop) {
    if (m.stack.have < goal(m)) load_some(m, lock);
    else m.changed.wait(lock);
  }
  return nullptr;
}

}  // namespace

uint32_t goal(const qd_model& m) { return std::min(m.budget.want, m.loader.broken); }

uint64_t stack_cost(const File& f, uint32_t rung) {
  uint64_t bytes = rung == 0 ? 0 : f.rungs[rung - 1].bytes;
  return std::min(round_up(bytes, kPage), f.header.stack_bytes);
}

uint64_t stack_held(const qd_model& m, uint64_t stack_bytes) {
  return std::min(round_up(stack_bytes, m.stack.granule), round_up(m.file.header.stack_bytes, page_sizes().small));
}

uint64_t stack_now(const qd_model& m) {
  return std::max(stack_held(m, m.stack.loaded + m.stack.in_flight), m.stack.kept);
}

bool is_loading(const qd_model& m) {
  uint32_t rung = goal(m), have = m.stack.have;
  return m.loader.reading || (have != rung && (m.settings.grow || have > rung));
}

bool shrink_waits(const qd_model& m) { return m.steps.running > 0 && may_shrink(m); }

// What the loader is reading into lies above what is loaded and is its own to give back.
void shrink_locked(qd_model& m) {
  if (m.steps.running > 0 || !may_shrink(m)) return;
  uint64_t cost = stack_cost(m.file, goal(m)), loaded = m.stack.loaded;
  if (loaded > cost) {
    m.stack.loaded = cost;
    give_back(m, cost, loaded);
  }
  m.stack.have = goal(m);
}

// Where the application locks all its memory, the whole range is there before anything is read into it: what the budget
// does not pay for goes back.
qd_status load_now(qd_model& m, qd_error* err) {
  uint64_t to = stack_cost(m.file, m.budget.want);
  if (qd_status s = read_stack(m, to, err)) return s;
  if (qd_status s = check_blocks(m, 0, m.budget.want, err)) return s;
  m.stack.loaded = to;
  m.stack.have = m.budget.want;
  give_back(m, to, m.file.header.stack_bytes);
  note_peak_locked(m);
  return QD_OK;
}

bool start_loader(qd_model& m) {
  m.loader.started = start_thread(&m.loader.thread, load_loop, &m);
  return m.loader.started;
}

void stop_loader(qd_model& m) {
  {
    std::lock_guard<std::mutex> lock(m.state);
    m.loader.stop = true;
    m.changed.notify_all();
  }
  if (m.loader.started) pthread_join(m.loader.thread, nullptr);
  m.loader.started = false;
}

}  // namespace qd
