// Encoders: sequences of one length in, outputs by name.
#include <algorithm>
#include <cstring>

#include "session.h"
#include "walker.h"

using namespace qd;
using namespace qd::format;

namespace {

constexpr int64_t kMostSequences = 1 << 20;  // of a call
constexpr uint32_t kMostOutputs = 64;

struct Size {  // of the inputs: sequences of so many tokens
  int64_t sequences, tokens;
  bool operator==(const Size& o) const { return sequences == o.sequences && tokens == o.tokens; }
};

Size size_of(const qd_tensor& t) {
  return t.rank == 1 ? Size{1, t.shape[0]} : t.rank == 2 ? Size{t.shape[0], t.shape[1]} : Size{0, 0};
}

const qd_tensor* find(const qd_tensor* in, size_t n, const char* name) {
  for (size_t i = 0; i < n; ++i)
    if (in[i].name && std::strcmp(in[i].name, name) == 0) return in + i;
  return nullptr;
}

uint32_t rows_for(const File& f, uint32_t value) {  // ids must be below; a mask may be anything
  uint32_t rows = kNone;
  for (uint32_t i = 0; i < f.count(kNodes); ++i)
    if (limits_ids(f.nodes[i]) && f.nodes[i].inputs[0] == value)
      rows = std::min(rows, f.matrices[f.nodes[i].matrix].rows);
  return rows;
}

int64_t number_at(const qd_tensor& t, uint64_t i) {
  return t.dtype == QD_I64 ? static_cast<const int64_t*>(t.data)[i] : static_cast<const int32_t*>(t.data)[i];
}

qd_status check_input(const File& f, uint32_t value, const qd_tensor* t, const Size& size, qd_error* err) {
  const char* name = f.name(f.values[value].name_at);
  uint32_t rows = rows_for(f, value);
  if (t == nullptr) return std::strcmp(name, "input_ids") ? QD_OK : fail(err, QD_BAD_ARGUMENT, "input input_ids: not given");
  uint64_t count = static_cast<uint64_t>(size.sequences * size.tokens), element = t->dtype == QD_I64 ? 8 : 4;
  if (t->dtype == QD_F32 || !t->data || !(size_of(*t) == size) || t->bytes / element < count)
    return fail(err, QD_BAD_ARGUMENT, "input %.60s: allowed are int32 or int64 [%lld, %lld]", name,
                static_cast<long long>(size.sequences), static_cast<long long>(size.tokens));
  for (uint64_t i = 0; rows != kNone && i < count; ++i) {
    int64_t id = number_at(*t, i);
    if (id < 0 || id >= rows)
      return fail(err, QD_BAD_ARGUMENT, "input %.60s: found %lld, allowed 0 to %u", name, static_cast<long long>(id),
                  rows - 1);
  }
  return QD_OK;
}

// Numbers first .. first + n - 1 of an input; of none that all attend, and are of one type.
void take_input(const File& f, uint32_t value, const qd_tensor* t, uint64_t first, uint32_t n, int32_t* to) {
  bool ids = rows_for(f, value) != kNone;
  for (uint32_t i = 0; i < n; ++i) {
    int64_t number = t ? number_at(*t, first + i) : !ids;
    to[i] = ids ? static_cast<int32_t>(number) : number != 0;
  }
}

qd_status check_output(const File& f, const Size& size, qd_tensor* t, uint32_t* value, qd_error* err) {
  for (uint32_t i = 0; i < f.count(kValues); ++i) {
    const Value& v = f.values[i];
    if (v.role != kOutput || !t->name || std::strcmp(t->name, f.name(v.name_at)) != 0) continue;
    int64_t rows = v.kind == kPerSequence ? 1 : size.tokens;
    *value = i;
    t->dtype = QD_F32;
    t->rank = v.kind == kPerSequence ? 2 : 3;
    t->shape[0] = size.sequences;
    if (t->rank == 3) t->shape[1] = rows;
    t->shape[t->rank - 1] = v.width;
    Checked bytes = Checked(4) * static_cast<uint64_t>(size.sequences) * static_cast<uint64_t>(rows) * v.width;
    if (t->data == nullptr || bytes.at_most(t->bytes)) return QD_OK;
    return fail(err, QD_BAD_ARGUMENT, "output %.60s: found %zu bytes, allowed %llu or more", t->name, t->bytes,
                static_cast<unsigned long long>(bytes.value()));
  }
  return fail(err, QD_BAD_ARGUMENT, "output %.60s: the model has none of that name", t->name ? t->name : "(null)");
}

// Of the sequences that a step had, the first of which is `sequence`.
void give_output(const qd_session& s, const Size& size, uint32_t value, uint64_t sequence, uint32_t count, const qd_tensor& t) {
  const File& f = s.model->file;
  const Value& v = f.values[value];
  if (t.data == nullptr) return;
  uint64_t tokens = static_cast<uint64_t>(size.tokens), every = v.kind == kPerSequence ? tokens : 1;
  float* to = static_cast<float*>(t.data) + sequence * (tokens / every) * v.width;
  for (uint64_t row = 0; row < count * tokens; row += every, to += v.width)
    std::memcpy(to, s.own.arena + row * f.header.slot_width + v.slot, 4 * uint64_t{v.width});
}

// How many sequences of so many tokens a session takes at once. One token alone has products of its own.
uint32_t at_once(const qd_session& s, uint32_t tokens) {
  uint64_t blocks = round_up(s.context, kBlockTokens) / kBlockTokens, each = round_up(tokens, kBlockTokens) / kBlockTokens;
  uint64_t most = std::min<uint64_t>(s.context / tokens, blocks / each);
  return tokens == 1 ? 1 : static_cast<uint32_t>(std::min<uint64_t>(most, kMostSpans));
}

void step(qd_session& s, const qd_tensor* in, size_t n_in, const Size& size, uint64_t sequence, uint32_t count) {
  qd_model& m = *s.model;
  const File& f = m.file;
  uint32_t tokens = static_cast<uint32_t>(size.tokens), blocks = static_cast<uint32_t>(round_up(tokens, kBlockTokens)) / kBlockTokens;
  int32_t* to = s.ids;
  for (uint32_t i = 0; i < f.count(kValues); ++i) {
    if (f.values[i].kind != kIds) continue;
    take_input(f, i, find(in, n_in, f.name(f.values[i].name_at)), sequence * tokens, count * tokens, to);
    s.own.ids[i] = to;
    to += s.context;
  }
  Sequence sequences[kMostSpans];
  Span spans[kMostSpans];
  for (uint32_t i = 0; i < count; ++i) {
    sequences[i].blocks = s.own.blocks + i * blocks;
    spans[i] = {sequences + i, i * tokens, tokens, 0, tokens, nullptr};
  }
  Turn turn = begin_step(m, &s.own);
  uint64_t start = now_ns();
  walk(m, turn, {spans, count, true, nullptr, 0});
  s.last = {sizeof s.last, turn.rung, count * tokens, now_ns() - start};
  end_step(m, turn, &s.own);
}

}  // namespace

