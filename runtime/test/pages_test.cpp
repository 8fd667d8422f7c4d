// The runtime on systems with other pages, and on ones that refuse: what is asked of the system goes through here.
//
//   pages_test PAGE HUGE_PAGE   linked with -Wl,--wrap=sysconf,--wrap=fopen,--wrap=mmap,--wrap=munmap,--wrap=madvise
//   pages_test locked           with the system's own pages, all of them locked
#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "../src/platform.h"
#include "check.h"
#include "tiny_model.h"

namespace {

struct System {
  uint64_t page = 0, huge = 0;
  bool pretends = false;
  int no_map = 0, no_unmap = 0, no_return = 0, no_advice = 0;  // the error that such a call gives; 0: it is carried out
} os;

bool on_pages(const void* at, size_t bytes) {
  return reinterpret_cast<uintptr_t>(at) % os.page == 0 && bytes % os.page == 0 && bytes > 0;
}

int refused(int error) {
  errno = error;
  return -1;
}

}  // namespace

extern "C" {
long __real_sysconf(int name);
FILE* __real_fopen(const char* path, const char* mode);
void* __real_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void* at, size_t bytes);
int __real_madvise(void* at, size_t bytes, int advice);

long __wrap_sysconf(int name) {
  return os.pretends && name == _SC_PAGESIZE ? static_cast<long>(os.page) : __real_sysconf(name);
}

FILE* __wrap_fopen(const char* path, const char* mode) {
  if (!os.pretends || !std::strstr(path, "hpage_pmd_size")) return __real_fopen(path, mode);
  static std::string text;
  text = std::to_string(os.huge) + "\n";
  return fmemopen(text.data(), text.size(), "r");
}

// Where a page of that size would begin; the rest of the larger range is left where it is.
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (!os.pretends) return __real_mmap(at, bytes, protection, flags, fd, offset);
  CHECK(bytes % os.page == 0 && bytes > 0);
  if (os.no_map) return refused(os.no_map), MAP_FAILED;
  char* found = static_cast<char*>(__real_mmap(at, bytes + os.page, protection, flags, fd, offset));
  if (found == MAP_FAILED) return found;
  return found + (os.page - reinterpret_cast<uintptr_t>(found) % os.page) % os.page;
}

int __wrap_munmap(void* at, size_t bytes) {
  if (!os.pretends) return __real_munmap(at, bytes);
  CHECK(on_pages(at, bytes));
  return os.no_unmap ? refused(os.no_unmap) : __real_munmap(at, bytes);
}

int __wrap_madvise(void* at, size_t bytes, int advice) {
  if (!os.pretends) return __real_madvise(at, bytes, advice);
  CHECK(on_pages(at, bytes));
  if (advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE)
    return os.no_advice ? refused(os.no_advice) : __real_madvise(at, bytes, advice);
  return os.no_return ? refused(os.no_return) : __real_madvise(at, bytes, advice);
}
}

