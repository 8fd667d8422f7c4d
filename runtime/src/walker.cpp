// The nodes in their order. Everything was checked at open: nothing here can fail.
#include "walker.h"

#include <cstring>

#include "session.h"

namespace qd {

using namespace format;

float* value_at(const Step& s, uint32_t value, uint32_t token) {
  return s.w.arena + uint64_t{token} * s.model.file.header.slot_width + s.model.file.values[value].slot;
}

uint32_t value_tokens(const Step& s, uint32_t value) {
  return s.model.file.values[value].kind == kPerSequence ? 1 : s.tokens;
}

namespace {

float as_float(uint32_t word) {
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

// fn(thread, token) for every token of output 0.
template <class F>
void for_tokens(Step& s, const Node& n, F fn) {
  auto body = [&](uint32_t thread, uint32_t begin, uint32_t end) {
    for (uint32_t t = begin; t < end; ++t) fn(thread, t);
  };
  s.session.model->pool.parallel_for(value_tokens(s, n.outputs[0]), body);
}

void run_norm(Step& s, const Node& n) {
  const Kernels& k = *s.model.kernels;
  const uint32_t* attr = s.model.file.attributes + n.attr;
  bool rms = n.op == kRmsNorm || n.op == kSkipRmsNorm, skip = n.op == kSkipRmsNorm || n.op == kSkipLayerNorm;
  uint32_t width = s.model.file.values[n.outputs[0]].width, inner = rms && attr[1] ? attr[1] : width;
  const float *weight = s.model.floats(n.tensors[0]), *bias = s.model.floats(n.tensors[1]);
  float epsilon = as_float(attr[0]);
  for_tokens(s, n, [&](uint32_t thread, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    if (skip) {
      float* sum = n.outputs[1] == kNone ? s.w.norm + thread * s.w.norm_stride : value_at(s, n.outputs[1], t);
      k.add(x, value_at(s, n.inputs[1], t), width, sum);
      x = sum;
    }
    for (uint32_t i = 0; i < width; i += inner) {
      if (rms) k.rms_norm(x + i, weight, epsilon, inner, out + i);
      else k.layer_norm(x, weight, bias, epsilon, width, out);
    }
  });
}

void run_pair(Step& s, const Node& n) {
  const Kernels& k = *s.model.kernels;
  auto op = n.op == kAdd ? k.add : k.multiply;
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  const float* tensor = n.inputs[1] == kNone ? s.model.floats(n.tensors[0]) : nullptr;
  bool one = tensor && s.model.file.tensors[n.tensors[0]].count == 1 && width != 1;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    if (!one) return op(x, tensor ? tensor : value_at(s, n.inputs[1], t), width, out);
    for (uint32_t i = 0; i < width; ++i) out[i] = n.op == kAdd ? x[i] + *tensor : x[i] * *tensor;
  });
}

void run_activation(Step& s, const Node& n) {
  const Kernels& k = *s.model.kernels;
  uint32_t width = s.model.file.values[n.outputs[0]].width, activation = s.model.file.attributes[n.attr];
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    if (n.op == kGate) k.gate(activation, x, value_at(s, n.inputs[1], t), width, out);
    else k.activate(activation, x, width, out);
  });
}

void run_pooling(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width, used = 0;
  float* out = value_at(s, n.outputs[0], 0);
  if (n.op == kFirst) {
    std::memmove(out, value_at(s, n.inputs[0], 0), width * sizeof(float));
    return;
  }
  float* sum = s.w.norm;
  std::memset(sum, 0, width * sizeof(float));
  const int32_t* mask = n.inputs[1] == kNone ? nullptr : s.w.ids[n.inputs[1]];
  for (uint32_t t = 0; t < s.tokens; ++t) {
    if (mask && mask[t] == 0) continue;
    ++used;
    s.model.kernels->add(sum, value_at(s, n.inputs[0], t), width, sum);
  }
  for (uint32_t i = 0; i < width; ++i) out[i] = used ? sum[i] / static_cast<float>(used) : 0.0f;
}

void run_l2(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    float norm = s.model.kernels->l2_norm(x, width);
    for (uint32_t i = 0; i < width; ++i) out[i] = norm > 0 ? x[i] / norm : 0.0f;
  });
}

void run_node(Step& s, const Node& n) {
  switch (n.op) {
    case kEmbed: case kPositions: return run_rows(s, n);
    case kLinear: return run_linear(s, n);
    case kRmsNorm: case kLayerNorm: case kSkipRmsNorm: case kSkipLayerNorm: return run_norm(s, n);
    case kAttention: return run_attention(s, n);
    case kGate: case kActivate: return run_activation(s, n);
    case kAdd: case kMul: return run_pair(s, n);
    case kMeanPool: case kFirst: return run_pooling(s, n);
    case kL2Norm: return run_l2(s, n);
    default: return;
  }
}

// What of each term a rung holds. Planes of a term are in order in the stack: checked at open.
void set_views(qd_model& m, uint32_t rung) {
  if (m.views_rung == rung) return;
  m.views_rung = rung;
  for (uint32_t i = 0; i < m.file.count(kTerms); ++i) {
    TermView& v = m.views[i];
    const uint32_t* position = m.file.position + uint64_t{i} * kMaxPlanes;
    for (v.planes = 0; v.planes < v.term->planes && position[v.planes] < rung;) ++v.planes;
  }
}

}  // namespace

void walk(qd_session& session, uint32_t tokens, uint32_t rung, float* logits) {
  qd_model& m = *session.model;
  set_views(m, rung);
  Step s{session, m, session.workspace(), tokens, session.length.load(std::memory_order_relaxed), logits};
  for (uint32_t i = 0; i < m.file.count(kNodes); ++i) {
    const Node& n = m.file.nodes[i];
    run_node(s, n);
    // A slot may be used again, but a value is made once: only rotation in place changes one.
    if (n.op == kAttention) s.prepared = 0;
  }
  const File& f = m.file;
  if (f.header.kind != kDecoder || logits == nullptr || f.values[f.header.logits_value].slot == kNone) return;
  for (uint32_t i = f.count(kNodes); i-- > 0;) {
    const Node& n = f.nodes[i];
    if (n.outputs[0] != f.header.logits_value && n.outputs[1] != f.header.logits_value) continue;
    if (!node_reads_logits_row(f, n))
      std::memcpy(logits, value_at(s, f.header.logits_value, tokens - 1), f.header.vocab * sizeof(float));
    return;
  }
}

}  // namespace qd
