#include "workspace.h"

#include <algorithm>
#include <cstring>

#include "model.h"
#include "walker.h"

namespace qd {
namespace {

using namespace format;

struct Widest {
  uint64_t columns = 32, rows = 16, scratch = 0, half = 1, head = 1, value = 1, stride = 128;
  bool grouping[kGroupings] = {};
};

uint64_t scratch_of(const qd_model& m, const Matrix& matrix) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < matrix.terms; ++i)
    bytes += term_scratch_bytes(m, m.file.terms[matrix.first_term + i], matrix.padded_columns);
  return bytes;
}

Widest measure(const qd_model& m) {
  Widest w;
  const File& f = m.file;
  for (uint32_t i = 0; i < f.count(kMatrices); ++i) {
    w.columns = std::max<uint64_t>(w.columns, f.matrices[i].padded_columns);
    w.rows = std::max<uint64_t>(w.rows, round_up(f.matrices[i].rows, 16));
    w.scratch = std::max(w.scratch, scratch_of(m, f.matrices[i]));
  }
  // The rows of an embedding are no output, but few models have one that is not their output, too; only where rows are
  // ragged, or for the logits, is y needed at all.
  uint64_t ragged = 16;
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    const Node& n = f.nodes[i];
    if (n.op == kLinear && f.matrices[n.matrix].rows % 16 && !node_reads_logits_row(f, n))
      ragged = std::max<uint64_t>(ragged, round_up(f.matrices[n.matrix].rows, 16));
    if (n.op != kAttention) continue;
    Attention a;
    std::memcpy(&a, f.attributes + n.attr, sizeof a);
    w.half = std::max<uint64_t>(w.half, a.rotary_dim / 2);
    w.head = std::max<uint64_t>(w.head, a.head_dim);
  }
  w.rows = std::max(ragged * kLinearTokens, round_up(f.header.vocab, 16));
  for (uint32_t i = 0; i < f.count(kTerms); ++i) w.grouping[grouping_of(f.terms[i])] = true;
  for (uint32_t i = 0; i < f.count(kValues); ++i) w.value = std::max<uint64_t>(w.value, f.values[i].width);
  w.stride = round_up(w.columns, 128);
  return w;
}

struct Bump {
  uint8_t* base;
  uint64_t used = 0;
  template <class T>
  void take(T** to, uint64_t count) {
    *to = reinterpret_cast<T*>(base + used);
    used += round_up(count * sizeof(T) + 64, 64);  // 64 more: a kernel may read a whole vector at the end
  }
};

uint64_t lay_out(const qd_model& m, uint32_t tokens, uint8_t* base, Workspace* w) {
  Widest s = measure(m);
  Bump b{base};
  uint64_t threads = m.pool.threads(), chunk = std::min(tokens, kLinearTokens);
  b.take(&w->arena, uint64_t{tokens} * m.file.header.slot_width + 16);
  b.take(&w->mapped, chunk * s.stride);
  for (uint32_t i = 0; i < kGroupings; ++i) {
    bool need = s.grouping[i] && !m.exact;
    uint64_t groups = s.columns / (16u << i) + 1;
    b.take(&w->q[i], need ? chunk * s.stride : 0);
    b.take(&w->scale[i], need ? chunk * groups : 0);
    b.take(&w->sum[i], need ? chunk * groups : 0);
    b.take(&w->fsum[i], need ? chunk * groups : 0);
    b.take(&w->tables[i], need ? s.stride * 4 : 0);
    b.take(&w->table_scale[i], need ? groups : 0);
  }
  b.take(&w->term_scratch, s.scratch);
  b.take(&w->y, s.rows);
  b.take(&w->row, threads * s.stride);
  b.take(&w->cos, tokens * s.half);
  b.take(&w->sin, tokens * s.half);
  b.take(&w->head, threads * 2 * round_up(s.head, 16));
  b.take(&w->norm, threads * round_up(s.value, 16));
  b.take(&w->ids, m.file.count(kValues));
  w->tokens = tokens;
  w->row_stride = s.stride;
  w->head_stride = round_up(s.head, 16);
  w->norm_stride = round_up(s.value, 16);
  w->half = s.half;
  return round_up(b.used, 4096);
}

}  // namespace

uint64_t workspace_bytes(const qd_model& m, uint32_t tokens) {
  Workspace unused;
  return lay_out(m, tokens, reinterpret_cast<uint8_t*>(uintptr_t{4096}), &unused);
}

bool make_workspace(const qd_model& m, uint32_t tokens, Workspace* out) {
  if (!out->memory.make(workspace_bytes(m, tokens))) return false;
  lay_out(m, tokens, out->memory.data, out);
  return true;
}

}  // namespace qd