namespace {

int lines = 0;

struct Model {
  qd_model* model = nullptr;
  qd_session* session = nullptr;
  qd_error err = QD_INIT(qd_error);
  qd_status status;
  explicit Model(const tiny::Bytes& file, uint32_t flags = 0, uint64_t budget = 0) {
    qd_options o;
    qd_options_init(&o);
    o.threads = 2;
    o.flags = flags;
    o.budget = budget;
    qd_source source = tiny::source(file);
    status = qd_open_source(&source, &o, &model, &err);
    if (status == QD_OK) CHECK(qd_session_open(model, 64, &session, &err) == QD_OK);
  }
  ~Model() {
    qd_session_close(session);
    CHECK(qd_close(model) == QD_OK);
  }
  qd_memory memory() {
    qd_memory m = QD_INIT(qd_memory);
    CHECK(qd_memory_now(model, &m) == QD_OK);
    CHECK(m.total == m.weights + m.kv + m.scratch + m.fixed && m.peak >= m.total);
    return m;
  }
  std::vector<float> decode() {
    int32_t tokens[5] = {3, 1, 4, 1, 5};
    std::vector<float> logits(32);
    CHECK(qd_session_trim(session, 0, &err) == QD_OK);
    CHECK(qd_decode(session, tokens, 5, logits.data(), &err) == QD_OK);
    return logits;
  }
};

void everything_is_asked_for_in_pages(const tiny::Bytes& file, uint32_t flags) {
  Model m(file, flags);
  CHECK(m.status == QD_OK);
  if (m.status != QD_OK) return std::printf("%s\n", m.err.text), void();
  uint64_t granule = flags & QD_HUGE_PAGES ? os.huge : os.page;
  qd_memory full = m.memory();
  std::vector<float> logits = m.decode();
  CHECK(full.kv % os.page == 0 && full.scratch % os.page == 0);
  for (uint64_t budget = full.floor; budget < full.ceiling; budget += 130000) {
    CHECK(qd_set_budget(m.model, budget, &m.err) <= QD_PENDING && qd_wait_budget(m.model, 5000, &m.err) == QD_OK);
    qd_memory now = m.memory();
    CHECK(now.total <= budget && now.unreturned == 0);
    CHECK(now.weights % granule == 0 || now.weights == full.weights);
    m.decode();
  }
  CHECK(qd_set_budget(m.model, 0, &m.err) <= QD_PENDING && qd_wait_budget(m.model, 5000, &m.err) == QD_OK);
  CHECK(m.decode() == logits && m.memory().total == full.total);
}

void what_is_not_taken_back_stays_counted(const tiny::Bytes& file) {
  Model m(file);
  qd_memory full = m.memory();
  std::vector<float> logits = m.decode();
  os.no_return = EINVAL;
  int before = lines;
  CHECK(qd_set_budget(m.model, full.floor, &m.err) <= QD_PENDING);
  CHECK(qd_wait_budget(m.model, 1000, &m.err) == QD_NO_MEMORY && std::strstr(m.err.text, "take"));
  qd_memory now = m.memory();
  CHECK(now.rung < full.rung && now.total == full.total && now.weights == full.weights);
  CHECK(now.unreturned == full.total - full.floor && now.total > now.budget && lines == before + 1);
  m.decode();
  CHECK(qd_set_budget(m.model, 0, &m.err) <= QD_PENDING && qd_wait_budget(m.model, 5000, &m.err) == QD_OK);
  CHECK(m.decode() == logits && m.memory().unreturned == 0);
  CHECK(qd_set_budget(m.model, full.floor, &m.err) <= QD_PENDING);
  os.no_return = 0;
  CHECK(qd_set_budget(m.model, full.ceiling, &m.err) <= QD_PENDING && qd_wait_budget(m.model, 5000, &m.err) == QD_OK);
  CHECK(qd_set_budget(m.model, full.floor, &m.err) <= QD_PENDING && qd_wait_budget(m.model, 5000, &m.err) == QD_OK);
  CHECK(m.memory().total <= full.floor && m.memory().unreturned == 0);
}

void a_session_that_is_not_taken_back_stays_counted(const tiny::Bytes& file) {
  Model m(file);
  qd_session* second = nullptr;
  uint64_t before = m.memory().total;
  CHECK(qd_session_open(m.model, 64, &second, &m.err) == QD_OK);
  uint64_t with = m.memory().total;
  os.no_unmap = ENOMEM;
  int said = lines;
  qd_session_close(second);
  os.no_unmap = 0;
  CHECK(with > before && m.memory().total == with && m.memory().unreturned == with - before && lines == said + 1);
}

void refusals_are_errors(const tiny::Bytes& file) {
  os.no_map = ENOMEM;
  CHECK(Model(file).status == QD_NO_MEMORY);
  os.no_map = 0, os.no_advice = ENOMEM;  // the system might then give huge pages that nobody counts
  CHECK(Model(file).status == QD_NO_MEMORY);
  os.no_advice = EINVAL;  // it has none
  CHECK(Model(file).status == QD_OK);
  os.no_advice = 0, os.no_unmap = ENOMEM;  // ranges of huge pages are cut to size
  CHECK(qd::reserve(3 * os.huge + os.page, true) == nullptr);
  os.no_unmap = 0;
}

long resident() {
  long pages = 0, ignored = 0;
  FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%ld %ld", &ignored, &pages) != 2) pages = 0;
  if (file) std::fclose(file);
  return pages * sysconf(_SC_PAGESIZE);
}

// What is counted is held, and what is held is counted, though the application has locked all its memory.
int locked(const tiny::Bytes& file) {
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) return std::puts("memory cannot be locked here\nok"), 0;
  long base = resident();
  Model m(file);
  CHECK(m.status == QD_OK);
  qd_memory full = m.memory();
  long slack = 2 << 20;
  CHECK(labs(resident() - base - static_cast<long>(full.total)) < slack);
  CHECK(qd_set_budget(m.model, full.floor, &m.err) <= QD_PENDING);
  qd_status status = qd_wait_budget(m.model, 5000, &m.err);
  qd_memory low = m.memory();
  CHECK(status == QD_OK ? low.total <= full.floor : low.unreturned > 0);
  CHECK(labs(resident() - base - static_cast<long>(low.total)) < slack);
  std::printf("full %llu, at the floor counted %llu, held %ld\n", static_cast<unsigned long long>(full.total),
              static_cast<unsigned long long>(low.total), resident() - base);
  Model small(file, 0, full.floor + 100000);
  CHECK(small.status == QD_OK && small.memory().total <= full.floor + 100000);
  return report();
}

}  // namespace

int main(int argc, char** argv) {
  qd_set_log([](void*, int, const char*) { ++lines; }, nullptr);
  if (argc == 2) return locked(tiny::decoder({200}));
  if (argc != 3) return 2;
  os = {std::strtoull(argv[1], nullptr, 10), std::strtoull(argv[2], nullptr, 10), true};
  CHECK(qd::page_sizes().small == os.page && qd::page_sizes().huge == os.huge);
  tiny::Bytes file = tiny::decoder({8});
  everything_is_asked_for_in_pages(file, 0);
  everything_is_asked_for_in_pages(file, QD_HUGE_PAGES);
  what_is_not_taken_back_stays_counted(file);
  a_session_that_is_not_taken_back_stays_counted(file);
  refusals_are_errors(file);
  return report();
}
