// Checks of values, nodes and states, and of the bytes of weights that index something.
#include <cstring>

#include "file.h"

namespace qd {
using namespace format;
namespace {

struct Arity {
  uint8_t inputs, at_least, outputs, attrs;
  bool matrix, per_token_only;
};
//                                none         kEmbed       kLinear      kRmsNorm     kLayerNorm   kSkipRms kSkipLayer
constexpr Arity kArity[kOps] = {{}, {1, 1, 1, 0, true, true}, {1, 1, 1, 0, true, false}, {1, 1, 1, 2, false, false},
                                {1, 1, 1, 1, false, false}, {2, 2, 2, 2, false, false}, {2, 2, 2, 1, false, false},
                                {4, 3, 1, 9, false, true},  // kAttention
                                {2, 2, 1, 1, false, false}, {1, 1, 1, 1, false, false}, {2, 1, 1, 0, false, false},
                                {2, 1, 1, 0, false, false}, {0, 0, 1, 0, true, true},   {2, 1, 1, 0, false, false},
                                {1, 1, 1, 0, false, false}, {1, 1, 1, 0, false, false}};

struct Graph {
  const File& f;
  const Node& n;
  const Value* in(uint32_t i) const { return n.inputs[i] == kNone ? nullptr : &f.values[n.inputs[i]]; }
  const Value* out(uint32_t i) const { return n.outputs[i] == kNone ? nullptr : &f.values[n.outputs[i]]; }
  const uint32_t* attr() const { return f.attributes + n.attr; }
  bool tensor(uint32_t i, uint64_t count) const {
    uint32_t t = n.tensors[i];
    return t < f.count(kTensors) && f.tensors[t].kind == 0 && f.tensors[t].count == count;
  }
};

// Inputs must have been made before, outputs never: `made` is walked, not stored, as the graph is small.
bool made_before(const File& f, uint32_t value, uint32_t node) {
  if (f.values[value].role == 1) return true;
  for (uint32_t i = 0; i < node; ++i)
    if (f.nodes[i].outputs[0] == value || f.nodes[i].outputs[1] == value) return true;
  return false;
}

bool ids_fit(const File& f, const Node& n, uint32_t index) {
  const Arity& a = kArity[n.op];
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t v = n.inputs[i];
    if (v == kNone ? i < a.at_least : i >= a.inputs || v >= f.count(kValues) || !made_before(f, v, index)) return false;
  }
  for (uint32_t i = 0; i < 2; ++i) {
    uint32_t v = n.outputs[i];
    if (v == kNone ? i == 0 : i >= a.outputs || v >= f.count(kValues) || made_before(f, v, index)) return false;
    if (v != kNone && f.values[v].kind == kIds) return false;
  }
  if (n.outputs[0] == n.outputs[1]) return false;
  for (uint32_t t : n.tensors)
    if (t != kNone && t >= f.count(kTensors)) return false;
  if (a.matrix && n.matrix >= f.count(kMatrices)) return false;
  return n.attrs >= a.attrs && n.attr <= f.count(kAttributes) && n.attrs <= f.count(kAttributes) - n.attr;
}

// Floats of a shape like that of output 0, or (kIds) token ids.
bool same(const Value* a, const Value* b) { return a->kind == b->kind && a->width == b->width; }
bool is_ids(const Value* v) { return v->kind == kIds; }

bool norm_fits(const Graph& g, bool rms) {
  uint32_t width = g.in(0)->width, inner = rms ? g.attr()[1] : 0;
  if (inner > width || (inner && width % inner)) return false;
  return g.tensor(0, inner ? inner : width) && (rms || g.n.tensors[1] == kNone || g.tensor(1, width));
}

bool attention_fits(const Graph& g) {
  Attention a;
  std::memcpy(&a, g.attr(), sizeof a);
  if (a.heads == 0 || a.kv_heads == 0 || a.heads % a.kv_heads || a.head_dim == 0 || a.head_dim > 4096 || a.heads > 4096)
    return false;
  for (uint32_t i = 0; i < 3; ++i)
    if (g.in(i)->kind != kPerToken || g.in(i)->width != (i ? a.kv_heads : a.heads) * a.head_dim) return false;
  if (g.out(0)->kind != kPerToken || g.out(0)->width != a.heads * a.head_dim) return false;
  if (g.in(3) && !is_ids(g.in(3))) return false;
  if (a.rotary_dim > a.head_dim || a.rotary_dim % 2 || (a.rotary_dim && !g.tensor(0, a.rotary_dim / 2))) return false;
  if (g.f.header.kind == kEncoder) return g.n.state == kNone;
  if (g.n.state >= g.f.count(kStates) || g.in(3)) return false;
  const State& s = g.f.states[g.n.state];
  return a.causal && s.heads == a.kv_heads && s.head_dim == a.head_dim;
}

bool pair_fits(const Graph& g) {  // kAdd, kMul
  if (!same(g.in(0), g.out(0))) return false;
  if (g.in(1)) return same(g.in(1), g.out(0));
  return g.tensor(0, g.out(0)->width) || g.tensor(0, 1);
}

bool matrix_fits(const Graph& g) {
  const Matrix& m = g.f.matrices[g.n.matrix];
  if (g.n.op == kLinear)
    return g.in(0)->kind == g.out(0)->kind && g.in(0)->width == m.columns && g.out(0)->width == m.rows &&
           (g.n.tensors[0] == kNone || g.tensor(0, m.rows));
  if (g.n.op == kPositions && m.rows < g.f.header.context) return false;
  return g.out(0)->kind == kPerToken && g.out(0)->width == m.columns && (g.n.op != kEmbed || is_ids(g.in(0)));
}

bool op_fits(const Graph& g) {
  const Value *a = g.in(0), *b = g.in(1), *out = g.out(0);
  if (a && (is_ids(a) != (g.n.op == kEmbed))) return false;
  switch (g.n.op) {
    case kEmbed: case kLinear: case kPositions: return matrix_fits(g);
    case kRmsNorm: case kLayerNorm: return same(a, out) && norm_fits(g, g.n.op == kRmsNorm);
    case kSkipRmsNorm: case kSkipLayerNorm:
      return same(a, out) && same(b, out) && (!g.out(1) || same(g.out(1), out)) && norm_fits(g, g.n.op == kSkipRmsNorm);
    case kAttention: return attention_fits(g);
    case kGate: return same(a, out) && same(b, out) && g.attr()[0] < kActivations;
    case kActivate: return same(a, out) && g.attr()[0] < kActivations;
    case kAdd: case kMul: return pair_fits(g);
    case kMeanPool: case kFirst:
      return a->kind == kPerToken && out->kind == kPerSequence && a->width == out->width &&
             (g.n.op == kFirst || !b || is_ids(b)) && g.f.header.kind == kEncoder;
    case kL2Norm: return same(a, out);
    default: return false;
  }
}

bool value_fits(const File& f, uint32_t id) {
  const Value& v = f.values[id];
  const Header& h = f.header;
  if (v.kind > kIds || v.role > 2 || (v.kind == kIds) != (v.role == 1)) return false;
  if (v.role != 0 && v.name_at == kNone) return false;
  if (v.name_at != kNone) {
    uint64_t n = h.sections[kMetadata].count;
    if (v.name_at >= n || std::memchr(f.metadata + v.name_at, 0, n - v.name_at) == nullptr) return false;
  }
  if (v.kind == kIds) return true;
  if (v.width == 0 || v.width > (1u << 24)) return false;
  if (h.kind == kDecoder && id == h.logits_value && v.slot == kNone) return true;  // checked with its node
  return v.slot <= h.slot_width && v.width <= h.slot_width - v.slot;
}

bool logits_fit(const File& f) {
  const Header& h = f.header;
  if (h.kind == kEncoder) return true;
  if (h.logits_value >= f.count(kValues) || h.vocab == 0) return false;
  const Value& v = f.values[h.logits_value];
  if (v.kind != kPerToken || v.width != h.vocab || v.role == 1 || !made_before(f, h.logits_value, f.count(kNodes)))
    return false;
  if (v.slot != kNone) return true;
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {  // in no slot: nobody else may read it, and only a matrix makes it
    const Node& n = f.nodes[i];
    for (uint32_t in : n.inputs)
      if (in == h.logits_value) return false;
    if ((n.outputs[0] == h.logits_value && n.op != kLinear) || n.outputs[1] == h.logits_value) return false;
  }
  return true;
}

bool sparse_is_sound(const Matrix& m, const Term& t, const uint8_t* codes) {
  uint32_t rb = row_blocks(m), before = 0, start;
  for (uint32_t i = 0; i <= rb; ++i) {
    std::memcpy(&start, codes + 4 * uint64_t{i}, 4);
    if (start < before || start > t.entries || (i == 0 && start != 0)) return false;
    before = start;
  }
  const uint8_t* entries = codes + 4 * (uint64_t{rb} + 1);
  for (uint32_t i = 0; i < before; ++i) {
    uint32_t place[2];
    std::memcpy(place, entries + 12 * uint64_t{i}, 8);
    if (place[0] >= m.padded_columns || place[1] >= kRows) return false;
  }
  return true;
}

bool codes_below(const uint8_t* codes, uint64_t n, uint32_t size, uint32_t levels) {
  if (levels == (size == 1 ? 256u : 65536u)) return true;
  for (uint64_t i = 0; i < n; ++i) {
    uint32_t code = size == 1 ? codes[i] : codes[2 * i] | static_cast<uint32_t>(codes[2 * i + 1]) << 8;
    if (code >= levels) return false;
  }
  return true;
}

const Matrix& matrix_of(const File& f, uint32_t term) {
  uint32_t low = 0, high = f.count(kMatrices) - 1;
  while (low < high) {
    uint32_t middle = low + (high - low + 1) / 2;
    if (f.matrices[middle].first_term <= term) low = middle;
    else high = middle - 1;
  }
  return f.matrices[low];
}

}  // namespace

