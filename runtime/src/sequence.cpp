// Sequences of an engine: opening with what the prompt cache has, tokens, forks, and what is sampled.
#include <algorithm>
#include <cstring>
#include <new>

#include "engine.h"
#include "session.h"

namespace qd {

using namespace format;

namespace {

Checked lay_out(qd_sequence& s, uint8_t* base) {
  const qd_model& m = *s.engine->model;
  Layout room(base);
  s.kv.fixed = base;
  room.skip(m.cache.fixed_bytes);
  room.take(&s.kv.blocks, s.needs);
  room.take(&s.blocks, s.needs);
  room.take(&s.tokens, s.context);
  room.take(&s.logits, round_up(m.file.header.vocab, 16));
  return room.used();
}

void discharge_locked(qd_sequence& s) {
  qd_model& m = *s.engine->model;
  m.budget.sessions -= s.charged;
  m.budget.lost += s.memory.reset();
  s.charged = 0;
}

// Without tokens: states of fixed size are zeros, as the system gives them.
qd_status charge(qd_sequence& s, qd_error* err) {
  qd_model& m = *s.engine->model;
  Checked bytes = lay_out(s, nullptr);
  std::lock_guard<std::mutex> lock(m.state);
  Checked least = Checked(floor_locked(m)) + bytes;
  if (!least.at_most(m.budget.bytes)) {  // what is promised next would be missing, too
    return fail_floor(err, m.budget.bytes, (least + Checked(s.needs) * block_held(m)).value());
  }
  if (!s.memory.make(bytes.value())) return fail(err, QD_NO_MEMORY, "sequence: the system gives no memory for it");
  lay_out(s, s.memory.data);
  s.charged = bytes.value();
  m.budget.sessions += s.charged;
  replan_locked(m);
  return QD_OK;
}

void hold(qd_sequence& s, KvBlock* block) {
  s.blocks[s.held] = block;
  s.kv.blocks[s.held++] = block->memory.data;
}

// Full blocks of the prompt that are there, at this rung; at least one token is left to compute.
void reuse(qd_sequence& s) {
  qd_engine& e = *s.engine;
  qd_model& m = *e.model;
  if (e.recurrent || (e.least_beyond > 0 && s.given > e.least_beyond)) return;
  std::lock_guard<std::mutex> lock(m.state);
  while ((s.held + 1) * kBlockTokens < s.given) {
    uint64_t parent = parent_serial(s, s.held);
    KvBlock* block = find_locked(m, parent, s.tokens + uint64_t{s.held} * kBlockTokens, m.stack.have);
    if (!block) break;
    hold(s, block);
  }
  s.reused = s.length = s.held * kBlockTokens;
}

qd_status append(qd_sequence& s, const int32_t* tokens, size_t n, qd_error* err) {
  if (n > s.context - s.given)
    return fail(err, QD_CONTEXT_FULL, "tokens: found %zu, allowed at most %u of this sequence", n, s.context - s.given);
  size_t where;
  if (!tokens_fit(s.engine->model->file, tokens, n, &where))
    return fail(err, QD_BAD_ARGUMENT, "token %zu: found %d, which is not in the vocabulary", where, tokens[where]);
  std::memcpy(s.tokens + s.given, tokens, n * sizeof(int32_t));
  s.given += static_cast<uint32_t>(n);
  s.total = s.given;
  s.ready = false;
  return QD_OK;
}

// The block at `index` becomes the sequence's own, with what it holds.
bool copy_block(qd_sequence& s, uint32_t index) {
  qd_model& m = *s.engine->model;
  KvBlock* own = make_block(m);
  if (!own) return false;
  --s.promised;
  own->rung = s.blocks[index]->rung;
  std::memcpy(own->memory.data, s.blocks[index]->memory.data, m.cache.block_bytes);
  s.kv.blocks[index] = own->memory.data;
  std::swap(own, s.blocks[index]);
  std::lock_guard<std::mutex> lock(m.state);
  release_locked(m, own);
  return true;
}

// Blocks behind `length` tokens go back, and room for as many is promised; a last one that others see, too, is copied.
qd_status give_blocks_back(qd_sequence& s, uint32_t length, qd_error* err) {
  qd_model& m = *s.engine->model;
  uint32_t kept = static_cast<uint32_t>(round_up(length, kBlockTokens) / kBlockTokens), shared = 0;
  bool written = length < s.length && length % kBlockTokens != 0;
  bool copied = written && (s.blocks[kept - 1]->keyed || s.blocks[kept - 1]->references > 1);
  {
    std::lock_guard<std::mutex> lock(m.state);
    for (uint32_t i = kept; i < s.held; ++i) shared += s.blocks[i]->references > 1;
    if (qd_status status = promise_locked(m, shared + copied, err)) return status;
    uint32_t own = s.held > kept ? s.held - kept - shared : 0;
    s.promised += shared + copied + own;
    for (; s.held > kept; --s.held) release_locked(m, s.blocks[s.held - 1]);
    promise_again_locked(m, own);
  }
  if (!copied || copy_block(s, kept - 1)) return QD_OK;
  return fail(err, QD_NO_MEMORY, "blocks: the system gives no memory for one that was promised");
}

void share_blocks(qd_sequence& from, qd_sequence& to) {
  std::lock_guard<std::mutex> lock(from.engine->model->state);
  for (uint32_t i = 0; i < from.held; ++i) {
    ++from.blocks[i]->references;
    hold(to, from.blocks[i]);
  }
}

}  // namespace

void destroy_sequence(qd_sequence* s) {
  qd_engine& e = *s->engine;
  qd_model& m = *e.model;
  std::lock_guard<std::mutex> lock(m.state);
  for (uint32_t i = s->held; i-- > 0;) release_locked(m, s->blocks[i]);  // the end of a text goes first
  discharge_locked(*s);
  forgive_locked(m, s->promised);
  qd_sequence **end = e.sequences + e.count, **at = std::find(e.sequences, end, s);
  if (at != end) {
    std::copy(at + 1, end, at);
    --e.count;
  }
  delete s;
}

qd_status make_sequence(qd_engine& e, uint32_t context, qd_sequence** out, qd_error* err) {
  uint32_t most = e.model->file.header.context;
  if (context == 0 || context > most)
    return fail(err, QD_BAD_ARGUMENT, "context: found %u, allowed 1 to %u", context, most);
  if (e.count == e.most) return fail(err, QD_BUSY, "sequences: found %u, allowed at most as many; close one", e.count);
  qd_sequence* s = new (std::nothrow) qd_sequence;
  if (!s) return fail(err, QD_NO_MEMORY, "sequence: the system gives no memory for it");
  s->engine = &e;
  s->context = context;
  s->needs = static_cast<uint32_t>(round_up(context, kBlockTokens) / kBlockTokens);
  if (qd_status status = charge(*s, err)) {
    delete s;
    return status;
  }
  e.sequences[e.count++] = s;
  *out = s;
  return QD_OK;
}

qd_status promise_rest(qd_sequence& s, qd_error* err) {
  std::lock_guard<std::mutex> lock(s.engine->model->state);
  qd_status status = promise_locked(*s.engine->model, s.needs - s.held, err);
  if (status == QD_OK) s.promised = s.needs - s.held;
  return status;
}

bool add_block(qd_sequence& s) {
  KvBlock* block = make_block(*s.engine->model);
  if (!block) return false;
  --s.promised;
  hold(s, block);
  return true;
}

}  // namespace qd

