// Heads outside of attention: parts of them, their rotation and their norms; and what limits or scales a token's values.
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "../rotation.h"

namespace qd {
using namespace format;

namespace {

// cos and sin of position * frequency in double.
void make_angles(Step& s, const Span& span, const float* frequency, uint32_t half, float factor) {
  for (uint32_t t = 0; t < span.tokens; ++t)
    for (uint32_t i = 0; i < half; ++i) {
      double angle = static_cast<double>(span.past + t) * frequency[i];
      uint64_t at = (span.first + t) * s.w.half + i;
      s.w.cos[at] = static_cast<float>(std::cos(angle)) * factor;
      s.w.sin[at] = static_cast<float>(std::sin(angle)) * factor;
    }
}

// The frequencies of dynamic NTK scaling for the length of the sequence.
void make_dynamic_angles(Step& s, const Span& span, const Angles& of, uint32_t dim) {
  float frequency[kMostRotated / 2];
  double grown = static_cast<double>(of.grown) * span.total / of.beyond - (of.grown - 1.0);
  double theta = of.theta * std::pow(grown, dim / (dim - 2.0));
  for (uint32_t i = 0; i < dim / 2; ++i) {
    float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    frequency[i] = 1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
  }
  make_angles(s, span, frequency, dim / 2, of.factor);
}

Rotation rotation_of(Step& s, const Angles& of, uint32_t rotary_dim, uint32_t interleaved) {
  Rotation rotation{rotary_dim, interleaved};
  if (rotary_dim == 0 || s.angles == of) return rotation;
  s.angles = of;
  for (uint32_t i = 0; i < s.span_count; ++i) {
    const Span& span = s.spans[i];
    bool beyond = of.beyond > 0 && span.total > of.beyond;
    if (beyond && of.long_frequencies == kNone) {
      make_dynamic_angles(s, span, of, rotary_dim);
    } else {
      uint32_t frequencies = beyond ? of.long_frequencies : of.frequencies;
      make_angles(s, span, s.model.floats(frequencies), rotary_dim / 2, of.factor);
    }
  }
  return rotation;
}

}  // namespace

Rotation rotation_of(Step& s, uint32_t frequencies, uint32_t rotary_dim, uint32_t interleaved, float factor) {
  return rotation_of(s, {frequencies, 0, kNone, 0, 0, factor}, rotary_dim, interleaved);
}

Rotation rotation_of(Step& s, const Node& n, const Attention& a) {
  AttentionKind kind = attention_kind(s.model.file, n);
  if (kind.beyond == 0) return rotation_of(s, n.tensors[0], a.rotary_dim, a.interleaved, a.factor);
  Angles of{n.tensors[0], kind.beyond, kind.long_frequencies, kind.theta, kind.factor, a.factor};
  return rotation_of(s, of, a.rotary_dim, a.interleaved);
}

namespace {

bool tokens_fit(const NodeCheck& g) { return g.in(0)->kind == kPerToken && g.out(0)->kind == kPerToken; }

}  // namespace

// Of each head of in 0 some elements. Attributes: u heads, u stride, u start. A head of out 0 is what is taken.
bool select_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  if (!tokens_fit(g) || a[0] == 0 || a[1] == 0 || g.in(0)->width != uint64_t{a[0]} * a[1]) return false;
  uint32_t width = g.out(0)->width;
  return width % a[0] == 0 && a[2] <= a[1] && width / a[0] <= a[1] - a[2];
}

void run_select(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  uint32_t width = s.model.file.values[n.outputs[0]].width / a[0];
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t) + a[2];
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t h = 0; h < a[0]; ++h) std::memcpy(out + h * width, x + uint64_t{h} * a[1], width * sizeof(float));
  });
}

// Each head of in 0 and behind it that of in 1. Attributes: u heads, u in 0 is one head for all, u in 1 is.
bool join_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  if (!tokens_fit(g) || g.in(1)->kind != kPerToken || a[0] == 0 || a[1] > 1 || a[2] > 1) return false;
  uint64_t width = 0;
  for (uint32_t i = 0; i < 2; ++i) {
    if (!a[1 + i] && g.in(i)->width % a[0]) return false;
    width += a[1 + i] ? g.in(i)->width : g.in(i)->width / a[0];
  }
  return g.out(0)->width == width * a[0];
}

void run_join(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  const Value* values = s.model.file.values;
  uint32_t first = values[n.inputs[0]].width / (a[1] ? 1 : a[0]), second = values[n.inputs[1]].width / (a[2] ? 1 : a[0]);
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float *x = value_at(s, n.inputs[0], t), *y = value_at(s, n.inputs[1], t);
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t h = 0; h < a[0]; ++h, out += first + second) {
      std::memcpy(out, x + (a[1] ? 0 : h * first), first * sizeof(float));
      std::memcpy(out + first, y + (a[2] ? 0 : h * second), second * sizeof(float));
    }
  });
}

// Heads rotated by their positions. Attributes: u heads, u rotary_dim, u interleaved, f factor; tensor 0: inv_freq.
bool rotate_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  if (!tokens_fit(g) || !same_shape(g.in(0), g.out(0)) || a[0] == 0 || g.in(0)->width % a[0]) return false;
  return a[1] > 0 && a[1] % 2 == 0 && a[1] <= g.in(0)->width / a[0] && g.tensor(0, a[1] / 2);
}

