// Layers with a state of fixed size: short convolutions, gated delta rules, selective state spaces. Tokens go one after the
// other, so that a prompt in parts gives the same bits; what is shared out over the threads are channels and heads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../ops.h"

namespace qd {
using namespace format;

namespace {

constexpr uint32_t kMostWidth = 1024;  // of a head
constexpr uint32_t kChannels = 256;    // of a convolution that a thread takes at once

bool state_fits(const NodeCheck& g, StateKind kind, uint32_t heads, uint32_t rows, uint32_t columns) {
  if (g.f.header.kind != kDecoder || g.n.state >= g.f.count(kStates)) return false;
  const State& s = g.f.states[g.n.state];
  return s.kind == kind && s.heads == heads && s.head_dim == rows && (kind == kConvState || s.value_dim == columns);
}

bool per_token(const NodeCheck& g, uint32_t inputs) {
  for (uint32_t i = 0; i < inputs; ++i)
    if (g.in(i)->kind != kPerToken) return false;
  return g.out(0)->kind == kPerToken;
}

// log(1 + exp(x))
float softplus(float x) { return static_cast<float>(std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(double{x})))); }
float sigmoid(float x) { return static_cast<float>(1.0 / (1.0 + std::exp(-double{x}))); }
float decay(float a_log, float step) { return static_cast<float>(std::exp(-std::exp(double{a_log}) * step)); }

// x over its length, times a factor.
void unit(const float* x, uint32_t n, float epsilon, float factor, float* out) {
  float sum = 0;
  for (uint32_t i = 0; i < n; ++i) sum += x[i] * x[i];
  float inverse = 1.0f / std::sqrt(sum + epsilon);
  for (uint32_t i = 0; i < n; ++i) out[i] = x[i] * inverse * factor;
}

// fn(span, i) for every i of [begin, end) and every sequence.
template <class F>
void for_blocks(const Step& s, uint64_t begin, uint64_t end, F fn) {
  for (uint64_t i = begin; i < end; ++i)
    for (uint32_t j = 0; j < s.span_count; ++j) fn(s.spans[j], static_cast<uint32_t>(i));
}

}  // namespace

// Each channel of in 0 with its own last tokens. Attributes: u taps, u Activation + 1 (0: none). Tensor 0: weights [taps]
// [channels], the last tap meets the token itself; tensor 1: a bias, or none. State: [taps - 1][channels], oldest first.
bool conv_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  uint32_t width = g.in(0)->width;
  if (!per_token(g, 1) || g.out(0)->width != width || a[0] < 2 || a[0] > 64 || a[1] > kActivations) return false;
  return g.tensor(0, uint64_t{a[0]} * width) && (g.n.tensors[1] == kNone || g.tensor(1, width)) &&
         state_fits(g, kConvState, width, a[0] - 1, 0);
}

void run_conv(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  uint32_t width = s.model.file.values[n.outputs[0]].width, taps = a[0];
  const float *weight = s.model.floats(n.tensors[0]), *bias = s.model.floats(n.tensors[1]);
  auto channels = [&](uint32_t, uint64_t begin, uint64_t end) {
    for_blocks(s, begin, end, [&](const Span& span, uint32_t block) {
      float* state = state_of(s.model.cache, *span.sequence, n.state);
      uint32_t first = block * kChannels, count = std::min(kChannels, width - first);
      for (uint32_t t = span.first; t < span.first + span.tokens; ++t) {
        const float* x = value_at(s, n.inputs[0], t) + first;
        float* out = value_at(s, n.outputs[0], t) + first;
        std::memset(out, 0, count * sizeof(float));
        for (uint32_t tap = 0; tap < taps; ++tap) {
          const float *w = weight + uint64_t{tap} * width + first,
                      *y = tap + 1 < taps ? state + uint64_t{tap} * width + first : x;
          for (uint32_t c = 0; c < count; ++c) out[c] += w[c] * y[c];
        }
        if (bias)
          for (uint32_t c = 0; c < count; ++c) out[c] += bias[first + c];
        for (uint32_t tap = 0; tap + 2 < taps; ++tap)
          std::memcpy(state + uint64_t{tap} * width + first, state + uint64_t{tap + 1} * width + first,
                      count * sizeof(float));
        std::memcpy(state + uint64_t{taps - 2} * width + first, x, count * sizeof(float));
        if (a[1]) s.model.settings.kernels->activate(a[1] - 1, out, count, out);
      }
    });
  };
  s.model.pool.parallel_for((width + kChannels - 1) / kChannels, channels);
}

// q in 0, k in 1, v in 2; in 3: a, then b. Attributes: u heads, u key heads, f epsilon. Tensors: a_log [heads], dt_bias
// [width of a]. State: [heads][head of keys][head of values].
bool delta_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  uint32_t heads = a[0], key_heads = a[1];
  if (!per_token(g, 4) || heads == 0 || key_heads == 0 || heads % key_heads || g.in(0)->width % key_heads) return false;
  uint32_t key = g.in(0)->width / key_heads, value = g.in(2)->width / heads, wide = g.in(3)->width;
  if (g.in(1)->width != g.in(0)->width || g.in(2)->width % heads || !same_shape(g.in(2), g.out(0))) return false;
  if (key > kMostWidth || value > kMostWidth || wide <= heads) return false;
  if (wide - heads != heads && wide - heads != uint64_t{heads} * key) return false;
  return g.tensor(0, heads) && g.tensor(1, wide - heads) && state_fits(g, kRecurrent, heads, key, value);
}

