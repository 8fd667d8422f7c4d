// Status and text of a failure, in the caller's struct. Nothing here allocates.
#pragma once
#include <cstdarg>
#include <cstdio>

#pragma GCC visibility push(default)
#include "../include/qdeploy.h"
#pragma GCC visibility pop

namespace qd {

__attribute__((format(printf, 3, 4))) inline qd_status fail(qd_error* err, qd_status status, const char* format, ...) {
  if (err == nullptr) return status;
  err->status = status;
  err->floor_bytes = 0;
  va_list list;
  va_start(list, format);
  std::vsnprintf(err->text, sizeof err->text, format, list);
  va_end(list);
  return status;
}

inline qd_status fail_floor(qd_error* err, uint64_t budget, uint64_t floor) {
  fail(err, QD_BUDGET_UNDER_FLOOR,
       "budget: found %llu bytes, allowed %llu or more; raise the budget or close a session",
       static_cast<unsigned long long>(budget), static_cast<unsigned long long>(floor));
  if (err != nullptr) err->floor_bytes = floor;
  return QD_BUDGET_UNDER_FLOOR;
}

void log_line(int level, const char* line);

}  // namespace qd
