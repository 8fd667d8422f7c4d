#include "platform.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

namespace qd {

uint64_t round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

uint8_t* reserve(uint64_t bytes, bool huge) {
  if (bytes == 0) bytes = 1;
  if (bytes > (uint64_t{1} << 46)) return nullptr;
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
  flags |= MAP_NORESERVE;
#endif
  uint64_t wanted = huge ? bytes + kHugePage : bytes;
  void* found = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  uint8_t* at = static_cast<uint8_t*>(found);
  if (huge) {  // what lies before and behind an aligned range goes back
    uint64_t before = (kHugePage - reinterpret_cast<uintptr_t>(at) % kHugePage) % kHugePage;
    if (before) munmap(at, before);
    at += before;
    uint64_t used = round_up(bytes, kSmallPage);
    if (wanted - before > used) munmap(at + used, wanted - before - used);
  }
  // Without the flag no huge pages: with them a range would hold more than was written to, and the count would be
  // wrong.
  use_pages(at, bytes, huge);
  return at;
}

void use_pages(uint8_t* at, uint64_t bytes, bool huge) {
#ifdef MADV_HUGEPAGE
  madvise(at, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)at, (void)bytes, (void)huge;
#endif
}

void release(uint8_t* at, uint64_t bytes) { munmap(at, bytes ? bytes : 1); }

void decommit(uint8_t* at, uint64_t bytes) {
  if (bytes == 0) return;
#if defined(__linux__)
  madvise(at, bytes, MADV_DONTNEED);
#else
  mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#endif
}

uint32_t core_count() {
  long n = sysconf(_SC_NPROCESSORS_ONLN);
  return n < 1 ? 1 : n > 256 ? 256 : static_cast<uint32_t>(n);
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