// The logits of the last token are all that a step gives: where only they depend on a node, it runs for one token.
bool node_reads_logits_row(const File& f, const Node& n) {
  if (f.header.kind != kDecoder || n.op != kLinear || n.outputs[0] != f.header.logits_value) return false;
  for (uint32_t i = 0; i < f.count(kNodes); ++i)
    for (uint32_t in : f.nodes[i].inputs)
      if (in == f.header.logits_value) return false;
  return true;
}

qd_status validate_graph(const File& f, qd_error* err) {
  if (f.count(kNodes) > 65536 || f.count(kValues) > 262144)
    return fail(err, QD_BAD_FILE, "graph: more nodes than 65536");
  for (uint32_t i = 0; i < f.count(kStates); ++i)
    if (f.states[i].heads == 0 || f.states[i].heads > 4096 || f.states[i].head_dim == 0 || f.states[i].head_dim > 4096)
      return fail(err, QD_BAD_FILE, "state %u: heads or head_dim out of range", i);
  uint32_t ids = 0;
  for (uint32_t i = 0; i < f.count(kValues); ++i) {
    if (!value_fits(f, i)) return fail(err, QD_BAD_FILE, "value %u: kind, role, name or slot", i);
    ids += f.values[i].kind == kIds;
  }
  if (ids > 8 || (f.header.kind == kDecoder && ids != 1)) return fail(err, QD_BAD_FILE, "graph: found %u inputs", ids);
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    const Node& n = f.nodes[i];
    if (n.op == 0 || n.op >= kOps) return fail(err, QD_UNSUPPORTED, "node %u: op %u is not known", i, n.op);
    if (!ids_fit(f, n, i) || !op_fits({f, n})) return fail(err, QD_BAD_FILE, "node %u (op %u): its operands", i, n.op);
  }
  if (!logits_fit(f)) return fail(err, QD_BAD_FILE, "graph: nothing makes the logits");
  for (uint32_t i = 0; i < f.count(kValues); ++i)
    if (f.values[i].role == 2 && !made_before(f, i, f.count(kNodes)))
      return fail(err, QD_BAD_FILE, "value %u: an output that nothing makes", i);
  return QD_OK;
}

