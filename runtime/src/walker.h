#pragma once
#include "cache.h"
#include "file.h"
#include "model.h"

namespace qd {

// Tokens of one sequence in a step: rows first .. first + tokens - 1, which follow the `past` ones that the sequence has.
struct Span {
  const Sequence* sequence;
  uint32_t first, tokens, past;
  uint32_t total;  // of the sequence when the call that the step belongs to has ended
  float* logits;   // [vocab] of its last token, or null
};

// Which cosines and sines a step has.
struct Angles {
  uint32_t frequencies = format::kNone, beyond = 0, long_frequencies = format::kNone;
  float theta = 0, grown = 0, factor = 0;
  bool operator==(const Angles& o) const {
    return frequencies == o.frequencies && beyond == o.beyond && long_frequencies == o.long_frequencies &&
           theta == o.theta && grown == o.grown && factor == o.factor;
  }
};

// What a step shares between nodes: activations of one value, prepared once for q, k and v alike.
struct Step {
  qd_model& model;
  Workspace& w;
  const Span* spans;
  uint32_t span_count, tokens;  // tokens: of all spans
  // Whether a product of one token may be the one of single tokens, whose sums are rounded in another way. Not where the
  // number of rows depends on other sequences.
  bool single;
  float* rows;  // of a product whose rows go to places of their own
  uint64_t row_floats;
  uint64_t prepared = 0;       // of which value and tokens `mapped` is; 0: of none
  uint32_t prepared_columns = 0, prepared_map = format::kNone;
  uint32_t made = 0;           // bits: 2 g int8 of grouping g, 2 g + 1 tables
  Angles angles;
  uint64_t serial = 0;         // of keys of products of no value's rows

  bool one(uint32_t rows) const { return rows == 1 && single; }
  const Span& span_of(uint32_t row) const {
    const Span* s = spans;
    while (row >= s->first + s->tokens) ++s;
    return *s;
  }
};

struct Batch {
  const Span* spans;
  uint32_t span_count;
  bool single;  // see Step
  float* rows;  // room for logits of several sequences at once, or null
  uint64_t row_floats;
};

// Runs the nodes. The workspace's ids are set and in range. Called between begin_step and end_step.
void walk(qd_model& model, const Turn& turn, const Batch& batch);

uint32_t grouping_of(const format::Term& term);  // 0 .. 3: activations in groups of 16 << that
Checked term_scratch_bytes(const Kernels& kernels, const format::Term& term, uint32_t columns);

inline float* value_at(const Step& s, uint32_t value, uint32_t token) {
  return s.w.arena + uint64_t{token} * s.model.file.header.slot_width + s.model.file.values[value].slot;
}
inline bool is_per_sequence(const Step& s, uint32_t value) {  // it lies in the row of the sequence's first token
  return s.model.file.values[value].kind == format::kPerSequence;
}

// fn(thread, token) for every token of output 0.
template <class F>
void for_tokens(Step& s, const format::Node& n, F fn) {
  bool few = is_per_sequence(s, n.outputs[0]);
  auto body = [&](uint32_t thread, uint64_t begin, uint64_t end) {
    for (uint64_t t = begin; t < end; ++t) fn(thread, few ? s.spans[t].first : static_cast<uint32_t>(t));
  };
  s.model.pool.parallel_for(few ? s.span_count : s.tokens, body);
}

}  // namespace qd
