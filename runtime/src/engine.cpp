#include "engine.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>

#include "session.h"

namespace qd {

using namespace format;

namespace {

constexpr uint32_t kSequences = 16;  // where nobody says how many
constexpr uint32_t kLogitRows = 16;  // of one product with the vocabulary

uint32_t least_beyond(const File& f) {
  uint32_t least = 0;
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    if (f.nodes[i].op != kAttention) continue;
    uint32_t beyond = attention_kind(f, f.nodes[i]).beyond;
    if (beyond > 0 && (least == 0 || beyond < least)) least = beyond;
  }
  return least;
}

Checked lay_out(qd_engine& e, uint8_t* base) {
  Layout room(base);
  uint64_t vocab = e.model->file.header.vocab;
  e.logits_floats = round_up(vocab, 16) * std::min(e.most, kLogitRows);
  room.take(&e.ids, e.rows);
  room.take(&e.logits, e.logits_floats);
  room.take(&e.candidates, Checked(8) * vocab);
  return room.used();
}

qd_status charge(qd_engine& e, uint64_t bytes, qd_error* err) {
  qd_model& m = *e.model;
  std::lock_guard<std::mutex> lock(m.state);
  Checked least = Checked(floor_locked(m)) + bytes;
  if (!least.at_most(m.budget.bytes)) return fail_floor(err, m.budget.bytes, least.value());
  if (!e.memory.make(bytes)) return fail(err, QD_NO_MEMORY, "engine: the system gives no memory for it");
  lay_out(e, e.memory.data);
  e.charged = bytes;
  m.budget.sessions += bytes;
  ++m.budget.open_sessions;
  replan_locked(m);
  return QD_OK;
}

// ---- a step

struct Plan {
  Span spans[kMostSpans];
  qd_sequence* of[kMostSpans];
  uint32_t count = 0, rows = 0;
};

uint32_t waiting(const qd_sequence& s) { return s.given - s.length; }

// False: the system has no memory for its blocks.
bool take(qd_engine& e, Plan& plan, qd_sequence& s, uint32_t tokens) {
  while (uint64_t{s.held} * kBlockTokens < s.length + tokens)
    if (!add_block(s)) return false;
  std::memcpy(e.ids + plan.rows, s.tokens + s.length, tokens * sizeof(int32_t));
  bool last = tokens == waiting(s);
  plan.of[plan.count] = &s;
  plan.spans[plan.count++] = {&s.kv, plan.rows, tokens, s.length, s.total, last ? s.logits : nullptr};
  plan.rows += tokens;
  return true;
}

// Those with one token first, then the rest of the rows for prompts.
bool make_plan(qd_engine& e, Plan& plan) {
  for (uint32_t i = 0; i < e.count && plan.rows < e.rows; ++i) {
    qd_sequence& s = *e.sequences[(e.turn + i) % e.count];
    if (waiting(s) == 1 && !take(e, plan, s, 1)) return false;
  }
  for (uint32_t i = 0; i < e.count && plan.rows < e.rows; ++i) {
    qd_sequence& s = *e.sequences[i];
    if (waiting(s) > 1 && !take(e, plan, s, std::min(waiting(s), e.rows - plan.rows))) return false;
  }
  if (e.count > 0) e.turn = (e.turn + 1) % e.count;
  return true;
}

void run(qd_engine& e, const Plan& plan) {
  qd_model& m = *e.model;
  Turn turn = begin_step(m, nullptr);
  uint64_t start = now_ns();
  for (uint32_t i = 0; i < m.file.count(kValues); ++i)
    if (m.file.values[i].kind == kIds) turn.workspace->ids[i] = e.ids;
  walk(m, turn, {plan.spans, plan.count, false, e.logits, e.logits_floats});
  e.last = {sizeof e.last, turn.rung, plan.rows, now_ns() - start};
  ++e.steps;
  end_step(m, turn, nullptr);
}

// Blocks that the step has filled can be found by others.
void key_blocks_locked(qd_engine& e, qd_sequence& s, uint32_t before) {
  if (e.recurrent || (e.least_beyond > 0 && s.total > e.least_beyond)) return;
  for (uint32_t block = before / kBlockTokens; block < s.length / kBlockTokens; ++block) {
    uint64_t parent = parent_serial(s, block);
    if (parent == UINT64_MAX || s.blocks[block]->rung == kNone) continue;
    s.blocks[block] = key_locked(*e.model, s.blocks[block], parent, s.tokens + uint64_t{block} * kBlockTokens);
    s.kv.blocks[block] = s.blocks[block]->memory.data;
  }
}

// A block has the rung of all its tokens, or none.
void note_rungs(qd_sequence& s, uint32_t before, uint32_t rung) {
  for (uint32_t block = before / kBlockTokens; block * kBlockTokens < s.length; ++block) {
    bool fresh = before <= block * kBlockTokens;
    s.blocks[block]->rung = fresh || s.blocks[block]->rung == rung ? rung : kNone;
  }
}

void settle(qd_engine& e, const Plan& plan) {
  std::lock_guard<std::mutex> lock(e.model->state);
  for (uint32_t i = 0; i < plan.count; ++i) {
    qd_sequence& s = *plan.of[i];
    uint32_t before = s.length;
    s.length += plan.spans[i].tokens;
    s.ready = s.length == s.given;
    note_rungs(s, before, e.last.rung);
    key_blocks_locked(e, s, before);
  }
}

}  // namespace
}  // namespace qd

