// One process of native_budget.py: shrinks a model to half of its stack and lets it grow again, and prints what that
// took.
//
//   native_budget MODEL.qd THREADS FLAGS
//
// shrink_ms: of the call that gives the memory back, between two steps; after it the process holds as much less.
// read_mb_s: the file's second half by plain 1 MiB reads; grow_mb_s: the loader's rate while nothing decodes;
// grow_busy_mb_s and slower: the rate while tokens are made, and the median step then over the median step before.
// Pages of the file are dropped from the page cache before each reading.
#include <fcntl.h>
#include <qdeploy.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

void must(qd_status status, const qd_error& error, const char* what) {
  if (status == QD_OK || status == QD_PENDING) return;
  fprintf(stderr, "%s: %s: %s\n", what, qd_status_name(status), error.text);
  exit(2);
}

double resident_mb() {
  long pages = 0, ignored = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (file == nullptr || fscanf(file, "%ld %ld", &ignored, &pages) != 2) pages = 0;
  if (file) fclose(file);
  return static_cast<double>(pages) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

void forget(int file) {
  fdatasync(file);
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
}

double read_rate(int file, uint64_t from, uint64_t to) {
  std::vector<char> buffer(1 << 20);
  forget(file);
  double start = now();
  for (uint64_t at = from; at < to; at += buffer.size())
    if (pread(file, buffer.data(), std::min<uint64_t>(buffer.size(), to - at), static_cast<off_t>(at)) <= 0) return 0;
  return static_cast<double>(to - from) / (now() - start) / 1e6;
}

double median(std::vector<double> v) {
  if (v.empty()) return 0;
  std::nth_element(v.begin(), v.begin() + static_cast<long>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

struct Bench {
  qd_model* model;
  qd_session* session;
  int file;
  uint64_t half;
  qd_error error = QD_INIT(qd_error);

  qd_memory memory() const {
    qd_memory m = QD_INIT(qd_memory);
    qd_memory_now(model, &m);
    return m;
  }
  double step() {
    if (qd_session_length(session) > 100) must(qd_session_trim(session, 0, &error), error, "trim");
    int32_t token = 5;
    double start = now();
    must(qd_decode(session, &token, 1, nullptr, &error), error, "decode");
    return now() - start;
  }
  double shrink() {
    double start = now();
    must(qd_set_budget(model, half, &error), error, "shrink");
    return (now() - start) * 1e3;
  }
  double grow(std::vector<double>* steps) {
    uint64_t before = memory().weights;
    forget(file);
    double start = now();
    must(qd_set_budget(model, 0, &error), error, "grow");
    while (steps && memory().pending) steps->push_back(step());
    must(qd_wait_budget(model, 600000, &error), error, "grow");
    return static_cast<double>(memory().weights - before) / (now() - start) / 1e6;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return fprintf(stderr, "usage: %s MODEL THREADS FLAGS\n", argv[0]), 2;
  Bench b{};
  b.error = QD_INIT(qd_error);
  qd_options options;
  qd_options_init(&options);
  options.threads = static_cast<uint32_t>(atoi(argv[2])), options.flags = static_cast<uint32_t>(atoi(argv[3]));
  must(qd_open(argv[1], &options, &b.model, &b.error), b.error, "open");
  must(qd_session_open(b.model, 128, &b.session, &b.error), b.error, "session");
  b.file = open(argv[1], O_RDONLY);
  qd_memory full = b.memory();
  b.half = full.total - full.weights / 2;
  if (b.half < full.floor) b.half = full.floor;
  std::vector<double> quiet, busy, shrinks;
  for (int i = 0; i < 20; i++) quiet.push_back(b.step());
  double before = resident_mb(), grow = 0, grow_busy = 0;
  shrinks.push_back(b.shrink());
  double freed = before - resident_mb();
  uint64_t size = static_cast<uint64_t>(lseek(b.file, 0, SEEK_END));
  double read = read_rate(b.file, size / 2, size);
  grow = b.grow(nullptr);
  shrinks.push_back(b.shrink());
  grow_busy = b.grow(&busy);
  shrinks.push_back(b.shrink());
  printf(
      "{\"shrink_ms\": %.2f, \"freed_mb\": %.1f, \"read_mb_s\": %.0f, \"grow_mb_s\": %.0f, \"grow_busy_mb_s\": %.0f, "
      "\"slower\": %.3f, \"busy_steps\": %zu, \"step_ms\": %.2f}\n",
      median(shrinks), freed, read, grow, grow_busy, median(busy) / median(quiet), busy.size(), median(quiet) * 1e3);
  qd_session_close(b.session);
  return static_cast<int>(qd_close(b.model));
}
