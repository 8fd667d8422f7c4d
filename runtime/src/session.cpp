// Sessions of decoders: the cache, prompts in chunks, cancelling.
#include "session.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "walker.h"

namespace qd {

using namespace format;

namespace {

uint64_t half_bytes(const qd_model& m, uint32_t state, uint64_t context) {  // keys or values of one head, with scales
  uint64_t d = m.file.states[state].head_dim;
  if (m.cache == QD_KV_INT8) return round_up(context * d, 64) + round_up(context * 4, 64);
  return round_up(context * d * (m.cache == QD_KV_F32 ? 4 : 2), 64);
}

uint64_t cache_bytes(const qd_model& m, uint32_t states, uint64_t context) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < states; ++i) bytes += 2 * m.file.states[i].heads * half_bytes(m, i, context);
  return bytes;
}

uint32_t inputs_of(const File& f) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < f.count(kValues); ++i) n += f.values[i].kind == kIds;
  return n;
}

void lay_out(qd_session& s, uint8_t* base, uint64_t* kv, uint64_t* all) {
  const qd_model& m = *s.model;
  uint64_t at = round_up(cache_bytes(m, m.file.count(kStates), s.context), 4096);
  *kv = at;
  s.cache = base;
  auto take = [&](uint64_t bytes) {
    uint8_t* p = base + at;
    at += round_up(bytes + 64, 64);
    return p;
  };
  s.state_at = reinterpret_cast<uint64_t*>(take(8 * m.file.count(kStates)));
  s.scores = reinterpret_cast<float*>(take(4 * uint64_t{m.pool.threads()} * s.context));
  bool encoder = m.file.header.kind == kEncoder;
  s.ids = reinterpret_cast<int32_t*>(take(encoder ? 4 * uint64_t{inputs_of(m.file)} * s.context : 0));
  s.candidates = take(8 * uint64_t{m.file.header.vocab});
  *all = round_up(at, 4096);
}

qd_status charge(qd_session& s, qd_error* err) {
  qd_model& m = *s.model;
  std::lock_guard<std::mutex> lock(m.state);
  uint64_t more = s.charged_kv + s.charged_scratch;
  if (m.budget < floor_locked(m) + more) return fail_floor(err, m.budget, floor_locked(m) + more);
  m.kv += s.charged_kv;
  m.session_scratch += s.charged_scratch;
  ++m.sessions;
  replan_locked(m);
  return QD_OK;
}

void discharge(qd_session& s) {
  qd_model& m = *s.model;
  std::lock_guard<std::mutex> lock(m.state);
  m.kv -= s.charged_kv;
  m.session_scratch -= s.charged_scratch;
  --m.sessions;
  replan_locked(m);
}

bool make_memory(qd_session& s, uint64_t bytes) {
  uint64_t unused, all;
  if (!s.memory.make(bytes)) return false;
  lay_out(s, s.memory.data, &unused, &all);
  for (uint32_t i = 0; i < s.model->file.count(kStates); ++i) s.state_at[i] = cache_bytes(*s.model, i, s.context);
  return s.model->file.header.kind == kDecoder || make_workspace(*s.model, s.context, &s.own);
}

// Ids index the rows of every matrix that embeds them.
bool tokens_fit(const File& f, const int32_t* tokens, size_t n, size_t* where) {
  uint32_t rows = f.header.vocab;
  for (uint32_t i = 0; i < f.count(kNodes); ++i)
    if (f.nodes[i].op == kEmbed) rows = std::min(rows, f.matrices[f.nodes[i].matrix].rows);
  for (*where = 0; *where < n; ++*where)
    if (static_cast<uint32_t>(tokens[*where]) >= rows) return false;
  return true;
}

void run_chunk(qd_session& s, const int32_t* tokens, uint32_t n, float* logits) {
  qd_model& m = *s.model;
  uint32_t rung = begin_step(m);
  uint64_t start = now_ns();
  for (uint32_t i = 0; i < m.file.count(kValues); ++i)
    if (m.file.values[i].kind == kIds) m.workspace.ids[i] = tokens;
  walk(s, n, rung, logits);
  s.last = {sizeof s.last, rung, n, now_ns() - start};
  end_step(m);
}

}  // namespace

