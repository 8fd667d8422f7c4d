#pragma once
#include "error.h"

namespace qd {

// Opens a path as a source; what has been read is dropped from the page cache, which would be charged to our group.
qd_status open_path(const char* path, qd_source* out, qd_error* err);
// All n bytes or an error.
qd_status read_fully(const qd_source& source, uint64_t at, void* to, uint64_t n, qd_error* err);

}  // namespace qd
