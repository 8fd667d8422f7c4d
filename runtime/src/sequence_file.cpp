// A sequence in a file: a header, its tokens, its logits where it has them, its states of fixed size, its blocks, and a
// CRC-32C of all of that. It is read by a model of the same content, kind of cache and arithmetic, on any machine of the same
// order of bytes.
#include <cstdio>
#include <cstring>

#include "crc32c.h"
#include "engine.h"
#include "session.h"

namespace qd {

using namespace format;

namespace {

constexpr char kMagic[8] = {'Q', 'D', 'S', 'E', 'Q', '0', '0', '1'};

struct FileHeader {
  char magic[8];
  uint8_t content[32];
  uint32_t kv_dtype, exact, given, length, total, ready;
  uint64_t block_bytes, fixed_bytes;
};
static_assert(sizeof(FileHeader) == 80, "80 bytes");

FileHeader header_of(const qd_sequence& s) {
  const qd_model& m = *s.engine->model;
  FileHeader h{};
  std::memcpy(h.magic, kMagic, sizeof h.magic);
  std::memcpy(h.content, m.file.header.content_sha256, sizeof h.content);
  h.kv_dtype = static_cast<uint32_t>(m.settings.cache);
  h.exact = m.settings.exact;
  h.given = s.given, h.length = s.length, h.total = s.total, h.ready = s.ready;
  h.block_bytes = m.cache.block_bytes;
  h.fixed_bytes = m.cache.fixed_bytes;
  return h;
}

class Stream {  // of either direction, with the checksum of what went by
 public:
  Stream(const char* path, const char* mode) : file_(std::fopen(path, mode)) {}
  ~Stream() { close(); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  bool good() const { return file_ && good_; }
  void put(const void* data, uint64_t n) {
    if (good()) good_ = std::fwrite(data, 1, n, file_) == n;
    crc_ = crc32c(crc_, data, n);
  }
  void get(void* data, uint64_t n) {
    if (good()) good_ = std::fread(data, 1, n, file_) == n;
    if (good()) crc_ = crc32c(crc_, data, n);
  }
  uint32_t crc() const { return crc_; }
  bool ends() { return good() && std::fgetc(file_) == EOF; }
  bool close() {
    if (file_ && std::fclose(file_) != 0) good_ = false;
    file_ = nullptr;
    return good_;
  }

 private:
  std::FILE* file_;
  bool good_ = true;
  uint32_t crc_ = 0;
};

// Everything behind the header, in the order of the file.
template <class Part>
void parts(qd_sequence& s, const FileHeader& h, Part part) {
  const qd_model& m = *s.engine->model;
  part(s.tokens, uint64_t{h.given} * sizeof(int32_t));
  if (h.ready) part(s.logits, uint64_t{m.file.header.vocab} * sizeof(float));
  part(s.kv.fixed, h.fixed_bytes);
  for (uint32_t i = 0; i * kBlockTokens < h.length; ++i) part(s.kv.blocks[i], h.block_bytes);
}

qd_status check(const qd_model& m, const FileHeader& h, uint32_t context, qd_error* err) {
  if (std::memcmp(h.magic, kMagic, sizeof h.magic) != 0) return fail(err, QD_BAD_FILE, "sequence: not the file of one");
  if (std::memcmp(h.content, m.file.header.content_sha256, sizeof h.content) != 0)
    return fail(err, QD_BAD_FILE, "sequence: it was saved of another model");
  if (h.kv_dtype != static_cast<uint32_t>(m.settings.cache) || h.exact != m.settings.exact ||
      h.block_bytes != m.cache.block_bytes || h.fixed_bytes != m.cache.fixed_bytes)
    return fail(err, QD_BAD_FILE, "sequence: it was saved of another kind of cache or arithmetic");
  if (h.given == 0 || h.given > context || h.length > h.given || h.total != h.given || h.ready > 1 ||
      (h.ready && h.length != h.given))
    return fail(err, QD_BAD_FILE, "sequence: found %u tokens, allowed 1 to %u", h.given, context);
  return QD_OK;
}

qd_status read_into(qd_sequence& s, const FileHeader& h, Stream& file, qd_error* err) {
  while (s.held * kBlockTokens < h.length)
    if (!add_block(s)) return fail(err, QD_NO_MEMORY, "blocks: the system gives no memory for one that was promised");
  parts(s, h, [&](void* to, uint64_t n) { file.get(to, n); });
  uint32_t found = file.crc(), stored = 0;
  file.get(&stored, sizeof stored);
  if (!file.ends()) return fail(err, QD_BAD_FILE, "sequence: the file is cut short, or goes on");
  size_t where;
  if (found != stored || !tokens_fit(s.engine->model->file, s.tokens, h.given, &where))
    return fail(err, QD_CHECKSUM, "sequence: its checksum does not match");
  s.given = s.total = h.given;
  s.length = h.length;
  s.ready = h.ready != 0;
  return QD_OK;
}

}  // namespace
}  // namespace qd

using namespace qd;

extern "C" qd_status qd_sequence_save(const qd_sequence* s, const char* path, qd_error* err) {
  if (!s || !path) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_save: a null pointer");
  char beside[4096];
  int n = std::snprintf(beside, sizeof beside, "%s.part", path);
  if (n < 0 || static_cast<size_t>(n) >= sizeof beside) return fail(err, QD_BAD_ARGUMENT, "path: longer than allowed");
  FileHeader h = header_of(*s);
  Stream file(beside, "wb");
  file.put(&h, sizeof h);
  parts(*const_cast<qd_sequence*>(s), h, [&](const void* from, uint64_t bytes) { file.put(from, bytes); });
  uint32_t crc = file.crc();
  file.put(&crc, sizeof crc);
  bool written = file.good();
  if (file.close() && written && std::rename(beside, path) == 0) return QD_OK;
  std::remove(beside);
  return fail(err, QD_IO, "%.400s: cannot be written", path);
}

extern "C" qd_status qd_sequence_restore(qd_engine* e, const char* path, uint32_t context, qd_sequence** out, qd_error* err) {
  if (out) *out = nullptr;
  if (!e || !path || !out) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_restore: a null pointer");
  Stream file(path, "rb");
  FileHeader h{};
  file.get(&h, sizeof h);
  if (!file.good()) return fail(err, QD_IO, "%.400s: cannot be read", path);
  if (qd_status status = check(*e->model, h, context, err)) return status;
  qd_sequence* s = nullptr;
  if (qd_status status = make_sequence(*e, context, &s, err)) return status;
  qd_status status = promise_rest(*s, err);
  if (status == QD_OK) status = read_into(*s, h, file, err);
  if (status != QD_OK) return destroy_sequence(s), status;
  *out = s;
  return QD_OK;
}
