// Encoders: one sequence in, outputs by name.
#include <algorithm>
#include <cstring>

#include "session.h"
#include "walker.h"

using namespace qd;
using namespace qd::format;

namespace {

int64_t length_of(const qd_tensor& t) {
  return t.rank == 1 ? t.shape[0] : t.rank == 2 && t.shape[0] == 1 ? t.shape[1] : -1;
}

const qd_tensor* find(const qd_tensor* in, size_t n, const char* name) {
  for (size_t i = 0; i < n; ++i)
    if (in[i].name && std::strcmp(in[i].name, name) == 0) return in + i;
  return nullptr;
}

uint32_t rows_for(const File& f, uint32_t value) {  // ids must be below; a mask may be anything
  uint32_t rows = kNone;
  for (uint32_t i = 0; i < f.count(kNodes); ++i)
    if (f.nodes[i].op == kEmbed && f.nodes[i].inputs[0] == value)
      rows = std::min(rows, f.matrices[f.nodes[i].matrix].rows);
  return rows;
}

qd_status take_input(const File& f, uint32_t value, const qd_tensor* t, uint32_t tokens, int32_t* to, qd_error* err) {
  const char* name = f.name(f.values[value].name_at);
  uint32_t rows = rows_for(f, value);
  if (t == nullptr) {  // all attend; all of one type
    if (std::strcmp(name, "input_ids") == 0) return fail(err, QD_BAD_ARGUMENT, "input input_ids: not given");
    for (uint32_t i = 0; i < tokens; ++i) to[i] = rows == kNone;
    return QD_OK;
  }
  uint64_t element = t->dtype == QD_I64 ? 8 : 4;
  if (t->dtype == QD_F32 || !t->data || length_of(*t) != tokens || t->bytes < element * tokens)
    return fail(err, QD_BAD_ARGUMENT, "input %.60s: allowed are int32 or int64 [1, %u]", name, tokens);
  for (uint32_t i = 0; i < tokens; ++i) {
    int64_t id = element == 8 ? static_cast<const int64_t*>(t->data)[i] : static_cast<const int32_t*>(t->data)[i];
    if (rows != kNone && (id < 0 || id >= rows))
      return fail(err, QD_BAD_ARGUMENT, "input %.60s: found %lld, allowed 0 to %u", name, static_cast<long long>(id),
                  rows - 1);
    to[i] = rows == kNone ? id != 0 : static_cast<int32_t>(id);
  }
  return QD_OK;
}

qd_status give_output(qd_session& s, uint32_t tokens, qd_tensor* t, qd_error* err) {
  const File& f = s.model->file;
  for (uint32_t i = 0; i < f.count(kValues); ++i) {
    const Value& v = f.values[i];
    if (v.role != kOutput || !t->name || std::strcmp(t->name, f.name(v.name_at)) != 0) continue;
    uint32_t rows = v.kind == kPerSequence ? 1 : tokens;
    t->dtype = QD_F32;
    t->rank = v.kind == kPerSequence ? 2 : 3;
    t->shape[0] = 1;
    t->shape[t->rank - 2] = rows;
    t->shape[t->rank - 1] = v.width;
    if (t->data == nullptr) return QD_OK;
    uint64_t bytes = uint64_t{4} * rows * v.width;
    if (t->bytes < bytes)
      return fail(err, QD_BAD_ARGUMENT, "output %.60s: found %zu bytes, allowed %llu or more", t->name, t->bytes,
                  static_cast<unsigned long long>(bytes));
    for (uint64_t r = 0; r < rows; ++r)
      std::memcpy(static_cast<float*>(t->data) + r * v.width, s.own.arena + r * f.header.slot_width + v.slot,
                  4 * v.width);
    return QD_OK;
  }
  return fail(err, QD_BAD_ARGUMENT, "output %.60s: the model has none of that name", t->name ? t->name : "(null)");
}

}  // namespace

extern "C" qd_status qd_run(qd_session* s, const qd_tensor* in, size_t n_in, qd_tensor* out, size_t n_out,
                            qd_error* err) {
  if (!s || !in || (!out && n_out)) return fail(err, QD_BAD_ARGUMENT, "qd_run: a null pointer");
  qd_model& m = *s->model;
  const File& f = m.file;
  if (f.header.kind != kEncoder) return fail(err, QD_UNSUPPORTED, "qd_run: a decoder; use qd_decode");
  const qd_tensor* ids = find(in, n_in, "input_ids");
  int64_t tokens = ids ? length_of(*ids) : -1;
  if (tokens < 1 || tokens > s->context)
    return fail(err, QD_BAD_ARGUMENT, "input input_ids: found %lld tokens, allowed 1 to %u, of one sequence",
                static_cast<long long>(tokens), s->context);
  if (s->cancel.exchange(false)) return fail(err, QD_CANCELLED, "cancelled");
  int32_t* to = s->ids;
  for (uint32_t i = 0; i < f.count(kValues); ++i) {
    if (f.values[i].kind != kIds) continue;
    const qd_tensor* t = find(in, n_in, f.name(f.values[i].name_at));
    if (qd_status status = take_input(f, i, t, static_cast<uint32_t>(tokens), to, err)) return status;
    s->own.ids[i] = to;
    to += s->context;
  }
  Turn turn = begin_step(m, &s->own);
  uint64_t start = now_ns();
  Sequence sequence{s->own.blocks, nullptr};
  uint32_t count = static_cast<uint32_t>(tokens);
  Span span{&sequence, 0, count, 0, count, nullptr};
  walk(m, turn, {&span, 1, true, nullptr, 0});
  s->last = {sizeof s->last, turn.rung, static_cast<uint32_t>(tokens), now_ns() - start};
  end_step(m, turn, &s->own);
  for (size_t i = 0; i < n_out; ++i)
    if (qd_status status = give_output(*s, static_cast<uint32_t>(tokens), out + i, err)) return status;
  return QD_OK;
}

extern "C" qd_status qd_io(const qd_model* m, int output, uint32_t index, qd_tensor* out) {
  if (!m || !out) return QD_BAD_ARGUMENT;
  for (uint32_t i = 0; i < m->file.count(kValues); ++i) {
    const Value& v = m->file.values[i];
    if (v.role != (output ? kOutput : kInput) || index-- > 0) continue;
    *out = {m->file.name(v.name_at), output ? QD_F32 : QD_I64, 2, {1, -1, 0, 0}, nullptr, 0};
    if (output && v.kind == kPerToken) out->rank = 3, out->shape[2] = v.width;
    if (output && v.kind == kPerSequence) out->shape[1] = v.width;
    return QD_OK;
  }
  return QD_BAD_ARGUMENT;
}
