// Of the vectors of all tokens one of the sequence.
#include <algorithm>
#include <cfloat>
#include <cstring>

#include "../ops.h"

namespace qd {
using namespace format;

namespace {

bool pool_fits(const NodeCheck& g) {
  const Value *in = g.in(0), *out = g.out(0);
  return in->kind == kPerToken && out->kind == kPerSequence && in->width == out->width &&
         g.f.header.kind == kEncoder;
}

}  // namespace

// in 0, mask? -> the mean of the tokens that the mask leaves
bool mean_pool_fits(const NodeCheck& g) { return pool_fits(g) && (!g.in(1) || is_ids(g.in(1))); }

void run_mean_pool(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  const int32_t* mask = n.inputs[1] == kNone ? nullptr : s.w.ids[n.inputs[1]];
  for_tokens(s, n, [&](uint32_t thread, uint32_t first) {
    const Span& span = s.span_of(first);
    float *out = value_at(s, n.outputs[0], first), *sum = s.w.norm + thread * s.w.norm_stride;
    std::memset(sum, 0, width * sizeof(float));
    uint32_t used = 0;
    for (uint32_t t = first; t < first + span.tokens; ++t) {
      if (mask && mask[t] == 0) continue;
      ++used;
      s.model.settings.kernels->add(sum, value_at(s, n.inputs[0], t), width, sum);
    }
    for (uint32_t i = 0; i < width; ++i) out[i] = used ? sum[i] / static_cast<float>(used) : 0.0f;
  });
}

// in 0 -> its token 0
bool first_fits(const NodeCheck& g) { return pool_fits(g); }

void run_first(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  for (uint32_t i = 0; i < s.span_count; ++i) {
    uint32_t row = s.spans[i].first;
    std::memmove(value_at(s, n.outputs[0], row), value_at(s, n.inputs[0], row), width * sizeof(float));
  }
}

// in 0, mask -> in 0 at the last token that the mask leaves; zeros where it leaves none
bool last_fits(const NodeCheck& g) { return pool_fits(g) && is_ids(g.in(1)); }

void run_last(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  const int32_t* mask = s.w.ids[n.inputs[1]];
  for (uint32_t i = 0; i < s.span_count; ++i) {
    uint32_t first = s.spans[i].first, last = first + s.spans[i].tokens;
    while (last > first && mask[last - 1] == 0) --last;
    float* out = value_at(s, n.outputs[0], first);
    if (last == first) std::memset(out, 0, width * sizeof(float));
    else std::memmove(out, value_at(s, n.inputs[0], last - 1), width * sizeof(float));
  }
}

// in 0, mask -> of each column the greatest among the tokens that the mask leaves; the least float where it leaves none
bool greatest_fits(const NodeCheck& g) { return pool_fits(g) && is_ids(g.in(1)); }

void run_greatest(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  const int32_t* mask = s.w.ids[n.inputs[1]];
  for (uint32_t i = 0; i < s.span_count; ++i) {
    uint32_t first = s.spans[i].first;
    float* out = value_at(s, n.outputs[0], first);
    std::fill(out, out + width, -FLT_MAX);
    for (uint32_t t = first; t < first + s.spans[i].tokens; ++t) {
      const float* x = value_at(s, n.inputs[0], t);
      for (uint32_t j = 0; mask[t] != 0 && j < width; ++j) out[j] = std::max(out[j], x[j]);
    }
  }
}

// in 0 over its length
bool l2_norm_fits(const NodeCheck& g) { return same_shape(g.in(0), g.out(0)); }

void run_l2_norm(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    float norm = s.model.settings.kernels->l2_norm(x, width);
    for (uint32_t i = 0; i < width; ++i) out[i] = norm > 0 ? x[i] / norm : 0.0f;
  });
}

}  // namespace qd