void run_rotate(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  uint32_t width = s.model.file.values[n.outputs[0]].width, size = width / a[0];
  Rotation rotation = rotation_of(s, n.tensors[0], a[1], a[2], as_float(a[3]));
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    float* out = value_at(s, n.outputs[0], t);
    std::memcpy(out, value_at(s, n.inputs[0], t), width * sizeof(float));
    for (uint32_t h = 0; h < a[0]; ++h) turn(s, rotation, t, out + h * size);
  });
}

// A norm of each head. Attributes: f epsilon, u elements of a head, u layer norm (else RMS). Tensor 0: a weight per
// element of a head, or one per element of all heads.
bool head_norm_fits(const NodeCheck& g) {
  const uint32_t* a = g.attributes();
  uint32_t width = g.in(0)->width;
  return tokens_fit(g) && same_shape(g.in(0), g.out(0)) && a[1] > 0 && width % a[1] == 0 &&
         (g.tensor(0, width) || g.tensor(0, a[1]));
}

void run_head_norm(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  const Kernels& k = *s.model.settings.kernels;
  uint32_t width = s.model.file.values[n.outputs[0]].width, size = a[1];
  const float* weight = s.model.floats(n.tensors[0]);
  bool each = s.model.file.tensors[n.tensors[0]].count == width;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t h = 0; h < width; h += size) {
      const float* w = weight + (each ? h : 0);
      if (a[2]) k.layer_norm(x + h, w, nullptr, as_float(a[0]), size, out + h);
      else k.rms_norm(x + h, w, as_float(a[0]), size, out + h);
    }
  });
}

// Attributes: f least, f most.
bool clip_fits(const NodeCheck& g) { return same_shape(g.in(0), g.out(0)); }

void run_clip(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  float least = as_float(a[0]), most = as_float(a[1]);
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t i = 0; i < width; ++i) out[i] = x[i] < least ? least : x[i] > most ? most : x[i];
  });
}

// in 0 times the numbers that in 1 has per token: one for all, or one for each head.
bool scale_fits(const NodeCheck& g) {
  uint32_t heads = g.in(1)->width;
  return same_shape(g.in(0), g.out(0)) && g.in(1)->kind == g.in(0)->kind && heads > 0 && g.in(0)->width % heads == 0;
}

void run_scale(Step& s, const Node& n) {
  uint32_t heads = s.model.file.values[n.inputs[1]].width, size = s.model.file.values[n.outputs[0]].width / heads;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float *x = value_at(s, n.inputs[0], t), *factors = value_at(s, n.inputs[1], t);
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t h = 0; h < heads; ++h, x += size, out += size)
      for (uint32_t i = 0; i < size; ++i) out[i] = x[i] * factors[h];
  });
}

// What is left above mean + factor * standard deviation of a token's values. Attributes: f factor.
bool outliers_fit(const NodeCheck& g) { return tokens_fit(g) && same_shape(g.in(0), g.out(0)); }

void run_outliers(Step& s, const Node& n) {
  float factor = as_float(s.model.file.attributes[n.attr]);
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    double sum = 0, squares = 0;
    for (uint32_t i = 0; i < width; ++i) sum += x[i];
    double mean = sum / width;
    for (uint32_t i = 0; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
    float cut = static_cast<float>(mean) + static_cast<float>(std::sqrt(squares / width)) * factor;
    for (uint32_t i = 0; i < width; ++i) out[i] = x[i] > cut ? x[i] - cut : 0.0f;
  });
}

// in 0 with the magnitude of in 1: x * sqrt(mean(y^2)) / sqrt(max(mean(x^2), least)). Attributes: f least.
bool magnitude_fits(const NodeCheck& g) {
  return tokens_fit(g) && same_shape(g.in(0), g.out(0)) && same_shape(g.in(1), g.out(0));
}

void run_magnitude(Step& s, const Node& n) {
  double least = as_float(s.model.file.attributes[n.attr]);
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float *x = value_at(s, n.inputs[0], t), *y = value_at(s, n.inputs[1], t);
    float* out = value_at(s, n.outputs[0], t);
    double own = 0, wanted = 0;
    for (uint32_t i = 0; i < width; ++i) {
      own += double{x[i]} * x[i];
      wanted += double{y[i]} * y[i];
    }
    float to = static_cast<float>(std::sqrt(wanted / width));
    float from = static_cast<float>(std::sqrt(own / width > least ? own / width : least));
    for (uint32_t i = 0; i < width; ++i) out[i] = x[i] * to / from;
  });
}

// Attributes: f positive, f negative, f linear, f least. positive x^2 above 0, negative (exp(min(x, least)) - 1 - x) below;
// plus linear x.
bool xielu_fits(const NodeCheck& g) { return same_shape(g.in(0), g.out(0)); }

void run_xielu(Step& s, const Node& n) {
  const uint32_t* a = s.model.file.attributes + n.attr;
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  float positive = as_float(a[0]), negative = as_float(a[1]), linear = as_float(a[2]), least = as_float(a[3]);
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t i = 0; i < width; ++i) {
      float low = static_cast<float>(std::expm1(double{x[i] < least ? x[i] : least})) - x[i];
      out[i] = (x[i] > 0 ? positive * x[i] * x[i] : negative * low) + linear * x[i];
    }
  });
}

}  // namespace qd
