// Text, token by token, until something ends it.
//
// Which tokens end a text stands in the metadata's entry "meta": a JSON object whose key "eos_token_id" has a number or
// a list of them. What is read of it is that one key; whatever else a text holds, it is only walked over.
#include <cstring>

#include "session.h"

namespace qd {
namespace {

struct Text {
  const char *at, *end;
  bool done() const { return at >= end; }
  void skip_spaces() {
    while (!done() && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) ++at;
  }
  bool take(char c) {
    if (done() || *at != c) return false;
    ++at;
    return true;
  }
};

// Behind a string's first quote: moves behind its last one. Whether what stands between them, as it is written, is `key`.
bool is_string(Text& t, const char* key) {
  const char* start = t.at;
  while (!t.done() && *t.at != '"') t.at += *t.at == '\\' && t.end - t.at > 1 ? 2 : 1;
  size_t bytes = static_cast<size_t>(t.at - start);
  t.take('"');
  return bytes == std::strlen(key) && std::memcmp(start, key, bytes) == 0;
}

// A token's id, or a negative number where there is none.
int64_t id(Text& t) {
  int64_t n = -1;
  for (; !t.done() && *t.at >= '0' && *t.at <= '9'; ++t.at)
    if ((n = (n < 0 ? 0 : n * 10) + (*t.at - '0')) > INT32_MAX) return -1;
  return n;
}

// The ids of a number or a list of numbers; others are passed over.
size_t ids(Text& t, int32_t* to, size_t capacity) {
  size_t count = 0;
  bool list = t.take('[');
  do {
    t.skip_spaces();
    int64_t n = id(t);
    if (n >= 0 && count++ < capacity) to[count - 1] = static_cast<int32_t>(n);
    while (list && !t.done() && *t.at != ',' && *t.at != ']') ++t.at;
  } while (list && t.take(','));
  return count;
}

size_t ids_of(Text t, const char* key, int32_t* to, size_t capacity) {
  for (uint32_t depth = 0; !t.done();) {
    char c = *t.at++;
    if (c == '{' || c == '[') ++depth;
    if ((c == '}' || c == ']') && depth-- == 0) return 0;
    if (c != '"' || !is_string(t, key) || depth != 1) continue;
    t.skip_spaces();
    if (!t.take(':')) continue;
    t.skip_spaces();
    return ids(t, to, capacity);
  }
  return 0;
}

constexpr size_t kMostStops = 64;

struct Stops {
  int32_t ids[kMostStops];
  size_t count;
  explicit Stops(const qd_model* m) : count(qd_stop_tokens(m, ids, kMostStops)) {
    if (count > kMostStops) count = kMostStops;
  }
  bool has(int32_t token) const {
    for (size_t i = 0; i < count; ++i)
      if (ids[i] == token) return true;
    return false;
  }
};

qd_generation known(const qd_generation* how) {
  qd_generation g = QD_INIT(qd_generation);
  if (how != nullptr) std::memcpy(&g, how, how->size < sizeof g ? how->size : sizeof g);
  return g;
}

}  // namespace
}  // namespace qd

using namespace qd;

extern "C" size_t qd_stop_tokens(const qd_model* m, int32_t* to, size_t capacity) {
  format::MetaEntry e;
  if (!m || (!to && capacity > 0) || !find_metadata(m->file, "meta", &e)) return 0;
  const char* at = m->file.metadata + e.value_at;
  return ids_of({at, at + e.value_bytes}, "eos_token_id", to, capacity);
}

extern "C" qd_status qd_generate(qd_session* s, int32_t* tokens, size_t* n, size_t capacity, float* logits,
                                 const qd_generation* how, qd_finish* finish, qd_error* err) {
  if (finish) *finish = QD_FINISH_NONE;
  if (!s || !tokens || !n || !logits || !finish || *n == 0 || *n > capacity)
    return fail(err, QD_BAD_ARGUMENT, "qd_generate: a null pointer, no tokens, or more than there is room for");
  qd_generation g = known(how);
  Stops stops(s->model);
  for (size_t done = 0, most = *n + (g.tokens && g.tokens < capacity - *n ? g.tokens : capacity - *n); *n < most;) {
    if (done > 0 && s->length >= s->context) return *finish = QD_FINISH_CONTEXT, QD_OK;
    if (qd_status status = qd_decode(s, tokens + done, *n - done, logits, err)) return status;
    done = *n;
    int32_t token = 0;
    if (qd_status status = qd_sample(s, g.sampling, logits, tokens, *n, &token, err)) return status;
    if (stops.has(token)) return *finish = QD_FINISH_STOP, QD_OK;
    tokens[(*n)++] = token;
    if (g.token && g.token(g.ctx, token)) return *finish = QD_FINISH_STOP, QD_OK;
  }
  return *finish = QD_FINISH_LENGTH, QD_OK;
}