using namespace qd;

extern "C" qd_status qd_sequence_open(qd_engine* e, const int32_t* tokens, size_t n, uint32_t context, qd_sequence** out,
                                      qd_error* err) {
  if (out) *out = nullptr;
  if (!e || !tokens || n == 0 || !out) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_open: a null pointer, or no tokens");
  qd_sequence* s = nullptr;
  if (qd_status status = make_sequence(*e, context, &s, err)) return status;
  qd_status status = append(*s, tokens, n, err);
  if (status == QD_OK) {
    reuse(*s);
    status = promise_rest(*s, err);
  }
  if (status != QD_OK) return destroy_sequence(s), status;
  e->prompt_tokens += n;
  e->reused_tokens += s->reused;
  *out = s;
  return QD_OK;
}

extern "C" void qd_sequence_close(qd_sequence* s) {
  if (s) destroy_sequence(s);
}

extern "C" qd_status qd_sequence_push(qd_sequence* s, const int32_t* tokens, size_t n, qd_error* err) {
  if (!s || !tokens || n == 0) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_push: a null pointer, or no tokens");
  return append(*s, tokens, n, err);
}

extern "C" const float* qd_sequence_logits(const qd_sequence* s) { return s && s->ready ? s->logits : nullptr; }

extern "C" qd_status qd_sequence_sample(qd_sequence* s, const qd_sampling* sampling, const uint32_t* mask, int32_t* out,
                                        qd_error* err) {
  if (!s || !out) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_sample: a null pointer");
  if (!s->ready) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_sample: %u tokens wait for a step", s->given - s->length);
  return choose(s->engine->candidates, s->engine->model->file.header.vocab, sampling, s->logits, s->tokens, s->given, mask,
                out, err);
}

