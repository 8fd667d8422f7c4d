// Checks of values, nodes and states, and of the bytes of weights that index something.
#include <algorithm>
#include <cstring>

#include "ops.h"
#include "terms.h"

namespace qd {
using namespace format;
namespace {

// Limits of whole sections, far above what any network has: the work of opening stays within seconds.
constexpr uint32_t kMaxNodes = 65536, kMaxValues = 262144, kMaxStates = 65536, kMaxInputs = 8;
constexpr uint32_t kMaxHeads = 4096, kMaxHeadWidth = 4096, kMaxWidth = 1u << 24;
constexpr uint64_t kMaxCacheWidth = uint64_t{1} << 28;  // floats per token in all caches together

struct OpRules {
  uint8_t inputs, at_least, outputs, attributes;
  bool matrix, ids;
  bool (*fits)(const NodeCheck&);
};
constexpr OpRules kRules[kOps] = {
    {},
#define QD_OP(number, constant, inputs, at_least, outputs, attributes, matrix, ids, fits, run) \
  {inputs, at_least, outputs, attributes, matrix, ids, fits},
#include "ops.def"
};

// Nodes come in an order in which they can run: inputs have been made before, and outputs never.
bool is_made(const File& f, uint32_t value) { return f.values[value].role == kInput || f.maker[value] != kNone; }

bool inputs_fit(const File& f, const Node& n, const OpRules& rules) {
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t v = n.inputs[i];
    if (v == kNone ? i < rules.at_least : i >= rules.inputs || v >= f.count(kValues) || !is_made(f, v)) return false;
  }
  return n.inputs[0] == kNone || is_ids(f.values + n.inputs[0]) == rules.ids;
}

bool outputs_fit(const File& f, const Node& n, const OpRules& rules) {
  for (uint32_t i = 0; i < 2; ++i) {
    uint32_t v = n.outputs[i];
    if (v == kNone ? i == 0 : i >= rules.outputs || v >= f.count(kValues) || is_made(f, v)) return false;
    if (v != kNone && is_ids(f.values + v)) return false;
  }
  return n.outputs[0] != n.outputs[1];
}

bool ids_fit(const File& f, const Node& n, const OpRules& rules) {
  if (!inputs_fit(f, n, rules) || !outputs_fit(f, n, rules)) return false;
  for (uint32_t t : n.tensors)
    if (t != kNone && t >= f.count(kTensors)) return false;
  if (rules.matrix && n.matrix >= f.count(kMatrices)) return false;
  return n.attrs >= rules.attributes && n.attr <= f.count(kAttributes) && n.attrs <= f.count(kAttributes) - n.attr;
}

bool share_floats(const Value& a, const Value& b) {
  if (a.kind == kIds || b.kind == kIds || a.slot == kNone || b.slot == kNone) return false;
  return a.slot < uint64_t{b.slot} + b.width && b.slot < uint64_t{a.slot} + a.width;
}

// A node never writes where it reads, nor twice to one place.
bool writes_apart(const File& f, const Node& n) {
  for (uint32_t i = 0; i < 2 && n.outputs[i] != kNone; ++i) {
    const Value& out = f.values[n.outputs[i]];
    for (uint32_t in : n.inputs)
      if (in != kNone && share_floats(out, f.values[in])) return false;
    if (i == 1 && share_floats(out, f.values[n.outputs[0]])) return false;
  }
  return true;
}

bool value_fits(const File& f, uint32_t id) {
  const Value& v = f.values[id];
  const Header& h = f.header;
  if (v.kind > kIds || v.role >= kRoles || (v.kind == kIds) != (v.role == kInput)) return false;
  if (v.role != kInner && v.name_at == kNone) return false;
  if (v.name_at != kNone && !string_ends(f, v.name_at)) return false;
  if (v.kind == kIds) return true;
  if (v.width == 0 || v.width > kMaxWidth) return false;
  if (h.kind == kDecoder && id == h.logits_value && v.slot == kNone) return true;  // checked with its node
  return v.slot <= h.slot_width && v.width <= h.slot_width - v.slot;
}

bool logits_fit(const File& f) {
  const Header& h = f.header;
  if (h.kind == kEncoder) return true;
  if (h.logits_value >= f.count(kValues) || h.vocab == 0) return false;
  const Value& v = f.values[h.logits_value];
  if (v.kind != kPerToken || v.width != h.vocab || v.role == kInput || !is_made(f, h.logits_value))
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

const Matrix& matrix_of(const File& f, uint32_t term) {
  uint32_t low = 0, high = f.count(kMatrices) - 1;
  while (low < high) {
    uint32_t middle = low + (high - low + 1) / 2;
    if (f.matrices[middle].first_term <= term) low = middle;
    else high = middle - 1;
  }
  return f.matrices[low];
}

qd_status check_states(const File& f, qd_error* err) {
  if (f.count(kStates) > kMaxStates)
    return fail(err, QD_BAD_FILE, "states: found %u, allowed %u", f.count(kStates), kMaxStates);
  Checked width;
  for (uint32_t i = 0; i < f.count(kStates); ++i) {
    const State& s = f.states[i];
    if (s.kind >= kStateKinds) return fail(err, QD_UNSUPPORTED, "state %u: kind %u is not known", i, s.kind);
    if (s.kind == kConvState) {
      if (s.heads == 0 || s.heads > kMaxWidth || s.head_dim == 0 || s.head_dim > 64)
        return fail(err, QD_BAD_FILE, "state %u: channels or tokens out of range", i);
      continue;
    }
    if (s.heads == 0 || s.heads > kMaxHeads || s.head_dim == 0 || s.head_dim > kMaxHeadWidth ||
        s.value_dim > kMaxHeadWidth)
      return fail(err, QD_BAD_FILE, "state %u: heads or head_dim out of range", i);
    width += Checked(s.heads) * std::max(s.head_dim, value_dim(s));
  }
  if (!width.at_most(kMaxCacheWidth)) return fail(err, QD_BAD_FILE, "states: their caches together are too wide");
  return QD_OK;
}

qd_status check_values(const File& f, qd_error* err) {
  uint32_t ids = 0;
  for (uint32_t i = 0; i < f.count(kValues); ++i) {
    if (!value_fits(f, i)) return fail(err, QD_BAD_FILE, "value %u: kind, role, name or slot", i);
    ids += f.values[i].kind == kIds;
    f.maker[i] = kNone;
  }
  if (ids > kMaxInputs || (f.header.kind == kDecoder && ids != 1))
    return fail(err, QD_BAD_FILE, "graph: found %u inputs", ids);
  return QD_OK;
}

qd_status check_nodes(const File& f, qd_error* err) {
  for (uint32_t i = 0; i < f.count(kNodes); ++i) {
    const Node& n = f.nodes[i];
    if (n.op == 0 || n.op >= kOps) return fail(err, QD_UNSUPPORTED, "node %u: op %u is not known", i, n.op);
    const OpRules& rules = kRules[n.op];
    if (!ids_fit(f, n, rules) || !rules.fits({f, n}))
      return fail(err, QD_BAD_FILE, "node %u (op %u): its operands", i, n.op);
    if (!writes_apart(f, n)) return fail(err, QD_BAD_FILE, "node %u (op %u): it writes where it reads", i, n.op);
    for (uint32_t v : n.outputs)
      if (v != kNone) f.maker[v] = i;
  }
  return QD_OK;
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
  if (f.count(kNodes) > kMaxNodes || f.count(kValues) > kMaxValues)
    return fail(err, QD_BAD_FILE, "graph: found %u nodes and %u values, allowed %u and %u", f.count(kNodes),
                f.count(kValues), kMaxNodes, kMaxValues);
  if (qd_status s = check_states(f, err)) return s;
  if (qd_status s = check_values(f, err)) return s;
  if (qd_status s = check_nodes(f, err)) return s;
  if (!logits_fit(f)) return fail(err, QD_BAD_FILE, "graph: nothing makes the logits");
  for (uint32_t i = 0; i < f.count(kValues); ++i)
    if (f.values[i].role == kOutput && !is_made(f, i))
      return fail(err, QD_BAD_FILE, "value %u: an output that nothing makes", i);
  return QD_OK;
}

bool block_is_sound(const File& f, uint32_t block, const uint8_t* bytes) {
  const Block& b = f.blocks[block];
  const Term& t = f.terms[b.term];
  const TermRules& rules = *term_rules(t.kind);
  return b.plane != 0 || rules.is_sound == nullptr || rules.is_sound(matrix_of(f, b.term), t, bytes);
}

namespace {

// The greatest entry of each tensor of int32, which many matrices may share as their map.
void find_most(const File& f, const uint8_t* resident) {
  for (uint32_t i = 0; i < f.count(kTensors); ++i) {
    const Tensor& t = f.tensors[i];
    int32_t most = -1, entry;
    for (uint64_t j = 0; t.kind == kInt32 && j < t.count; ++j) {
      std::memcpy(&entry, resident + t.at + 4 * j, 4);
      if (entry > most) most = entry;
    }
    f.most[i] = most;
  }
}

}  // namespace

bool tensors_are_sound(const File& f, const uint8_t* resident) {
  find_most(f, resident);
  for (uint32_t i = 0; i < f.count(kMatrices); ++i) {
    const Matrix& m = f.matrices[i];
    if (m.map_tensor != kNone && f.most[m.map_tensor] >= 0 && static_cast<uint32_t>(f.most[m.map_tensor]) >= m.columns)
      return false;
  }
  return true;
}

}  // namespace qd
