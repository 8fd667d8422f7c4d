#include "workspace.h"

#include <algorithm>
#include <cstring>

#include "model.h"
#include "tiles.h"
#include "walker.h"

namespace qd {
namespace {

using namespace format;

struct Widest {
  uint64_t columns = 32, half = 1, head = 1, value = 1, stride = 128;
  Checked rows, scratch;
  uint64_t experts = 0, chosen = 0, inner = 0, hidden = 0;
  bool grouping[kGroupings] = {};
  Checked tiles;                             // a TileRoom
  uint64_t ranges = 0, value_stride = 0;     // of attention with fewer ranges than threads; the widest value
  uint64_t block = 0;                        // encoders
};

Checked scratch_of(const qd_model& m, const Matrix& matrix) {
  Checked bytes;
  for (uint32_t i = 0; i < matrix.terms; ++i)
    bytes += term_scratch_bytes(*m.settings.kernels, m.file.terms[matrix.first_term + i], matrix.padded_columns);
  return bytes;
}

void measure_experts(const File& f, const Node& n, Widest* w) {
  const uint32_t* words = f.attributes + n.attr;
  if (n.op == kRoute) w->experts = std::max<uint64_t>(w->experts, f.values[n.inputs[0]].width);
  if (n.op != kExperts) return;
  w->experts = std::max<uint64_t>(w->experts, words[0]);
  w->chosen = std::max<uint64_t>(w->chosen, words[1]);
  w->inner = std::max<uint64_t>(w->inner, round_up(f.matrices[words[10]].rows, 16));
  w->hidden = std::max<uint64_t>(w->hidden, round_up(f.values[n.inputs[0]].width, 16));
}

// Of one token of one sequence: with more of either there are more ranges.
void measure_attention(const qd_model& m, const Node& n, Widest* w) {
  Attention a;
  std::memcpy(&a, m.file.attributes + n.attr, sizeof a);
  w->half = std::max<uint64_t>(w->half, a.rotary_dim / 2);
  w->head = std::max<uint64_t>(w->head, a.head_dim);
  bool cached = n.state != kNone;
  uint32_t value = cached ? value_dim(m.file.states[n.state]) : a.head_dim;
  CacheShape shape = cache_shape(cached ? m.settings.cache : QD_KV_F32, a.head_dim, value);
  TileRoom unused;
  Checked tiles = make_tile_room(shape, nullptr, &unused);
  if (!tiles.at_most(w->tiles.value())) w->tiles = tiles;
  uint64_t ranges = uint64_t{a.kv_heads} * ((a.heads / a.kv_heads + kQueryRows - 1) / kQueryRows);
  if (cached && ranges < m.pool.threads()) {
    w->ranges = std::max(w->ranges, ranges);
    w->value_stride = std::max<uint64_t>(w->value_stride, shape.value_stride);
  }
  if (!cached) w->block = std::max(w->block, shape.bytes * a.kv_heads);
}

Widest measure(const qd_model& m) {
  Widest w;
  const File& f = m.file;
  for (uint32_t i = 0; i < f.count(kMatrices); ++i) {
    w.columns = std::max<uint64_t>(w.columns, f.matrices[i].padded_columns);
    Checked scratch = scratch_of(m, f.matrices[i]);
    if (!scratch.at_most(w.scratch.value())) w.scratch = scratch;
  }
  // The rows of an embedding are no output, but few models have one that is not their output, too; only where rows are
  // ragged, or for the logits, is y needed at all.
  uint64_t ragged = 16;
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    const Node& n = f.nodes[i];
    bool scattered = n.op == kLinear && f.values[n.inputs[0]].kind == kPerSequence;
    if (n.op == kLinear && (scattered || f.matrices[n.matrix].rows % 16) && !node_reads_logits_row(f, n))
      ragged = std::max<uint64_t>(ragged, round_up(f.matrices[n.matrix].rows, 16));
    if (n.op == kRotate) w.half = std::max<uint64_t>(w.half, f.attributes[n.attr + 1] / 2);
    measure_experts(f, n, &w);
    if (n.op == kAttention) measure_attention(m, n, &w);
  }
  w.rows = std::max(ragged * kLinearTokens, round_up(f.header.vocab, 16));
  for (uint32_t i = 0; i < f.count(kTerms); ++i) w.grouping[grouping_of(f.terms[i])] = true;
  for (uint32_t i = 0; i < f.count(kValues); ++i) w.value = std::max<uint64_t>(w.value, f.values[i].width);
  w.stride = round_up(w.columns, 128);
  return w;
}

Checked lay_out(const qd_model& m, uint32_t tokens, uint8_t* base, Workspace* w) {
  Widest s = measure(m);
  Layout b(base);
  Checked threads = m.pool.threads(), chunk = std::min(tokens, kLinearTokens), all = tokens;
  b.take(&w->arena, all * m.file.header.slot_width + 16);
  b.take(&w->mapped, chunk * s.stride);
  for (uint32_t i = 0; i < kGroupings; ++i) {
    bool need = s.grouping[i] && !m.settings.exact;
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
  w->y_floats = s.rows.value();
  b.take(&w->row, threads * s.stride);
  b.take(&w->cos, all * s.half);
  b.take(&w->sin, all * s.half);
  b.take(&w->head, threads * 2 * round_up(s.head, 16));
  b.take(&w->norm, threads * round_up(s.value, 16));
  w->tile_stride = s.tiles.rounded_up(64).value();
  b.take(&w->tiles, threads * w->tile_stride);
  w->partial_ranges = s.ranges;
  b.take(&w->partials, Checked(s.ranges) * (kSegmentsAtOnce + 1) * kQueryRows * (s.value_stride + 2));
  w->block_bytes = s.block;
  uint64_t blocks = s.block > 0 ? (uint64_t{tokens} + kBlockTokens - 1) / kBlockTokens : 0;
  b.take(&w->blocks, blocks);
  uint8_t* first_block = nullptr;
  b.take(&first_block, Checked(blocks) * s.block);
  for (uint64_t i = 0; base && i < blocks; ++i) w->blocks[i] = first_block + i * s.block;
  if (s.experts > 0) {
    b.take(&w->experts.starts, Checked(s.experts) + 1);
    b.take(&w->experts.order, all * s.chosen);
    b.take(&w->experts.up, chunk * s.inner);
    b.take(&w->experts.gate, chunk * s.inner);
    b.take(&w->experts.out, chunk * s.hidden);
    b.take(&w->experts.scores, threads * 2 * s.experts);
  }
  b.take(&w->ids, m.file.count(kValues));
  b.take(&w->views, m.file.count(kTerms));
  w->tokens = tokens;
  w->row_stride = s.stride;
  w->head_stride = round_up(s.head, 16);
  w->norm_stride = round_up(s.value, 16);
  w->half = s.half;
  w->experts.inner = s.inner;
  w->experts.hidden = s.hidden;
  w->experts.most = s.experts;
  w->experts.tokens = std::min(tokens, kLinearTokens);
  return b.used();
}

}  // namespace

Checked workspace_bytes(const qd_model& m, uint32_t tokens) {
  Workspace unused;
  return lay_out(m, tokens, nullptr, &unused);
}

bool make_workspace(const qd_model& m, uint32_t tokens, Workspace* out) {
  Checked bytes = workspace_bytes(m, tokens);
  if (!bytes.good() || !out->memory.make(bytes.value())) return false;
  lay_out(m, tokens, out->memory.data, out);
  std::copy(m.stack.views, m.stack.views + m.file.count(kTerms), out->views);
  out->views_rung = kNone;
  return true;
}

}  // namespace qd
