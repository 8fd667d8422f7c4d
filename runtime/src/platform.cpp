#include "platform.h"

#include <errno.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>

#include "checked.h"
#include "error.h"

namespace qd {

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 46;  // of one range: no machine's address space has many more

bool is_page_size(uint64_t n, uint64_t multiple_of) { return n > 0 && (n & (n - 1)) == 0 && n % multiple_of == 0; }

// What one entry of the second level of page tables covers, unless the system says otherwise.
uint64_t ask_huge(uint64_t small) {
  unsigned long long found = 0;
  if (FILE* f = std::fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "re")) {
    if (std::fscanf(f, "%llu", &found) != 1) found = 0;
    std::fclose(f);
  }
  return is_page_size(found, small) && found > small ? found : small * (small / 8);
}

PageSizes ask() {
  long found = sysconf(_SC_PAGESIZE);
  uint64_t small = found > 0 && is_page_size(static_cast<uint64_t>(found), 512) ? static_cast<uint64_t>(found) : 4096;
  return {small, ask_huge(small)};
}

bool unmap(uint8_t* at, uint64_t bytes) { return bytes == 0 || munmap(at, static_cast<size_t>(bytes)) == 0; }

// Cuts [at, at + bytes) down to `used` bytes from a multiple of a huge page on; null, and all given back, where the system
// does not take the rest.
uint8_t* aligned(uint8_t* at, uint64_t bytes, uint64_t used) {
  uint64_t huge = page_sizes().huge, before = (huge - reinterpret_cast<uintptr_t>(at) % huge) % huge;
  bool cut = unmap(at, before) && unmap(at + before + used, bytes - before - used);
  if (cut) return at + before;
  release(at, bytes);
  return nullptr;
}

}  // namespace

const PageSizes& page_sizes() {
  static const PageSizes sizes = ask();
  return sizes;
}

uint8_t* reserve(uint64_t bytes, bool huge) {
  if (bytes > kMostBytes) return nullptr;
  uint64_t used = round_up(bytes ? bytes : 1, page_sizes().small), wanted = huge ? used + page_sizes().huge : used;
  if (!is_size<size_t>(wanted)) return nullptr;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
  void* found = mmap(nullptr, static_cast<size_t>(wanted), PROT_READ | PROT_WRITE, flags, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  uint8_t* at = static_cast<uint8_t*>(found);
  if (huge && (at = aligned(at, wanted, used)) == nullptr) return nullptr;
  // Without the flag no huge pages: with them a range would hold more than was written to, and the count would be
  // wrong.
  if (use_pages(at, used, huge) || huge) return at;
  release(at, used);
  return nullptr;
}

bool use_pages(uint8_t* at, uint64_t bytes, bool huge) {
#ifdef MADV_HUGEPAGE
  bytes = round_up(bytes, page_sizes().small);
  if (madvise(at, static_cast<size_t>(bytes), huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0) return true;
  return errno == EINVAL && !huge;  // a system that has none
#else
  (void)at, (void)bytes;
  return !huge;
#endif
}

bool release(uint8_t* at, uint64_t bytes) {
  if (unmap(at, round_up(bytes ? bytes : 1, page_sizes().small))) return true;
  char line[96];
  std::snprintf(line, sizeof line, "memory: the system did not take %llu bytes back",
                static_cast<unsigned long long>(bytes));
  log_line(1, line);
  return false;
}

bool decommit(uint8_t* at, uint64_t bytes) {
  if (bytes == 0) return true;
#if defined(__linux__)
  if (madvise(at, static_cast<size_t>(bytes), MADV_DONTNEED) == 0) return true;
  constexpr int kDontNeedLocked = 24;  // since Linux 5.18: of pages that are locked (mlockall), too
  return errno == EINVAL && madvise(at, static_cast<size_t>(bytes), kDontNeedLocked) == 0;
#else
  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
  return mmap(at, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED;
#endif
}

uint32_t core_count() {
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n < 1 ? 1 : n > 256 ? 256 : static_cast<uint32_t>(n);
}

uint64_t machine_bytes() {
#ifdef _SC_PHYS_PAGES
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) return (Checked(static_cast<uint64_t>(pages)) * static_cast<uint64_t>(page)).value();
#endif
  return UINT64_MAX;
}

namespace {
uint64_t ns_of(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1000000000u + static_cast<uint64_t>(t.tv_nsec);
}
}  // namespace

uint64_t now_ns() { return ns_of(CLOCK_MONOTONIC); }
uint64_t thread_ns() { return ns_of(CLOCK_THREAD_CPUTIME_ID); }

bool start_thread(pthread_t* thread, void* (*body)(void*), void* ctx) {
  pthread_attr_t attr;
  if (pthread_attr_init(&attr) != 0) return false;
  pthread_attr_setstacksize(&attr, kStackBytes);
  bool ok = pthread_create(thread, &attr, body, ctx) == 0;
  pthread_attr_destroy(&attr);
  return ok;
}

}  // namespace qd
