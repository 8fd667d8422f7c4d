// The nodes in their order. Everything was checked at open: nothing here can fail.
#include "walker.h"

#include <cstring>

#include "ops.h"

namespace qd {

using namespace format;

namespace {

using Run = void (*)(Step&, const Node&);
constexpr Run kRun[kOps] = {
    nullptr,
#define QD_OP(number, constant, inputs, at_least, outputs, attributes, matrix, ids, fits, run) run,
#include "ops.def"
};

// What of each term a rung holds. Planes of a term are in order in the stack: checked at open.
void set_views(const File& f, Workspace& w, uint32_t rung) {
  if (w.views_rung == rung) return;
  w.views_rung = rung;
  for (uint32_t i = 0; i < f.count(kTerms); ++i) {
    TermView& v = w.views[i];
    const uint32_t* position = f.position + uint64_t{i} * kMaxPlanes;
    for (v.planes = 0; v.planes < v.term->planes && position[v.planes] < rung;) ++v.planes;
    if (v.term->ladder && v.planes > 0) v.base = v.codes[v.planes - 1];
  }
}

}  // namespace

void walk(qd_model& m, const Turn& turn, const Batch& batch) {
  const File& f = m.file;
  const Span* spans = batch.spans;
  uint32_t span_count = batch.span_count;
  Workspace& w = *turn.workspace;
  set_views(f, w, turn.rung);
  const Span& last = spans[span_count - 1];
  Step s{m, w, spans, span_count, last.first + last.tokens, batch.single, batch.rows, batch.row_floats, 0, 0, kNone, 0, {}, 0};
  if (s.row_floats < w.y_floats) s.rows = w.y, s.row_floats = w.y_floats;
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    const Node& n = f.nodes[i];
    kRun[n.op](s, n);
    // A slot may be used again, but a value is made once: only rotation in place changes one.
    if (n.op == kAttention) s.prepared = 0;
  }
  uint32_t logits = f.header.logits_value;
  if (f.header.kind != kDecoder || f.values[logits].slot == kNone || node_reads_logits_row(f, f.nodes[f.maker[logits]])) return;
  for (uint32_t i = 0; i < span_count; ++i)
    if (spans[i].logits)
      std::memcpy(spans[i].logits, value_at(s, logits, spans[i].first + spans[i].tokens - 1), f.header.vocab * sizeof(float));
}

}  // namespace qd
