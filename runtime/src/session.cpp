// Sessions of decoders: the cache, prompts in chunks, cancelling.
#include "session.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "walker.h"

namespace qd {

using namespace format;

bool is_recurrent(const File& f) {
  for (uint32_t i = 0; i < f.count(kStates); ++i)
    if (f.states[i].kind != kCache) return true;
  return false;
}

bool tokens_fit(const File& f, const int32_t* tokens, size_t n, size_t* where) {
  uint32_t rows = f.header.vocab;
  for (uint32_t i = 0; i < f.count(kNodes); ++i)
    if (limits_ids(f.nodes[i])) rows = std::min(rows, f.matrices[f.nodes[i].matrix].rows);
  for (*where = 0; *where < n; ++*where)
    if (static_cast<uint32_t>(tokens[*where]) >= rows) return false;
  return true;
}

namespace {

uint32_t inputs_of(const File& f) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < f.count(kValues); ++i) n += f.values[i].kind == kIds;
  return n;
}

struct Needs {
  Checked cache, all;  // all: with the cache; not what an encoder computes in
};

// Where everything lies in the session's memory; of no memory what it needs.
Needs lay_out(qd_session& s, uint8_t* base) {
  const qd_model& m = *s.model;
  bool encoder = m.file.header.kind == kEncoder;
  uint64_t blocks = encoder ? 0 : round_up(s.context, kBlockTokens) / kBlockTokens;
  Checked fixed = m.cache.fixed_bytes, cache = (Checked(blocks) * m.cache.block_bytes + fixed).rounded_up(page_sizes().small);
  Layout room(base);
  s.sequence.fixed = base;
  room.skip(cache);
  room.take(&s.sequence.blocks, blocks);
  for (uint64_t i = 0; base && i < blocks; ++i) s.sequence.blocks[i] = base + fixed.value() + i * m.cache.block_bytes;
  room.take(&s.ids, encoder ? Checked(inputs_of(m.file)) * s.context : 0);
  room.take(&s.candidates, Checked(8) * m.file.header.vocab);
  return {cache, room.used()};
}

qd_status charge(qd_session& s, qd_error* err) {
  qd_model& m = *s.model;
  std::lock_guard<std::mutex> lock(m.state);
  Checked least = Checked(floor_locked(m)) + s.charged_kv + s.charged_scratch;
  if (!least.at_most(m.budget.bytes)) return fail_floor(err, m.budget.bytes, least.value());
  if (!least.at_most(machine_bytes()))  // addresses are free, and the cache is only written to when it is too late
    return fail(err, QD_NO_MEMORY, "context: found %u, whose cache takes %llu bytes; with it the model needs %llu, and "
                "the machine has %llu: open a session of a shorter context", s.context,
                static_cast<unsigned long long>(s.charged_kv), static_cast<unsigned long long>(least.value()),
                static_cast<unsigned long long>(machine_bytes()));
  m.budget.caches += s.charged_kv;
  m.budget.sessions += s.charged_scratch;
  ++m.budget.open_sessions;
  replan_locked(m);
  return QD_OK;
}

void discharge(qd_session& s) {
  qd_model& m = *s.model;
  std::lock_guard<std::mutex> lock(m.state);
  m.budget.caches -= s.charged_kv;
  m.budget.sessions -= s.charged_scratch;
  m.budget.lost += s.memory.reset() + s.own.memory.reset();
  --m.budget.open_sessions;
  replan_locked(m);
}

// States of fixed size are those of a sequence without tokens.
void forget(qd_session& s) { std::memset(s.sequence.fixed, 0, s.model->cache.fixed_bytes); }

bool make_memory(qd_session& s, uint64_t bytes) {
  if (!s.memory.make(bytes)) return false;
  lay_out(s, s.memory.data);
  return s.model->file.header.kind == kDecoder || make_workspace(*s.model, s.context, &s.own);
}

void run_chunk(qd_session& s, const int32_t* tokens, uint32_t n, uint32_t total, float* logits) {
  qd_model& m = *s.model;
  Turn turn = begin_step(m, nullptr);
  uint64_t start = now_ns();
  for (uint32_t i = 0; i < m.file.count(kValues); ++i)
    if (m.file.values[i].kind == kIds) turn.workspace->ids[i] = tokens;
  Span span{&s.sequence, 0, n, s.length, total, logits};
  walk(m, turn, {&span, 1, true, nullptr, 0});
  s.last = {sizeof s.last, turn.rung, n, now_ns() - start};
  end_step(m, turn, nullptr);
}

}  // namespace

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
  Needs needs = lay_out(*s, nullptr);
  Checked everything = needs.all;
  if (m->file.header.kind == format::kEncoder) everything += workspace_bytes(*m, context);
  if (!everything.good()) {
    delete s;
    return fail(err, QD_NO_MEMORY, "context: found %u, whose cache no address space holds", context);
  }
  s->charged_kv = needs.cache.value();
  s->charged_scratch = everything.value() - s->charged_kv;
  qd_status status = charge(*s, err);
  if (status == QD_OK && !make_memory(*s, needs.all.value())) {
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
  discharge(*s);
  delete s;
}

extern "C" qd_status qd_session_trim(qd_session* s, uint32_t keep, qd_error* err) {
  if (!s) return fail(err, QD_BAD_ARGUMENT, "qd_session_trim: no session");
  if (keep > s->length) return fail(err, QD_BAD_ARGUMENT, "keep: found %u, allowed at most %u", keep, s->length.load());
  if (keep < s->length && is_recurrent(s->model->file)) {
    if (keep > 0)
      return fail(err, QD_UNSUPPORTED, "keep: found %u, allowed 0 or all %u; states of fixed size do not go back", keep,
                  s->length.load());
    forget(*s);
  }
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
  uint32_t total = s->length + static_cast<uint32_t>(n);
  for (size_t at = 0; at < n;) {
    if (s->cancel.exchange(false)) return fail(err, QD_CANCELLED, "cancelled after %zu tokens", at);
    uint32_t chunk = static_cast<uint32_t>(std::min<size_t>(m.settings.max_chunk, n - at));
    run_chunk(*s, tokens + at, chunk, total, at + chunk == n ? logits : nullptr);
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
