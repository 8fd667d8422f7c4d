#define _FILE_OFFSET_BITS 64  // places beyond 2 GiB on 32-bit systems, too
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

namespace qd {
namespace {

constexpr uint64_t kMostAtOnce = uint64_t{1} << 30;  // of a read: what any size_t holds

int descriptor(void* ctx) { return static_cast<int>(reinterpret_cast<intptr_t>(ctx)); }

int64_t read_path(void* ctx, uint64_t at, void* to, size_t n) {
  ssize_t got;
  do got = pread(descriptor(ctx), to, n, static_cast<off_t>(at));
  while (got < 0 && errno == EINTR);
#ifdef POSIX_FADV_DONTNEED
  if (got > 0) posix_fadvise(descriptor(ctx), static_cast<off_t>(at), got, POSIX_FADV_DONTNEED);
#endif
  return got;
}

void close_path(void* ctx) { close(descriptor(ctx)); }

}  // namespace

qd_status open_path(const char* path, qd_source* out, qd_error* err) {
  static_assert(sizeof(off_t) == 8, "files may be larger than the address space");
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not wait for its writer: it is refused below
  if (fd < 0) return fail(err, QD_IO, "%.300s: cannot be opened: %.80s", path, strerror(errno));
  struct stat s;
  if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) {
    close(fd);
    return fail(err, QD_IO, "%.300s: not a regular file", path);
  }
  *out = {reinterpret_cast<void*>(static_cast<intptr_t>(fd)), static_cast<uint64_t>(s.st_size), read_path, close_path};
  return QD_OK;
}

qd_status read_fully(const qd_source& source, uint64_t at, void* to, uint64_t n, qd_error* err) {
  uint8_t* p = static_cast<uint8_t*>(to);
  while (n > 0) {
    size_t part = static_cast<size_t>(n < kMostAtOnce ? n : kMostAtOnce);
    int64_t got = source.read(source.ctx, at, p, part);
    if (got <= 0 || static_cast<uint64_t>(got) > part)
      return fail(err, QD_IO, "source: %llu bytes at %llu cannot be read; is the file cut short?",
                  static_cast<unsigned long long>(n), static_cast<unsigned long long>(at));
    p += got;
    at += static_cast<uint64_t>(got);
    n -= static_cast<uint64_t>(got);
  }
  return QD_OK;
}

}  // namespace qd
