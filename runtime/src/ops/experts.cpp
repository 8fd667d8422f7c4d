// Mixtures of experts: which of them a token goes to, and the weighted sum of what they give. Tokens are taken together by
// expert, experts in the order of their numbers, so that a token's sum does not depend on how a prompt is cut.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "../product.h"
#include "../terms.h"

namespace qd {
using namespace format;

namespace {

enum Scores : uint32_t { kSoftmax = 0, kSigmoids = 1, kSoftmaxOfChosen = 2, kMixer = 3, kScores = 4 };

struct Route {
  uint32_t top_k, scores, groups, kept, counted, normalize;
  float epsilon, least, scale, jitter;
};
static_assert(sizeof(Route) == 40, "ten words");

Route route_of(const File& f, const Node& n) {
  Route r;
  std::memcpy(&r, f.attributes + n.attr, sizeof r);
  return r;
}

constexpr float kTaken = NAN;  // in the place of a number that was chosen

// The greatest of n numbers; the first of equal ones. NaN stands for what was taken; one number at least is none.
uint32_t greatest(const float* x, uint32_t n) {
  uint32_t best = 0;
  for (uint32_t i = 1; i < n; ++i)
    if (x[i] > x[best] || std::isnan(x[best])) best = i;
  return best;
}

// A damaged weight makes NaN. Such an expert comes last: no expert is chosen twice, whatever the numbers are.
void without_nan(float* x, uint32_t n) {
  for (uint32_t i = 0; i < n; ++i)
    if (std::isnan(x[i])) x[i] = -INFINITY;
}

// All but the best groups lose their chance. A group counts by the sum of its best scores.
void keep_groups(const Route& r, uint32_t count, float* choice) {
  constexpr uint32_t kMost = 64;
  uint32_t size = count / r.groups;
  float totals[kMost];
  for (uint32_t g = 0; g < r.groups; ++g) {
    const float* x = choice + g * size;
    uint32_t first = greatest(x, size), second = first == 0 ? 1 : 0;
    totals[g] = x[first];
    if (r.counted < 2 || size < 2) continue;
    for (uint32_t i = 0; i < size; ++i)
      if (i != first && x[i] > x[second]) second = i;
    totals[g] += x[second];
  }
  without_nan(totals, r.groups);
  bool kept[kMost] = {};
  for (uint32_t i = 0; i < r.kept; ++i) {
    uint32_t g = greatest(totals, r.groups);
    kept[g] = true;
    totals[g] = kTaken;
  }
  for (uint32_t i = 0; i < count; ++i)
    if (!kept[i / size]) choice[i] = -INFINITY;
}

// Two experts, one after the other, each with its softmax among the logits close to it.
void mix(const Kernels& k, const Route& r, const float* logits, uint32_t count, float* left, float* shares, float* out) {
  std::memcpy(left, logits, count * sizeof(float));
  without_nan(left, count);
  for (uint32_t place = 0; place < 2; ++place) {
    uint32_t best = greatest(left, count);
    float most = left[best];
    for (uint32_t i = 0; i < count; ++i) {
      float magnitude = logits[i] < 0 ? -logits[i] : logits[i];
      bool far = (most - logits[i]) / std::max(magnitude, most) > 2 * r.jitter;
      shares[i] = far || std::isnan(left[i]) ? -INFINITY : left[i];
    }
    k.softmax(shares, count);
    out[place] = static_cast<float>(best);
    out[2 + place] = shares[best];
    left[best] = kTaken;
  }
}

// values, choice: room for a number per expert. out: top_k experts, then their weights.
void choose(const Kernels& k, const Route& r, const float* logits, const float* bias, const float* scales, uint32_t count,
            float* values, float* choice, float* out) {
  if (r.scores == kMixer) return mix(k, r, logits, count, choice, values, out);
  std::memcpy(values, logits, count * sizeof(float));
  if (r.scores == kSoftmax) k.softmax(values, count);
  if (r.scores == kSigmoids) k.activate(kSigmoid, values, count, values);
  for (uint32_t i = 0; i < count; ++i) choice[i] = bias ? values[i] + bias[i] : values[i];
  without_nan(choice, count);
  if (r.kept < r.groups) keep_groups(r, count, choice);
  float* weights = out + r.top_k;
  for (uint32_t place = 0; place < r.top_k; ++place) {
    uint32_t best = greatest(choice, count);
    out[place] = static_cast<float>(best);
    weights[place] = values[best];
    choice[best] = kTaken;
  }
  if (r.scores == kSoftmaxOfChosen) k.softmax(weights, r.top_k);
  float sum = 0;
  for (uint32_t i = 0; i < r.top_k; ++i) sum += weights[i];
  float divisor = r.normalize ? std::max(sum + r.epsilon, r.least) : 1.0f;
  for (uint32_t i = 0; i < r.top_k; ++i) {
    weights[i] = weights[i] / divisor * r.scale;
    if (scales) weights[i] *= scales[static_cast<uint32_t>(out[i])];
  }
}

struct Experts {  // the attributes of kExperts, before the matrices of all experts: up, down, and gate where there is one
  uint32_t count, top_k, activation, gated, weighted_inputs;
  float alpha, limit;  // alpha: of x * sigmoid(alpha * x); below 0: the activation is squared
  uint32_t up_bias, down_bias, gate_bias;
};
static_assert(sizeof(Experts) == 40, "ten words");
constexpr uint32_t kWords = 10;

Experts experts_of(const File& f, const Node& n) {
  Experts e;
  std::memcpy(&e, f.attributes + n.attr, sizeof e);
  return e;
}

const Matrix& matrix_of(const Step& s, const Node& n, const Experts& e, uint32_t which, uint32_t expert) {
  const File& f = s.model.file;
  return f.matrices[f.attributes[n.attr + kWords + which * e.count + expert]];
}

bool matrices_fit(const NodeCheck& g, const Experts& e, uint32_t inner) {
  uint32_t hidden = g.in(0)->width;
  const uint32_t* ids = g.attributes() + kWords;
  for (uint32_t i = 0; i < e.count * (2 + e.gated); ++i) {
    if (ids[i] >= g.f.count(kMatrices)) return false;
    const Matrix& m = g.f.matrices[ids[i]];
    bool down = i / e.count == 1;
    if (m.rows != (down ? hidden : inner) || m.columns != (down ? inner : hidden)) return false;
  }
  return true;
}

bool bias_fits(const NodeCheck& g, uint32_t tensor, uint64_t count) {
  return tensor == kNone || is_tensor(g.f, tensor, kFloat32, Checked(count));
}

const float* bias_of(const Step& s, uint32_t tensor, uint64_t expert, uint32_t rows) {
  const float* all = s.model.floats(tensor);
  return all ? all + expert * rows : nullptr;
}

// What stands between the projections of one token: up becomes the input of down.
void activate(const Step& s, const Experts& e, uint32_t n, float* up, float* gate) {
  const Kernels& k = *s.model.settings.kernels;
  if (!e.gated) {
    k.activate(e.activation, up, n, up);
    if (e.alpha < 0) k.multiply(up, up, n, up);  // squared
    return;
  }
  if (e.limit > 0)
    for (uint32_t i = 0; i < n; ++i) {
      gate[i] = std::min(gate[i], e.limit);
      up[i] = std::min(std::max(up[i], -e.limit), e.limit) + 1.0f;
    }
  if (e.alpha == 1.0f || e.alpha < 0) return k.gate(e.activation, gate, up, n, up);
  k.multiply(gate, up, n, up);
  for (uint32_t i = 0; i < n; ++i) gate[i] *= e.alpha;
  k.gate(kSigmoid, gate, up, n, up);
}

// Choices by expert: starts[e] .. starts[e + 1] of `order`, each token * top_k + place.
void sort_choices(Step& s, const Node& n, const Experts& e) {
  uint32_t *starts = s.w.experts.starts, *order = s.w.experts.order;
  std::memset(starts, 0, (e.count + 1) * sizeof(uint32_t));
  auto expert_at = [&](uint32_t t, uint32_t place) {
    return std::min(static_cast<uint32_t>(value_at(s, n.inputs[1], t)[place]), e.count - 1);
  };
  for (uint32_t t = 0; t < s.tokens; ++t)
    for (uint32_t p = 0; p < e.top_k; ++p) ++starts[expert_at(t, p) + 1];
  for (uint32_t i = 0; i < e.count; ++i) starts[i + 1] += starts[i];
  for (uint32_t t = 0; t < s.tokens; ++t)
    for (uint32_t p = 0; p < e.top_k; ++p) order[starts[expert_at(t, p)]++] = t * e.top_k + p;
  for (uint32_t i = e.count; i > 0; --i) starts[i] = starts[i - 1];
  starts[0] = 0;
}

struct Group {  // some tokens of one expert
  uint32_t expert, count;
  uint32_t tokens[kLinearTokens];
  float shares[kLinearTokens];
};

Group group_at(const Step& s, const Node& n, const Experts& e, uint32_t expert, uint32_t first) {
  Group g;
  g.expert = expert;
  g.count = std::min(s.w.experts.tokens, s.w.experts.starts[expert + 1] - first);
  for (uint32_t i = 0; i < g.count; ++i) {
    uint32_t choice = s.w.experts.order[first + i];
    g.tokens[i] = choice / e.top_k;
    g.shares[i] = value_at(s, n.inputs[1], g.tokens[i])[e.top_k + choice % e.top_k];
  }
  return g;
}

// The rows of a group, times their weights where these are multiplied into what experts take.
Product rows_of(Step& s, const Node& n, const Experts& e, const Group& g, const Matrix& m) {
  uint64_t stride = s.model.file.header.slot_width;
  if (!e.weighted_inputs) {
    if (s.tokens == 1) return product_of(s, m, n.inputs[0], 0, 1);
    return {m, value_at(s, n.inputs[0], 0), stride, g.tokens, g.count, 0};
  }
  float* rows = s.w.experts.out;
  for (uint32_t i = 0; i < g.count; ++i) {
    const float* x = value_at(s, n.inputs[0], g.tokens[i]);
    float* to = rows + i * s.w.experts.hidden;
    for (uint32_t j = 0; j < m.columns; ++j) to[j] = x[j] * g.shares[i];
  }
  return {m, rows, s.w.experts.hidden, nullptr, g.count, 0};
}

void run_group(Step& s, const Node& n, const Experts& e, const Group& g) {
  ExpertScratch& w = s.w.experts;
  const Matrix &up = matrix_of(s, n, e, 0, g.expert), &down = matrix_of(s, n, e, 1, g.expert);
  Product in = rows_of(s, n, e, g, up);
  if (in.key == 0) in.key = uint64_t{1} << 62 | ++s.serial;
  multiply(s, in, bias_of(s, e.up_bias, g.expert, up.rows), w.up, w.inner);
  if (e.gated) {
    const Matrix& gate = matrix_of(s, n, e, 2, g.expert);
    Product other{gate, in.x, in.stride, in.picks, in.tokens, in.key};
    multiply(s, other, bias_of(s, e.gate_bias, g.expert, gate.rows), w.gate, w.inner);
  }
  auto between = [&](uint32_t, uint64_t begin, uint64_t end) {
    for (uint64_t t = begin; t < end; ++t) activate(s, e, up.rows, w.up + t * w.inner, w.gate + t * w.inner);
  };
  s.model.pool.parallel_for(g.count, between);
  Product back{down, w.up, w.inner, nullptr, g.count, 0};
  multiply(s, back, bias_of(s, e.down_bias, g.expert, down.rows), w.out, w.hidden);
  auto add = [&](uint32_t, uint64_t begin, uint64_t end) {
    for (uint64_t t = begin; t < end; ++t) {
      float *to = value_at(s, n.outputs[0], g.tokens[t]), share = e.weighted_inputs ? 1.0f : g.shares[t];
      const float* x = w.out + t * w.hidden;
      for (uint32_t j = 0; j < down.rows; ++j) to[j] += x[j] * share;
    }
  };
  s.model.pool.parallel_for(g.count, add);
}

}  // namespace

// Logits in 0 -> out 0: the numbers of top_k experts, then their weights. Attributes: Route; tensor 0: a bias per expert
// that only the choice sees, or none; tensor 1: a factor of each expert's weight, or none.
bool route_fits(const NodeCheck& g) {
  Route r = route_of(g.f, g.n);
  uint32_t count = g.in(0)->width;
  if (g.in(0)->kind != kPerToken || g.out(0)->kind != kPerToken || r.top_k == 0 || r.top_k > count) return false;
  if (count > kMostExperts || r.scores >= kScores || (r.scores == kMixer && r.top_k != 2)) return false;
  if (r.groups == 0 || r.groups > 64 || count % r.groups || r.kept == 0 || r.kept > r.groups || r.counted > 2) return false;
  if (g.n.tensors[1] != kNone && (r.scores == kMixer || !g.tensor(1, count))) return false;
  return g.out(0)->width == 2 * r.top_k && (g.n.tensors[0] == kNone || g.tensor(0, count));
}

void run_route(Step& s, const Node& n) {
  Route r = route_of(s.model.file, n);
  uint32_t count = s.model.file.values[n.inputs[0]].width;
  const float* bias = n.tensors[0] == kNone ? nullptr : s.model.floats(n.tensors[0]);
  const float* scales = n.tensors[1] == kNone ? nullptr : s.model.floats(n.tensors[1]);
  for_tokens(s, n, [&](uint32_t thread, uint32_t t) {
    float* room = s.w.experts.scores + uint64_t{thread} * 2 * s.w.experts.most;
    choose(*s.model.settings.kernels, r, value_at(s, n.inputs[0], t), bias, scales, count, room,
           room + s.w.experts.most, value_at(s, n.outputs[0], t));
  });
}

// Tokens in 0 and what kRoute made of them in 1 -> the sum. Attributes: Experts, then matrices.
bool experts_fit(const NodeCheck& g) {
  Experts e = experts_of(g.f, g.n);
  if (!same_shape(g.in(0), g.out(0)) || g.in(0)->kind != kPerToken || g.in(1)->kind != kPerToken) return false;
  if (e.count == 0 || e.count > kMostExperts || e.gated > 1 || e.weighted_inputs > 1 || e.activation >= kActivations)
    return false;
  uint32_t maker = g.f.maker[g.n.inputs[1]];
  if (maker == kNone || g.f.nodes[maker].op != kRoute || g.f.values[g.f.nodes[maker].inputs[0]].width != e.count)
    return false;
  if (g.in(1)->width != 2 * uint64_t{e.top_k} || g.n.attrs < kWords + uint64_t{e.count} * (2 + e.gated)) return false;
  uint32_t first = g.attributes()[kWords];
  if (first >= g.f.count(kMatrices)) return false;
  uint32_t inner = g.f.matrices[first].rows, hidden = g.in(0)->width;
  return matrices_fit(g, e, inner) && bias_fits(g, e.up_bias, uint64_t{e.count} * inner) &&
         bias_fits(g, e.gate_bias, uint64_t{e.count} * inner) && bias_fits(g, e.down_bias, uint64_t{e.count} * hidden);
}

void run_experts(Step& s, const Node& n) {
  Experts e = experts_of(s.model.file, n);
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  for (uint32_t t = 0; t < s.tokens; ++t) std::memset(value_at(s, n.outputs[0], t), 0, width * sizeof(float));
  sort_choices(s, n, e);
  for (uint32_t expert = 0; expert < e.count; ++expert)
    for (uint32_t at = s.w.experts.starts[expert]; at < s.w.experts.starts[expert + 1]; at += s.w.experts.tokens)
      run_group(s, n, e, group_at(s, n, e, expert, at));
}

}  // namespace qd