extern "C" qd_status qd_run(qd_session* s, const qd_tensor* in, size_t n_in, qd_tensor* out, size_t n_out,
                            qd_error* err) {
  if (!s || !in || (!out && n_out)) return fail(err, QD_BAD_ARGUMENT, "qd_run: a null pointer");
  qd_model& m = *s->model;
  const File& f = m.file;
  if (f.header.kind != kEncoder) return fail(err, QD_UNSUPPORTED, "qd_run: a decoder; use qd_decode");
  const qd_tensor* ids = find(in, n_in, "input_ids");
  Size size = ids ? size_of(*ids) : Size{1, -1};
  if (size.tokens < 1 || size.tokens > s->context || size.sequences < 1 || size.sequences > kMostSequences)
    return fail(err, QD_BAD_ARGUMENT, "input input_ids: found [%lld, %lld], allowed [1 to %lld, 1 to %u]",
                static_cast<long long>(size.sequences), static_cast<long long>(size.tokens),
                static_cast<long long>(kMostSequences), s->context);
  uint32_t outputs[kMostOutputs];
  if (n_out > kMostOutputs) return fail(err, QD_BAD_ARGUMENT, "outputs: found %zu, allowed at most %u", n_out, kMostOutputs);
  for (uint32_t i = 0; i < f.count(kValues); ++i)
    if (f.values[i].kind == kIds)
      if (qd_status status = check_input(f, i, find(in, n_in, f.name(f.values[i].name_at)), size, err)) return status;
  for (size_t i = 0; i < n_out; ++i)
    if (qd_status status = check_output(f, size, out + i, outputs + i, err)) return status;
  uint64_t count = static_cast<uint64_t>(size.sequences), most = at_once(*s, static_cast<uint32_t>(size.tokens));
  for (uint64_t first = 0; first < count; first += most) {
    if (s->cancel.exchange(false)) return fail(err, QD_CANCELLED, "cancelled after %llu sequences", static_cast<unsigned long long>(first));
    uint32_t now = static_cast<uint32_t>(std::min(most, count - first));
    step(*s, in, n_in, size, first, now);
    for (size_t i = 0; i < n_out; ++i) give_output(*s, size, outputs[i], first, now, out[i]);
  }
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
