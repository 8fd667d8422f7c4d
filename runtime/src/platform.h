// What the operating system is asked for: address ranges whose pages come and go, and threads with a known stack.
//
// Every answer is looked at. What the system does not take back is still held, and whoever counts memory counts it.
#pragma once
#include <pthread.h>

#include <cstddef>
#include <cstdint>

#include "guard.h"

namespace qd {

constexpr size_t kStackBytes = 256 * 1024;  // of each thread of ours; counted

// The system's own sizes: 4 KiB and 2 MiB on most machines, 16 KiB on Apple's and newer Android's, 64 KiB and 512 MiB on
// some Arm servers.
struct PageSizes {
  uint64_t small, huge;
};
const PageSizes& page_sizes();

// A range of addresses that costs nothing until it is written to, and reads as zeros. Null when there is none.
// `huge`: in huge pages where the system has them; its start is then a multiple of one.
uint8_t* reserve(uint64_t bytes, bool huge);
// False: the system keeps the range; a line of the log says so.
bool release(uint8_t* at, uint64_t bytes);
// Gives the pages of [at, at + bytes) back at once; both are multiples of a small page. They read as zeros afterwards.
// False: the system keeps them (they are locked), as they are.
bool decommit(uint8_t* at, uint64_t bytes);

// Of which kind the pages of [at, at + bytes) will be that are not there yet; `at` is page-aligned. False: of either.
bool use_pages(uint8_t* at, uint64_t bytes, bool huge);

// Making a huge page takes some 0.1 ms, several where the system has to compact memory for it, and ten where it is a
// virtual machine that has given free memory back to its host; small pages come from what is at hand. Only trying
// tells.
struct HugePagePatience {
  static constexpr uint64_t kFair = 1000 * 1000, kMost = 20 * kFair;  // of as much in small pages; to lose
  uint64_t lost = 0;
  // Whether another is to be tried after one that took so many ns.
  bool lasts(uint64_t ns) {
    lost = lost + ns > kFair ? lost + ns - kFair : 0;
    return lost <= kMost;
  }
};

uint64_t round_up(uint64_t n, uint64_t to);
uint32_t core_count();
uint64_t machine_bytes();  // memory of the machine; the greatest number where the system does not say
uint64_t now_ns();
uint64_t thread_ns();  // CPU time of the calling thread
bool start_thread(pthread_t* thread, void* (*body)(void*), void* ctx);

// A range that is released with its owner.
struct Range {
  uint8_t* data = nullptr;
  uint64_t bytes = 0;
  Range() = default;
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
  ~Range() { reset(); }
  bool make(uint64_t n, bool huge = false) {
    reset();
    data = reserve(n, huge);
    bytes = data ? n : 0;
    return data != nullptr;
  }
  // Bytes that the system did not take back.
  uint64_t reset() {
    allow(data, bytes);
    uint64_t kept = data == nullptr || release(data, bytes) ? 0 : bytes;
    data = nullptr;
    bytes = 0;
    return kept;
  }
};

}  // namespace qd