extern "C" qd_status qd_sequence_fork(qd_sequence* s, qd_sequence** out, qd_error* err) {
  if (out) *out = nullptr;
  if (!s || !out) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_fork: a null pointer");
  qd_sequence* copy = nullptr;
  if (qd_status status = make_sequence(*s->engine, s->context, &copy, err)) return status;
  const qd_model& m = *s->engine->model;
  share_blocks(*s, *copy);
  bool part = s->length % kBlockTokens != 0;  // its last block is copied: both write to it
  if (part) --copy->held;
  qd_status status = promise_rest(*copy, err);
  if (part) ++copy->held;
  if (status == QD_OK && part && !copy_block(*copy, copy->held - 1))
    status = fail(err, QD_NO_MEMORY, "blocks: the system gives no memory for one that was promised");
  if (status != QD_OK) return destroy_sequence(copy), status;
  copy->given = s->given;
  copy->length = s->length;
  copy->total = s->total;
  copy->ready = s->ready;
  copy->reused = s->reused;
  std::memcpy(copy->tokens, s->tokens, s->given * sizeof(int32_t));
  std::memcpy(copy->logits, s->logits, m.file.header.vocab * sizeof(float));
  if (m.cache.fixed_bytes) std::memcpy(copy->kv.fixed, s->kv.fixed, m.cache.fixed_bytes);
  *out = copy;
  return QD_OK;
}

extern "C" qd_status qd_sequence_trim(qd_sequence* s, uint32_t keep, qd_error* err) {
  if (!s) return fail(err, QD_BAD_ARGUMENT, "qd_sequence_trim: no sequence");
  if (keep > s->given) return fail(err, QD_BAD_ARGUMENT, "keep: found %u, allowed at most %u", keep, s->given);
  qd_model& m = *s->engine->model;
  if (s->engine->recurrent && keep < s->length) {
    if (keep > 0)
      return fail(err, QD_UNSUPPORTED, "keep: found %u, allowed 0 or all %u; states of fixed size do not go back", keep,
                  s->length);
    std::memset(s->kv.fixed, 0, m.cache.fixed_bytes);
  }
  uint32_t length = std::min(keep, s->length);
  if (qd_status status = give_blocks_back(*s, length, err)) return status;
  s->ready = s->ready && keep == s->given;
  s->given = s->total = keep;
  s->length = length;
  return QD_OK;
}

extern "C" uint32_t qd_sequence_length(const qd_sequence* s) { return s ? s->given : 0; }
extern "C" uint32_t qd_sequence_reused(const qd_sequence* s) { return s ? s->reused : 0; }