using namespace qd;

extern "C" qd_status qd_engine_open(qd_model* m, const qd_engine_options* options, qd_engine** out, qd_error* err) {
  if (out) *out = nullptr;
  if (!m || !out) return fail(err, QD_BAD_ARGUMENT, "qd_engine_open: a null pointer");
  if (m->file.header.kind != kDecoder) return fail(err, QD_UNSUPPORTED, "qd_engine_open: an encoder; use qd_run");
  qd_engine_options o = QD_INIT(qd_engine_options);
  if (options) std::memcpy(&o, options, std::min<size_t>(options->size, sizeof o));
  if (o.sequences > kMostSpans)
    return fail(err, QD_BAD_ARGUMENT, "sequences: found %u, allowed at most %u", o.sequences, kMostSpans);
  qd_engine* e = new (std::nothrow) qd_engine;
  if (!e) return fail(err, QD_NO_MEMORY, "engine: the system gives no memory for it");
  e->model = m;
  e->most = o.sequences ? o.sequences : kSequences;
  e->rows = o.rows ? std::min(o.rows, m->settings.max_chunk) : m->settings.max_chunk;
  e->least_beyond = least_beyond(m->file);
  e->recurrent = is_recurrent(m->file);
  if (qd_status status = charge(*e, lay_out(*e, nullptr).value(), err)) {
    delete e;
    return status;
  }
  std::lock_guard<std::mutex> lock(m->state);
  m->blocks.most = o.kv_bytes ? o.kv_bytes : UINT64_MAX;
  *out = e;
  return QD_OK;
}

extern "C" qd_status qd_engine_close(qd_engine* e) {
  if (e == nullptr) return QD_OK;
  if (e->count > 0) return QD_BUSY;
  qd_model& m = *e->model;
  std::lock_guard<std::mutex> lock(m.state);
  m.budget.sessions -= e->charged;
  m.budget.lost += e->memory.reset();
  if (--m.budget.open_sessions == 0) trim_prompt_cache_locked(m, 0);
  replan_locked(m);
  delete e;
  return QD_OK;
}

extern "C" qd_status qd_engine_step(qd_engine* e, qd_sequence** ready, size_t capacity, size_t* n, qd_error* err) {
  if (n) *n = 0;
  if (!e || !ready || !n) return fail(err, QD_BAD_ARGUMENT, "qd_engine_step: a null pointer");
  if (capacity < e->count)
    return fail(err, QD_BAD_ARGUMENT, "capacity: found %zu, allowed %u or more", capacity, e->count);
  Plan plan;
  if (!make_plan(*e, plan)) return fail(err, QD_NO_MEMORY, "blocks: the system gives no memory for one that was promised");
  if (plan.count == 0) return QD_OK;
  run(*e, plan);
  settle(*e, plan);
  for (uint32_t i = 0; i < plan.count; ++i)
    if (plan.of[i]->ready) ready[(*n)++] = plan.of[i];
  return QD_OK;
}

extern "C" qd_status qd_engine_info(const qd_engine* e, qd_engine_stats* out) {
  if (!e || !out || out->size < sizeof(uint32_t)) return QD_BAD_ARGUMENT;
  qd_engine_stats now = QD_INIT(qd_engine_stats);
  now.size = out->size;
  now.sequences = e->count;
  for (uint32_t i = 0; i < e->count; ++i) now.waiting += waiting(*e->sequences[i]) > 0;
  now.rung = e->last.rung;
  now.tokens = e->last.tokens;
  now.nanoseconds = e->last.nanoseconds;
  now.steps = e->steps;
  now.prompt_tokens = e->prompt_tokens;
  now.reused_tokens = e->reused_tokens;
  {
    std::lock_guard<std::mutex> lock(e->model->state);
    now.block_bytes = block_held(*e->model);
    now.blocks = e->model->blocks.count;
    now.cached_blocks = e->model->blocks.cached;
  }
  std::memcpy(out, &now, std::min<size_t>(out->size, sizeof now));
  return QD_OK;
}
