// Reading pages of the file: checked, and at open by all threads, into memory that is made on the way.
#include <algorithm>
#include <atomic>
#include <mutex>

#include "crc32c.h"
#include "model.h"

namespace qd {

using format::kPage;

qd_status read_pages(const qd_model& m, uint64_t at, uint8_t* to, uint64_t n, qd_error* err) {
  if (qd_status s = read_fully(m.source, at, to, n, err)) return s;
  for (uint64_t i = 0; m.verify && i < n; i += kPage) {
    uint64_t bytes = std::min<uint64_t>(kPage, n - i), page = (at + i - m.file.header.resident_at) / kPage;
    if (crc32c(0, to + i, bytes) != m.file.pages[page])
      return fail(err, QD_CHECKSUM, "page %llu: its checksum does not match; fetch the file again",
                  static_cast<unsigned long long>(page));
  }
  return QD_OK;
}

namespace {

// Threads take turns at so much of the stack: whole pages of the system, so that no page is made by two of them.
constexpr uint64_t kTurn = kHugePage;
static_assert(kTurn % kPage == 0, "pages of the file have checksums");

struct Loading {
  qd_model& m;
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
    *static_cast<volatile uint8_t*>(m.stack.data + at) = 0;
    uint64_t taken = thread_ns() - start;
    std::lock_guard<std::mutex> lock(mutex);
    uint64_t rest = next;
    if (!huge || patience.lasts(taken) || rest >= m.stack.bytes) return;
    huge = false;
    use_pages(m.stack.data + rest, m.stack.bytes - rest, false);
  }

  void failed(uint64_t at, qd_status s, const qd_error& own) {
    next = to;  // no more turns
    std::lock_guard<std::mutex> lock(mutex);
    if (at >= bad) return;
    bad = at;
    status = fail(err, s, "%s", own.text);
  }

  void take_turns() {
    for (uint64_t at; (at = next.fetch_add(kTurn)) < to;) {
      qd_error own{sizeof own, QD_OK, 0, {}};
      if (huge) make_page(at);
      uint64_t n = std::min(kTurn, to - at);
      if (qd_status s = read_pages(m, m.file.header.stack_at + at, m.stack.data + at, n, &own)) failed(at, s, own);
    }
  }
};

}  // namespace

// Turns are given out in order, so that those before a bad one have been taken when it is found: the error is that of
// the first bad one, whatever the number of threads.
qd_status read_stack(qd_model& m, uint64_t to, qd_error* err) {
  Loading loading{m, to, to, err, {m.granule == kHugePage}};
  auto body = [&](uint32_t, uint32_t, uint32_t) { loading.take_turns(); };
  m.pool.parallel_for(m.pool.threads(), body);
  // In the background there is time: for growth, and for the system to put small pages together.
  if (m.granule == kHugePage && !loading.huge) use_pages(m.stack.data, m.stack.bytes, true);
  return loading.status;
}

}  // namespace qd
