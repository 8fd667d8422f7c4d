// Matrices: preparing activations, sharing rows out over the threads, and single rows for embeddings.
#include <algorithm>
#include <cstring>

#include "../ops.h"
#include "../product.h"

namespace qd {

using namespace format;

uint32_t grouping_of(const Term& t) {
  for (uint32_t i = 0; i < 3; ++i)
    if (t.group % (32u << i)) return i;
  return 3;
}

Checked term_scratch_bytes(const Kernels& kernels, const Term& t, uint32_t columns) {
  const Kind& kind = kernels.kinds[t.kind];
  if (kind.scratch == nullptr) return 64;
  uint64_t most = 0;
  for (uint32_t tokens : {1u, 2u, kLinearTokens}) most = std::max(most, kind.scratch(t, columns, tokens));
  return (Checked(most) + 64).rounded_up(64);
}

namespace {

// x[t][j] in the padded columns' order, zero behind them.
void map_activations(Step& s, const Product& in, uint32_t stride) {
  uint32_t columns = in.matrix.padded_columns;
  const int32_t* map = in.matrix.map_tensor == kNone ? nullptr : s.model.ints(in.matrix.map_tensor);
  auto body = [&](uint32_t, uint64_t begin, uint64_t end) {
    for (uint32_t t = static_cast<uint32_t>(begin); t < end; ++t) {
      const float* x = in.x + (in.picks ? in.picks[t] : t) * in.stride;
      float* to = s.w.mapped + uint64_t{t} * stride;
      uint32_t n = map ? columns : in.matrix.columns;
      if (map) s.model.settings.kernels->gather(x, map, columns, to);
      else std::memcpy(to, x, n * sizeof(float));
      std::memset(to + n, 0, (stride - n) * sizeof(float));
    }
  };
  s.model.pool.parallel_for(in.tokens, body);
}

Activations activations(const Step& s, const Product& in, uint32_t grouping) {
  uint32_t columns = in.matrix.padded_columns, group = 16u << grouping;
  const Workspace& w = s.w;
  return {in.tokens, columns, group, (columns + group - 1) / group, static_cast<uint32_t>(round_up(columns, 128)),
          w.mapped, w.q[grouping], w.scale[grouping], w.sum[grouping], w.fsum[grouping], w.tables[grouping],
          w.table_scale[grouping]};
}

void make_activations(Step& s, const Activations& a, uint32_t grouping, Need need) {
  uint32_t bit = 1u << (2 * grouping + (need == Need::kTables));
  if (need == Need::kNothing || (s.made & bit)) return;
  s.made |= bit;
  const Kernels& k = *s.model.settings.kernels;
  if (need == Need::kTables) {
    k.make_tables(a.x, a.columns, a.group, s.w.tables[grouping], s.w.table_scale[grouping], s.w.fsum[grouping]);
    return;
  }
  auto body = [&](uint32_t, uint64_t begin, uint64_t end) {
    for (uint64_t t = begin; t < end; ++t)
      k.quantize(a.x + t * a.stride, a.columns, a.group, a.tokens, s.w.q[grouping] + t * a.group,
                 s.w.scale[grouping] + t, s.w.sum[grouping] + t, s.w.fsum[grouping] + t);
  };
  s.model.pool.parallel_for(a.tokens, body);
}

// Everything that the resident terms of the matrix read, before rows are shared out.
void prepare(Step& s, const Product& in) {
  const Matrix& m = in.matrix;
  bool same = in.key != 0 && s.prepared == in.key && s.prepared_columns == m.padded_columns &&
              s.prepared_map == m.map_tensor;
  if (!same) {
    s.prepared = in.key;
    s.prepared_columns = m.padded_columns;
    s.prepared_map = m.map_tensor;
    s.made = 0;
    map_activations(s, in, static_cast<uint32_t>(round_up(m.padded_columns, 128)));
  }
  uint8_t* scratch = s.w.term_scratch;
  for (uint32_t i = m.first_term; i < m.first_term + m.terms; ++i) {
    const TermView& view = s.w.views[i];
    const Kind& kind = s.model.settings.kernels->kinds[view.term->kind];
    if (view.planes > 0) {
      uint32_t grouping = grouping_of(*view.term);
      Activations a = activations(s, in, grouping);
      if (!s.model.settings.exact) {
        make_activations(s, a, grouping, s.one(in.tokens) ? kind.one_need : kind.many_need);
        if (kind.prepare) kind.prepare(view, a, scratch);
      }
    }
    scratch += term_scratch_bytes(*s.model.settings.kernels, *view.term, m.padded_columns).value();
  }
}

// What a ladder's last resident level adds to the outputs.
void add_bias(const Step& s, const TermView& view, uint32_t tokens, float* y, size_t stride, uint32_t rb0, uint32_t rb1) {
  const Term& t = *view.term;
  if (t.bias_kind == kNo || view.planes == 0) return;
  for (uint32_t i = 0; i < tokens; ++i)
    s.model.settings.kernels->add_numbers(t.bias_kind, view.base + t.bias_at, size_t{16} * rb0, 16 * (rb1 - rb0),
                                          y + i * stride + 16 * rb0);
}

void run_range(const Step& s, const Product& in, const float* bias, float* y, size_t stride, uint32_t rb0, uint32_t rb1) {
  const Matrix& m = in.matrix;
  for (uint32_t t = 0; t < in.tokens; ++t) std::memset(y + t * stride + 16 * rb0, 0, 64 * (rb1 - rb0));
  const uint8_t* scratch = s.w.term_scratch;
  for (uint32_t i = m.first_term; i < m.first_term + m.terms; ++i) {
    const TermView& view = s.w.views[i];
    const Kind& kind = s.model.settings.kernels->kinds[view.term->kind];
    MatVec run = s.model.settings.exact ? kind.exact : s.one(in.tokens) ? kind.one : kind.many;
    if (view.planes > 0) run(view, activations(s, in, grouping_of(*view.term)), scratch, y, stride, rb0, rb1);
    add_bias(s, view, in.tokens, y, stride, rb0, rb1);
    scratch += term_scratch_bytes(*s.model.settings.kernels, *view.term, m.padded_columns).value();
  }
  const float* scale = s.model.floats(m.scale_tensor);
  uint32_t from = 16 * rb0, n = std::min(16 * rb1, m.rows) - from;
  if (scale || bias)
    for (uint32_t t = 0; t < in.tokens; ++t)
      s.model.settings.kernels->scale_rows(y + t * stride + from, scale ? scale + from : nullptr, bias ? bias + from : nullptr,
                                  n);
}

// A row of a matrix in the order of its columns. `row`: scratch of the padded columns.
void read_row(const Step& s, const Matrix& m, uint32_t id, float* row, float* out) {
  std::memset(row, 0, m.padded_columns * sizeof(float));
  for (uint32_t i = m.first_term; i < m.first_term + m.terms; ++i) {
    const TermView& view = s.w.views[i];
    if (view.planes > 0) s.model.settings.kernels->kinds[view.term->kind].decode_row(view, id, row);
  }
  float scale = m.scale_tensor == kNone ? 1.0f : s.model.floats(m.scale_tensor)[id];
  const int32_t* map = m.map_tensor == kNone ? nullptr : s.model.ints(m.map_tensor);
  if (!map) {
    for (uint32_t j = 0; j < m.columns; ++j) out[j] = row[j] * scale;
    return;
  }
  std::memset(out, 0, m.columns * sizeof(float));
  for (uint32_t j = 0; j < m.padded_columns; ++j)
    if (map[j] >= 0) out[map[j]] += row[j] * scale;
}

// One row of the node's matrix for every token.
template <class RowOf>
void read_rows(Step& s, const Node& n, RowOf row_of) {
  const Matrix& m = s.model.file.matrices[n.matrix];
  for_tokens(s, n, [&](uint32_t thread, uint32_t t) {
    read_row(s, m, row_of(t), s.w.row + thread * s.w.row_stride, value_at(s, n.outputs[0], t));
  });
}

}  // namespace

void multiply(Step& s, const Product& in, const float* bias, float* y, size_t stride) {
  prepare(s, in);
  auto body = [&](uint32_t, uint64_t begin, uint64_t end) {
    run_range(s, in, bias, y, stride, static_cast<uint32_t>(begin), static_cast<uint32_t>(end));
  };
  s.model.pool.parallel_for(row_blocks(in.matrix), body);
}

Product product_of(const Step& s, const Matrix& matrix, uint32_t value, uint32_t first, uint32_t tokens) {
  // Rows that are not the first ones of a value are prepared for one product alone.
  uint64_t key = first == 0 ? (uint64_t{value} + 1) << 8 | tokens : 0;  // tokens: at most 64
  return {matrix, value_at(s, value, first), s.model.file.header.slot_width, nullptr, tokens, key};
}

// W in 0 + tensor 0, where there is one -> out 0
bool linear_fits(const NodeCheck& g) {
  const Matrix& m = g.matrix();
  return g.in(0)->kind == g.out(0)->kind && g.in(0)->width == m.columns && g.out(0)->width == m.rows &&
         (g.n.tensors[0] == kNone || g.tensor(0, m.rows));
}

namespace {

// Rows of values that do not lie one behind the other: row_at(i) is the row, to(i) where its result goes.
// So many at once, if there is room.
template <class RowAt, class To>
void multiply_rows(Step& s, const Node& n, uint32_t most, uint32_t count, RowAt row_at, To to) {
  const Matrix& m = s.model.file.matrices[n.matrix];
  uint64_t stride = round_up(m.rows, 16);
  uint32_t at_once = static_cast<uint32_t>(std::min<uint64_t>(most, s.row_floats / stride)), picks[kLinearTokens];
  for (uint32_t first = 0; first < count; first += at_once) {
    uint32_t rows = std::min(at_once, count - first);
    for (uint32_t i = 0; i < rows; ++i) picks[i] = row_at(first + i);
    s.prepared = 0;
    multiply(s, {m, value_at(s, n.inputs[0], 0), s.model.file.header.slot_width, picks, rows, 0},
             s.model.floats(n.tensors[0]), s.rows, stride);
    s.prepared = 0;
    for (uint32_t i = 0; i < rows; ++i) std::memcpy(to(first + i), s.rows + i * stride, m.rows * sizeof(float));
  }
}

// Of the sequences that want logits the last tokens.
void run_logits(Step& s, const Node& n) {
  uint32_t wanted[kMostSpans], count = 0;
  for (uint32_t i = 0; i < s.span_count; ++i)
    if (s.spans[i].logits) wanted[count++] = i;
  multiply_rows(s, n, kLinearTokens, count, [&](uint32_t i) { return s.spans[wanted[i]].first + s.spans[wanted[i]].tokens - 1; },
                [&](uint32_t i) { return s.spans[wanted[i]].logits; });
}

}  // namespace

void run_linear(Step& s, const Node& n) {
  const Matrix& m = s.model.file.matrices[n.matrix];
  const File& f = s.model.file;
  if (f.header.kind == kDecoder && n.outputs[0] == f.header.logits_value && node_reads_logits_row(f, n))
    return run_logits(s, n);
  if (is_per_sequence(s, n.inputs[0]))  // one by one: a vector does not depend on the others of a batch
    return multiply_rows(s, n, 1, s.span_count, [&](uint32_t i) { return s.spans[i].first; },
                         [&](uint32_t i) { return value_at(s, n.outputs[0], s.spans[i].first); });
  const float* bias = s.model.floats(n.tensors[0]);
  uint32_t width = f.header.slot_width, rows = static_cast<uint32_t>(round_up(m.rows, 16));
  bool ragged = m.rows % 16 != 0;
  for (uint32_t first = 0; first < s.tokens; first += kLinearTokens) {
    Product in = product_of(s, m, n.inputs[0], first, std::min(kLinearTokens, s.tokens - first));
    float* to = value_at(s, n.outputs[0], first);
    multiply(s, in, bias, ragged ? s.w.y : to, ragged ? rows : width);
    for (uint32_t t = 0; ragged && t < in.tokens; ++t)
      std::memcpy(to + uint64_t{t} * width, s.w.y + uint64_t{t} * rows, m.rows * sizeof(float));
  }
}

// The row of a matrix per id. Attributes, where there are any: u an id beyond the rows takes row 0.
bool embed_fits(const NodeCheck& g) { return g.out(0)->kind == kPerToken && g.out(0)->width == g.matrix().columns; }

void run_embed(Step& s, const Node& n) {
  const int32_t* ids = s.w.ids[n.inputs[0]];
  uint32_t rows = s.model.file.matrices[n.matrix].rows;
  read_rows(s, n, [&](uint32_t t) {
    uint32_t id = static_cast<uint32_t>(ids[t]);
    return id < rows ? id : 0;  // where it may not be beyond, the walk over the ids has refused it
  });
}

// Row first + t of a table for token t. Attributes, where there are any: u first.
bool positions_fit(const NodeCheck& g) {
  uint64_t first = g.n.attrs ? g.attributes()[0] : 0;
  return embed_fits(g) && g.matrix().rows >= first + g.f.header.context;
}

// Ids in 0 -> row pad + k of a table for the token that is number k of those that are not `pad`, row pad for those that
// are. Attributes: u pad.
bool token_positions_fit(const NodeCheck& g) {
  return embed_fits(g) && g.matrix().rows > uint64_t{g.attributes()[0]} + g.f.header.context;
}

void run_token_positions(Step& s, const Node& n) {
  uint32_t pad = s.model.file.attributes[n.attr];
  const int32_t* ids = s.w.ids[n.inputs[0]];
  read_rows(s, n, [&](uint32_t t) {
    if (static_cast<uint32_t>(ids[t]) == pad) return pad;
    uint32_t row = pad;
    for (uint32_t i = s.span_of(t).first; i <= t; ++i) row += static_cast<uint32_t>(ids[i]) != pad;
    return row;
  });
}

void run_positions(Step& s, const Node& n) {
  uint32_t first = n.attrs ? s.model.file.attributes[n.attr] : 0;
  read_rows(s, n, [&](uint32_t t) {
    const Span& span = s.span_of(t);
    return first + span.past + (t - span.first);
  });
}

}  // namespace qd