void run_delta(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  const Value* values = s.model.file.values;
  uint32_t heads = a[0], repeats = heads / a[1], key = values[n.inputs[0]].width / a[1],
           value = values[n.inputs[2]].width / heads, steps = values[n.inputs[3]].width - heads, each = steps / heads;
  const float *a_log = s.model.floats(n.tensors[0]), *dt_bias = s.model.floats(n.tensors[1]);
  auto run = [&](uint32_t, uint64_t begin, uint64_t end) {
    float q[kMostWidth], k[kMostWidth], change[kMostWidth];
    for_blocks(s, begin, end, [&](const Span& span, uint32_t h) {
      float* state = state_of(s.model.cache, *span.sequence, n.state) + uint64_t{h} * key * value;
      for (uint32_t t = span.first; t < span.first + span.tokens; ++t) {
        unit(value_at(s, n.inputs[0], t) + h / repeats * key, key, as_float(a[2]), 1.0f / std::sqrt(static_cast<float>(key)), q);
        unit(value_at(s, n.inputs[1], t) + h / repeats * key, key, as_float(a[2]), 1.0f, k);
        const float *v = value_at(s, n.inputs[2], t) + h * value, *gates = value_at(s, n.inputs[3], t);
        float *out = value_at(s, n.outputs[0], t) + h * value, beta = sigmoid(gates[steps + h]), kept = 1;
        std::memset(change, 0, value * sizeof(float));
        for (uint32_t d = 0; d < key; ++d) {
          uint32_t at = h * each + (each > 1 ? d : 0);
          if (d == 0 || each > 1) kept = decay(a_log[h], softplus(gates[at] + dt_bias[at]));
          float *row = state + uint64_t{d} * value, weight = k[d];
          for (uint32_t i = 0; i < value; ++i) {
            row[i] *= kept;
            change[i] += row[i] * weight;
          }
        }
        for (uint32_t i = 0; i < value; ++i) change[i] = (v[i] - change[i]) * beta;
        std::memset(out, 0, value * sizeof(float));
        for (uint32_t d = 0; d < key; ++d) {
          float *row = state + uint64_t{d} * value, into = k[d], from = q[d];
          for (uint32_t i = 0; i < value; ++i) {
            row[i] += into * change[i];
            out[i] += row[i] * from;
          }
        }
      }
    });
  };
  s.model.pool.parallel_for(heads, run);
}

// x in 0, dt in 1, b in 2, c in 3. Attributes: u heads, u groups, f least step, f greatest step (0: none). Tensor 0: a_log,
// d and dt_bias, [3][heads]. State: [heads][state][head].
bool scan_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  uint32_t heads = a[0], groups = a[1];
  if (!per_token(g, 4) || heads == 0 || groups == 0 || heads % groups || g.in(0)->width % heads) return false;
  if (g.in(1)->width != heads || g.in(2)->width % groups || !same_shape(g.in(0), g.out(0))) return false;
  uint32_t head = g.in(0)->width / heads, size = g.in(2)->width / groups;
  return g.in(3)->width == g.in(2)->width && head <= kMostWidth && size <= kMostWidth &&
         g.tensor(0, uint64_t{3} * heads) && state_fits(g, kRecurrent, heads, size, head);
}

void run_scan(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  const Value* values = s.model.file.values;
  uint32_t heads = a[0], repeats = heads / a[1], head = values[n.inputs[0]].width / heads,
           size = values[n.inputs[2]].width / a[1];
  const float *a_log = s.model.floats(n.tensors[0]), *d = a_log + heads, *dt_bias = d + heads;
  float least = as_float(a[2]), most = as_float(a[3]);
  auto run = [&](uint32_t, uint64_t begin, uint64_t end) {
    float taken[kMostWidth];
    for_blocks(s, begin, end, [&](const Span& span, uint32_t h) {
      float* state = state_of(s.model.cache, *span.sequence, n.state) + uint64_t{h} * size * head;
      for (uint32_t t = span.first; t < span.first + span.tokens; ++t) {
        const float *x = value_at(s, n.inputs[0], t) + h * head, *b = value_at(s, n.inputs[2], t) + h / repeats * size,
                    *c = value_at(s, n.inputs[3], t) + h / repeats * size;
        float step = softplus(value_at(s, n.inputs[1], t)[h] + dt_bias[h]);
        step = step < least ? least : most > 0 && step > most ? most : step;
        float kept = decay(a_log[h], step), *out = value_at(s, n.outputs[0], t) + h * head;
        for (uint32_t i = 0; i < head; ++i) taken[i] = x[i] * step;
        std::memset(out, 0, head * sizeof(float));
        for (uint32_t j = 0; j < size; ++j) {
          float *row = state + uint64_t{j} * head, into = b[j], from = c[j];
          for (uint32_t i = 0; i < head; ++i) {
            row[i] = row[i] * kept + taken[i] * into;
            out[i] += row[i] * from;
          }
        }
        for (uint32_t i = 0; i < head; ++i) out[i] += d[h] * x[i];
      }
    });
  };
  s.model.pool.parallel_for(heads, run);
}

}  // namespace qd
