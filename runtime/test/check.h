// A check of the test programs: a line for each that fails, and the exit code of main.
#pragma once
#include <atomic>
#include <cstdio>

inline std::atomic<int> failures{0};

#define CHECK(x)                                          \
  do {                                                    \
    if (!(x) && failures++ < 20)                          \
      std::printf("%s:%d: %s\n", __FILE__, __LINE__, #x); \
  } while (0)

inline int report() {
  std::printf(failures ? "%d failures\n" : "ok\n", failures.load());
  return failures != 0;
}
