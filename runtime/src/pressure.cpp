// Follows what Linux says about memory: the limit of our cgroup less what others in it use, and PSI. A shrink is at
// once, by what is missing; growth waits until there has been room, an eighth more than now, for ten looks of 200 ms.
//
// The groups are those of the process (version 2), its own and all above it, or the folder that QDEPLOY_CGROUP names, with
// their files memory.max, memory.high, memory.current, memory.stat and memory.pressure. Of what a group holds,
// inactive_file is cache that the system drops before it kills: it counts as free. Above memory.high the system slows a
// group down, so that is a limit, too.
#include "pressure.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "model.h"

namespace qd {
namespace {

bool read_text(const char* path, char* to, size_t capacity) {
  FILE* f = std::fopen(path, "re");
  if (!f) return false;
  size_t n = std::fread(to, 1, capacity - 1, f);
  std::fclose(f);
  to[n] = 0;
  return n > 0;
}

uint64_t number(const char* group, const char* name, uint64_t otherwise) {
  char path[640], text[64];
  unsigned long long value;
  std::snprintf(path, sizeof path, "%.512s/%s", group, name);
  return read_text(path, text, sizeof text) && std::sscanf(text, "%llu", &value) == 1 ? value : otherwise;
}

constexpr char kGroups[] = "/sys/fs/cgroup";

void own_group(char* to, size_t capacity) {
  char text[600], name[512] = "";
  if (const char* given = std::getenv("QDEPLOY_CGROUP")) {
    std::snprintf(to, capacity, "%s", given);
    return;
  }
  if (read_text("/proc/self/cgroup", text, sizeof text))
    if (const char* at = std::strstr(text, "0::")) std::sscanf(at + 3, "%511[^\n]", name);
  std::snprintf(to, capacity, "%s%s", kGroups, std::strcmp(name, "/") == 0 ? "" : name);
}

// Share of the last ten seconds in which some task waited for memory, in percent: of the group, else of the system.
float stalled(const char* group) {
  char path[640], text[256];
  float value = 0;
  std::snprintf(path, sizeof path, "%.512s/memory.pressure", group);
  if (read_text(path, text, sizeof text) || read_text("/proc/pressure/memory", text, sizeof text))
    std::sscanf(text, "some avg10=%f", &value);
  return value;
}

// Cache of a group that the system drops before it kills anybody.
uint64_t droppable(const char* group) {
  char path[640], text[4096];
  unsigned long long value;
  std::snprintf(path, sizeof path, "%.512s/memory.stat", group);
  if (!read_text(path, text, sizeof text)) return 0;
  const char* at = std::strstr(text, "inactive_file ");
  return at && std::sscanf(at + 14, "%llu", &value) == 1 ? value : 0;
}

// What may be held by the limits of one group: what we hold and what is free in it, less a sixteenth.
uint64_t allowance_of(const char* group, uint64_t held) {
  uint64_t most = std::min(number(group, "memory.max", UINT64_MAX), number(group, "memory.high", UINT64_MAX));
  if (most == UINT64_MAX) return UINT64_MAX / 2;
  uint64_t used = number(group, "memory.current", 0), cache = droppable(group);
  used -= std::min(used, cache);
  uint64_t all = held + (most > used ? most - used : 0), spare = most / 16;
  return all > spare ? all - spare : 0;
}

// By all groups that we are in; less a tenth more when tasks stall.
uint64_t allowance(const char* group, uint64_t held) {
  char path[600];
  std::snprintf(path, sizeof path, "%s", group);
  uint64_t all = allowance_of(path, held);
  constexpr size_t kRoot = sizeof kGroups - 1;
  while (std::strncmp(path, kGroups, kRoot) == 0 && std::strlen(path) > kRoot) {
    *std::strrchr(path, '/') = 0;
    all = std::min(all, allowance_of(path, held));
  }
  return stalled(group) > 10.0f ? std::min(all, held - held / 10) : all;
}

void* follow(void* ctx) {
  qd_model& m = *static_cast<qd_model*>(ctx);
  char group[600];
  own_group(group, sizeof group);
  int room = 0;
  std::unique_lock<std::mutex> lock(m.state);
  while (!m.pressure.stop) {
    uint64_t held = total_locked(m), budget = m.budget.bytes;
    lock.unlock();
    uint64_t next = std::min(allowance(group, held), m.pressure.most);
    lock.lock();
    next = std::max(next, floor_locked(m));
    room = next > budget && next - budget > budget / 8 ? room + 1 : 0;
    if (next < budget || room >= 10) {
      m.budget.bytes = next;
      room = 0;
      replan_locked(m);
    }
    auto until = std::chrono::system_clock::now() + std::chrono::milliseconds(200);
    while (!m.pressure.stop && m.changed.wait_until(lock, until) != std::cv_status::timeout) {
    }
  }
  return nullptr;
}

}  // namespace

namespace {

// Wants `switching`, which is held until the thread has ended: a second call waits for the first.
void stop_following(qd_model& m) {
  if (!m.pressure.on) return;
  {
    std::lock_guard<std::mutex> lock(m.state);
    m.pressure.stop = true;
    m.changed.notify_all();
  }
  pthread_join(m.pressure.thread, nullptr);
  m.pressure.on = false;
}

bool start_following(qd_model& m) {
  if (m.pressure.on) return true;
  {
    std::lock_guard<std::mutex> lock(m.state);
    m.pressure.stop = false;
    m.pressure.most = m.budget.bytes;
  }
  m.pressure.on = start_thread(&m.pressure.thread, follow, &m);
  return m.pressure.on;
}

}  // namespace

void stop_pressure(qd_model& m) {
  std::lock_guard<std::mutex> lock(m.pressure.switching);
  stop_following(m);
}

}  // namespace qd

using namespace qd;

extern "C" qd_status qd_follow_pressure(qd_model* m, int on, qd_error* err) {
  if (!m) return fail(err, QD_BAD_ARGUMENT, "qd_follow_pressure: no model");
#if !defined(__linux__)
  return fail(err, QD_UNSUPPORTED, "qd_follow_pressure: Linux only; move the budget from the system's own callback");
#endif
  std::lock_guard<std::mutex> lock(m->pressure.switching);
  if (!on) stop_following(*m);
  else if (!start_following(*m)) return fail(err, QD_NO_MEMORY, "qd_follow_pressure: no thread");
  return QD_OK;
}