bool block_is_sound(const File& f, uint32_t block, const uint8_t* bytes) {
  const Block& b = f.blocks[block];
  if (b.plane != 0) return true;
  const Term& t = f.terms[b.term];
  const Matrix& m = matrix_of(f, b.term);
  uint64_t rb = row_blocks(m);
  if ((t.kind == kTable4 || t.kind == kTable3) && t.tables > 1)
    return codes_below(bytes + t.select_at, rb * t.groups * kRows, 1, t.tables);
  if (t.kind == kVector)
    return codes_below(bytes + t.codes_at, rb * (m.padded_columns / t.width) * t.books * kRows, code_bytes(t),
                       t.levels);
  return t.kind != kSparse || sparse_is_sound(m, t, bytes + t.codes_at);
}

bool tensors_are_sound(const File& f, const uint8_t* resident) {
  for (uint32_t i = 0; i < f.count(kMatrices); ++i) {
    const Matrix& m = f.matrices[i];
    if (m.map_tensor == kNone) continue;
    const uint8_t* map = resident + f.tensors[m.map_tensor].at;
    for (uint32_t j = 0; j < m.padded_columns; ++j) {
      int32_t column;
      std::memcpy(&column, map + 4 * uint64_t{j}, 4);
      if (column >= 0 && static_cast<uint32_t>(column) >= m.columns) return false;
    }
  }
  return true;
}

}  // namespace qd
