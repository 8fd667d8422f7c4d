// The nodes in their order. Everything was checked at open: nothing here can fail.
#include "walker.h"

#include <cstring>

#include "ops.h"
#include "session.h"

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

void walk(qd_session& session, const Turn& turn, uint32_t tokens, uint32_t total, float* logits) {
  qd_model& m = *session.model;
  const File& f = m.file;
  set_views(f, *turn.workspace, turn.rung);
  Step s{session, m, *turn.workspace, tokens, session.length.load(std::memory_order_relaxed), total, logits};
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    const Node& n = f.nodes[i];
    kRun[n.op](s, n);
    // A slot may be used again, but a value is made once: only rotation in place changes one.
    if (n.op == kAttention) s.prepared = 0;
  }
  if (f.header.kind != kDecoder || logits == nullptr || f.values[f.header.logits_value].slot == kNone) return;
  if (!node_reads_logits_row(f, f.nodes[f.maker[f.header.logits_value]]))
    std::memcpy(logits, value_at(s, f.header.logits_value, tokens - 1), f.header.vocab * sizeof(float));
}

}  // namespace qd
