// Attention: the new keys and values go to the cache (decoders) or stay where they are (encoders), then every head of
// every new token looks at what it may see.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "../rotation.h"
#include "../session.h"
#include "../terms.h"

namespace qd {

using namespace format;

namespace {

// Elements of a head of values.
uint32_t value_width(const Step& s, const Attention& a, const Node& n) {
  return n.state == kNone ? a.head_dim : value_dim(s.model.file.states[n.state]);
}

void store(const Step& s, const Attention& a, const Node& n, const Rotation& turned, uint32_t token, uint32_t head,
           float* key) {
  const Kernels& k = *s.model.settings.kernels;
  uint32_t d = a.head_dim, v = value_width(s, a, n);
  uint64_t at = s.past + token;
  CacheView c = cache_of(s.session, n.state, head);
  std::memcpy(key, value_at(s, n.inputs[1], token) + head * d, d * sizeof(float));
  turn(s, turned, token, key);
  const float* value = value_at(s, n.inputs[2], token) + head * v;
  if (s.model.settings.cache == QD_KV_INT8) {
    k.store_int8(key, d, reinterpret_cast<int8_t*>(c.keys) + at * d, c.key_scales + at);
    k.store_int8(value, v, reinterpret_cast<int8_t*>(c.values) + at * v, c.value_scales + at);
  } else if (s.model.settings.cache == QD_KV_F32) {
    std::memcpy(c.keys + at * d * sizeof(float), key, d * sizeof(float));
    std::memcpy(c.values + at * v * sizeof(float), value, v * sizeof(float));
  } else {
    k.store_f16(key, d, reinterpret_cast<uint16_t*>(c.keys) + at * d);
    k.store_f16(value, v, reinterpret_cast<uint16_t*>(c.values) + at * v);
  }
}

// Scores to shares: limited, and with a sink, which takes part and has no value.
void share(const Step& s, const AttentionKind& kind, uint32_t head, float* scores, uint32_t positions) {
  const Kernels& k = *s.model.settings.kernels;
  if (kind.softcap > 0) {
    for (uint32_t i = 0; i < positions; ++i) scores[i] /= kind.softcap;
    k.activate(kTanh, scores, positions, scores);
    for (uint32_t i = 0; i < positions; ++i) scores[i] *= kind.softcap;
  }
  if (kind.sinks != kNone) scores[positions++] = s.model.floats(kind.sinks)[head];
  k.softmax(scores, positions);
}

void look_at_cache(const Step& s, const Attention& a, const Node& n, uint32_t token, uint32_t head, const float* q,
                   float* scores) {
  const Kernels& k = *s.model.settings.kernels;
  AttentionKind kind = attention_kind(s.model.file, n);
  uint32_t d = a.head_dim, v = value_width(s, a, n), end = s.past + token + 1;
  uint64_t begin = a.window > 0 && a.window < end ? end - a.window : 0;
  if (kind.chunk > 0) begin = std::max<uint64_t>(begin, (end - 1) / kind.chunk * uint64_t{kind.chunk});
  uint32_t positions = static_cast<uint32_t>(end - begin);
  CacheView c = cache_of(s.session, n.state, head / (a.heads / a.kv_heads));
  float* out = value_at(s, n.outputs[0], token) + head * v;
  if (s.model.settings.cache == QD_KV_INT8) {
    const int8_t *keys = reinterpret_cast<int8_t*>(c.keys) + begin * d,
                 *values = reinterpret_cast<int8_t*>(c.values) + begin * v;
    k.scores_int8(q, keys, c.key_scales + begin, d, positions, a.scale, scores);
    share(s, kind, head, scores, positions);
    k.mix_int8(scores, values, c.value_scales + begin, v, positions, out);
  } else if (s.model.settings.cache == QD_KV_F32) {
    k.scores_f32(q, reinterpret_cast<float*>(c.keys) + begin * d, d, d, positions, a.scale, scores);
    share(s, kind, head, scores, positions);
    k.mix_f32(scores, reinterpret_cast<float*>(c.values) + begin * v, v, v, positions, out);
  } else {
    k.scores_f16(q, reinterpret_cast<uint16_t*>(c.keys) + begin * d, d, positions, a.scale, scores);
    share(s, kind, head, scores, positions);
    k.mix_f16(scores, reinterpret_cast<uint16_t*>(c.values) + begin * v, v, positions, out);
  }
}

// Queries times a factor of their position.
void scale_by_position(const Step& s, const AttentionKind& kind, uint32_t token, uint32_t width, float* q) {
  if (kind.beta == 0) return;
  double place = (static_cast<double>(s.past + token) + kind.offset) / kind.length;
  float factor = static_cast<float>(1.0 + kind.beta * std::log1p(std::floor(place)));
  for (uint32_t i = 0; i < width; ++i) q[i] *= factor;
}

// A window of w means at most w - 1 tokens before, and in both directions where there is no causality.
void look_at_sequence(const Step& s, const Attention& a, const Node& n, uint32_t token, uint32_t head, const float* q,
                      float* scores) {
  const Kernels& k = *s.model.settings.kernels;
  uint32_t d = a.head_dim, kv = head / (a.heads / a.kv_heads), stride = s.model.file.header.slot_width;
  uint32_t begin = a.window > 0 && token + 1 > a.window ? token + 1 - a.window : 0,
           end = a.causal ? token + 1 : s.tokens;
  if (a.window > 0 && !a.causal) end = static_cast<uint32_t>(std::min<uint64_t>(end, uint64_t{token} + a.window));
  const int32_t* mask = n.inputs[3] == kNone ? nullptr : s.w.ids[n.inputs[3]];
  k.scores_f32(q, value_at(s, n.inputs[1], begin) + kv * d, stride, d, end - begin, a.scale, scores);
  for (uint32_t p = begin; mask && p < end; ++p)
    if (mask[p] == 0) scores[p - begin] = -3.0e38f;
  k.softmax(scores, end - begin);
  k.mix_f32(scores, value_at(s, n.inputs[2], begin) + kv * d, stride, d, end - begin,
            value_at(s, n.outputs[0], token) + head * d);
}

bool kind_fits(const NodeCheck& g, const Attention& a) {
  AttentionKind kind = attention_kind(g.f, g.n);
  if (!(kind.softcap >= 0) || !(kind.length > 0) || !(kind.offset >= 0)) return false;
  bool plain = kind.softcap == 0 && kind.chunk == 0 && kind.beta == 0 && kind.sinks == kNone;
  if (g.f.header.kind == kEncoder) return plain && kind.beyond == 0;
  if (kind.beyond > 0 && kind.long_frequencies == kNone && (!(kind.theta > 0) || !(kind.factor >= 1) || a.rotary_dim < 4))
    return false;
  if (kind.beyond > 0 && kind.long_frequencies != kNone &&
      !is_tensor(g.f, kind.long_frequencies, kFloat32, a.rotary_dim / 2))
    return false;
  return kind.sinks == kNone || is_tensor(g.f, kind.sinks, kFloat32, a.heads);
}

}  // namespace

// In q, k, v, mask? -> out 0; state. Attributes: u heads, u kv_heads, u head_dim, f scale, u causal, u window, u rotary_dim
// (0: none), u interleaved, f factor, and perhaps an AttentionKind; tensor 0: inv_freq.
bool attention_fits(const NodeCheck& g) {
  constexpr uint32_t kMost = 4096;  // heads, and their width
  Attention a;
  std::memcpy(&a, g.attributes(), sizeof a);
  if (a.heads == 0 || a.kv_heads == 0 || a.heads % a.kv_heads || a.head_dim == 0 || a.head_dim > kMost ||
      a.heads > kMost)
    return false;
  bool cached = g.f.header.kind == kDecoder && g.n.state < g.f.count(kStates);
  uint32_t v = cached ? value_dim(g.f.states[g.n.state]) : a.head_dim;
  uint64_t widths[3] = {uint64_t{a.heads} * a.head_dim, uint64_t{a.kv_heads} * a.head_dim, uint64_t{a.kv_heads} * v};
  for (uint32_t i = 0; i < 3; ++i)
    if (g.in(i)->kind != kPerToken || g.in(i)->width != widths[i]) return false;
  if (g.out(0)->kind != kPerToken || g.out(0)->width != uint64_t{a.heads} * v) return false;
  if (!kind_fits(g, a)) return false;
  if (g.in(3) && !is_ids(g.in(3))) return false;
  if (a.rotary_dim > a.head_dim || a.rotary_dim % 2 || (a.rotary_dim && !g.tensor(0, a.rotary_dim / 2))) return false;
  if (g.f.header.kind == kEncoder) return g.n.state == kNone;
  if (g.n.state >= g.f.count(kStates) || g.in(3)) return false;
  const State& s = g.f.states[g.n.state];
  return s.kind == kCache && a.causal && s.heads == a.kv_heads && s.head_dim == a.head_dim;
}

void run_attention(Step& s, const Node& n) {
  Attention a;
  std::memcpy(&a, s.model.file.attributes + n.attr, sizeof a);
  AttentionKind kind = attention_kind(s.model.file, n);
  bool cached = n.state != kNone;
  Rotation turned = rotation_of(s, n, a);
  auto keys = [&](uint32_t thread, uint64_t begin, uint64_t end) {
    for (uint64_t i = begin; i < end; ++i) {
      uint32_t token = static_cast<uint32_t>(i / a.kv_heads), head = static_cast<uint32_t>(i % a.kv_heads);
      if (cached) store(s, a, n, turned, token, head, s.w.head + thread * 2 * s.w.head_stride);
      else turn(s, turned, token, value_at(s, n.inputs[1], token) + head * a.head_dim);
    }
  };
  s.model.pool.parallel_for(uint64_t{s.tokens} * a.kv_heads, keys);
  auto heads = [&](uint32_t thread, uint64_t begin, uint64_t end) {
    float* q = s.w.head + thread * 2 * s.w.head_stride;
    float* scores = s.session.scores + uint64_t{thread} * s.session.score_stride;
    for (uint64_t i = begin; i < end; ++i) {  // heads outside: a thread stays with its keys
      uint32_t head = static_cast<uint32_t>(i / s.tokens), token = static_cast<uint32_t>(i % s.tokens);
      std::memcpy(q, value_at(s, n.inputs[0], token) + head * a.head_dim, a.head_dim * sizeof(float));
      turn(s, turned, token, q);
      if (cached) scale_by_position(s, kind, token, a.head_dim, q);
      if (cached) look_at_cache(s, a, n, token, head, q, scores);
      else look_at_sequence(s, a, n, token, head, q, scores);
    }
  };
  s.model.pool.parallel_for(uint64_t{s.tokens} * a.heads, heads);
}

}  // namespace qd
