#pragma once
#include "file.h"
#include "model.h"

struct qd_session;

namespace qd {

// What a step shares between nodes: activations of one value, prepared once for q, k and v alike.
struct Step {
  qd_session& session;
  qd_model& model;
  Workspace& w;
  uint32_t tokens, past, total;  // total: of the sequence when the call that the step belongs to has ended
  float* logits;
  uint64_t prepared = 0;       // of which value and tokens `mapped` is; 0: of none
  uint32_t prepared_columns = 0, prepared_map = format::kNone;
  uint32_t made = 0;           // bits: 2 g int8 of grouping g, 2 g + 1 tables
  uint32_t angles = format::kNone;  // which inv_freq cos and sin are of
  float angles_factor = 0;
  uint64_t serial = 0;              // of keys of products of no value's rows
};

// Runs the nodes for `tokens` tokens that follow the session's; `total`: see Step. The workspace's ids are set and in range. `logits`:
// [vocab] of the last token, or null. Called between begin_step and end_step.
void walk(qd_session& session, const Turn& turn, uint32_t tokens, uint32_t total, float* logits);

uint32_t grouping_of(const format::Term& term);  // 0 .. 3: activations in groups of 16 << that
Checked term_scratch_bytes(const Kernels& kernels, const format::Term& term, uint32_t columns);

inline float* value_at(const Step& s, uint32_t value, uint32_t token) {
  return s.w.arena + uint64_t{token} * s.model.file.header.slot_width + s.model.file.values[value].slot;
}
inline uint32_t value_tokens(const Step& s, uint32_t value) {  // 1 for those of the sequence
  return s.model.file.values[value].kind == format::kPerSequence ? 1 : s.tokens;
}

// fn(thread, token) for every token of output 0.
template <class F>
void for_tokens(Step& s, const format::Node& n, F fn) {
  auto body = [&](uint32_t thread, uint64_t begin, uint64_t end) {
    for (uint64_t t = begin; t < end; ++t) fn(thread, static_cast<uint32_t>(t));
  };
  s.model.pool.parallel_for(value_tokens(s, n.outputs[0]), body);
}

}  // namespace qd