CacheView cache_of(const qd_session& s, uint32_t state, uint32_t head) {
  const qd_model& m = *s.model;
  uint64_t half = half_bytes(m, state, s.context);
  uint8_t* keys = s.cache + s.state_at[state] + 2 * head * half;
  uint64_t scales = round_up(uint64_t{s.context} * m.file.states[state].head_dim, 64);
  if (m.cache != QD_KV_INT8) scales = 0;
  return {keys, keys + half, reinterpret_cast<float*>(keys + scales), reinterpret_cast<float*>(keys + half + scales)};
}

}  // namespace qd

using namespace qd;

extern "C" qd_status qd_session_open(qd_model* m, uint32_t context, qd_session** out, qd_error* err) {
  if (out) *out = nullptr;
  if (!m || !out) return fail(err, QD_BAD_ARGUMENT, "qd_session_open: a null pointer");
  uint32_t most = m->file.header.context;
  if (context == 0) context = most;
  if (context > most) return fail(err, QD_BAD_ARGUMENT, "context: found %u, allowed at most %u", context, most);
  qd_session* s = new (std::nothrow) qd_session;
  if (!s) return fail(err, QD_NO_MEMORY, "session: the system gives no memory for it");
  s->model = m;
  s->context = context;
  uint64_t all;
  lay_out(*s, reinterpret_cast<uint8_t*>(uintptr_t{4096}), &s->charged_kv, &all);
  s->charged_scratch = all - s->charged_kv;
  if (m->file.header.kind == format::kEncoder) s->charged_scratch += workspace_bytes(*m, context);
  qd_status status = charge(*s, err);
  if (status == QD_OK && !make_memory(*s, all)) {
    discharge(*s);
    status = fail(err, QD_NO_MEMORY, "session: the system gives no memory for a context of %u", context);
  }
  if (status != QD_OK) {
    delete s;
    return status;
  }
  *out = s;
  return QD_OK;
}

extern "C" void qd_session_close(qd_session* s) {
  if (s == nullptr) return;
  s->memory.reset();
  s->own.memory.reset();
  discharge(*s);
  delete s;
}

extern "C" qd_status qd_session_trim(qd_session* s, uint32_t keep, qd_error* err) {
  if (!s) return fail(err, QD_BAD_ARGUMENT, "qd_session_trim: no session");
  if (keep > s->length) return fail(err, QD_BAD_ARGUMENT, "keep: found %u, allowed at most %u", keep, s->length.load());
  s->length = keep;
  return QD_OK;
}

extern "C" uint32_t qd_session_length(const qd_session* s) { return s ? s->length.load() : 0; }

extern "C" qd_status qd_decode(qd_session* s, const int32_t* tokens, size_t n, float* logits, qd_error* err) {
  if (!s || !tokens || n == 0) return fail(err, QD_BAD_ARGUMENT, "qd_decode: no session or no tokens");
  const qd_model& m = *s->model;
  if (m.file.header.kind != format::kDecoder) return fail(err, QD_UNSUPPORTED, "qd_decode: an encoder; use qd_run");
  if (n > s->context - s->length)
    return fail(err, QD_CONTEXT_FULL, "tokens: found %zu, allowed at most %u; trim the session", n,
                s->context - s->length);
  size_t where;
  if (!tokens_fit(m.file, tokens, n, &where))
    return fail(err, QD_BAD_ARGUMENT, "token %zu: found %d, which is not in the vocabulary", where, tokens[where]);
  for (size_t at = 0; at < n;) {
    if (s->cancel.exchange(false)) return fail(err, QD_CANCELLED, "cancelled after %zu tokens", at);
    uint32_t chunk = static_cast<uint32_t>(std::min<size_t>(m.max_chunk, n - at));
    run_chunk(*s, tokens + at, chunk, at + chunk == n ? logits : nullptr);
    s->length += chunk;
    at += chunk;
  }
  return QD_OK;
}

extern "C" qd_status qd_step_info(const qd_session* s, qd_step* out) {
  if (!s || !out || out->size < sizeof *out) return QD_BAD_ARGUMENT;
  *out = s->last;
  return QD_OK;
}

extern "C" void qd_cancel(qd_session* s) {
  if (s) s->cancel = true;
}
