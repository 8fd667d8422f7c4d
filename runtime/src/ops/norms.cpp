// Norms, of a value or of the sum of two.
#include "../ops.h"

namespace qd {
using namespace format;

namespace {

enum class NormKind { kRms, kLayer };

bool norm_fits(const NodeCheck& g, NormKind kind) {
  bool rms = kind == NormKind::kRms;
  uint32_t width = g.in(0)->width, inner = rms ? g.attributes()[1] : 0;
  if (inner > width || (inner && width % inner)) return false;
  return g.tensor(0, inner ? inner : width) && (rms || g.n.tensors[1] == kNone || g.tensor(1, width));
}

bool one_fits(const NodeCheck& g, NormKind kind) { return same_shape(g.in(0), g.out(0)) && norm_fits(g, kind); }

bool skip_fits(const NodeCheck& g, NormKind kind) {
  return same_shape(g.in(0), g.out(0)) && same_shape(g.in(1), g.out(0)) &&
         (!g.out(1) || same_shape(g.out(1), g.out(0))) && norm_fits(g, kind);
}

// Attributes: f epsilon, and of kRms u inner (0: the whole width, else per `inner`). Tensors: weight, and of kLayer bias.
struct Norm {
  const Kernels& kernels;
  NormKind kind;
  uint32_t width, inner;
  float epsilon;
  const float *weight, *bias;

  Norm(const Step& s, const Node& n, NormKind which)
      : kernels(*s.model.settings.kernels), kind(which), width(s.model.file.values[n.outputs[0]].width),
        weight(s.model.floats(n.tensors[0])), bias(s.model.floats(n.tensors[1])) {
    const uint32_t* attributes = s.model.file.attributes + n.attr;
    epsilon = as_float(attributes[0]);
    inner = kind == NormKind::kRms && attributes[1] ? attributes[1] : width;
  }
  void run(const float* x, float* out) const {
    if (kind == NormKind::kLayer) return kernels.layer_norm(x, weight, bias, epsilon, width, out);
    for (uint32_t i = 0; i < width; i += inner) kernels.rms_norm(x + i, weight, epsilon, inner, out + i);
  }
};

void run_one(Step& s, const Node& n, NormKind kind) {
  Norm norm(s, n, kind);
  for_tokens(s, n, [&](uint32_t, uint32_t t) { norm.run(value_at(s, n.inputs[0], t), value_at(s, n.outputs[0], t)); });
}

// in 0 + in 1 -> out 1 (the sum, where there is one), and the norm of it -> out 0.
void run_skip(Step& s, const Node& n, NormKind kind) {
  Norm norm(s, n, kind);
  for_tokens(s, n, [&](uint32_t thread, uint32_t t) {
    float* sum = n.outputs[1] == kNone ? s.w.norm + thread * s.w.norm_stride : value_at(s, n.outputs[1], t);
    norm.kernels.add(value_at(s, n.inputs[0], t), value_at(s, n.inputs[1], t), norm.width, sum);
    norm.run(sum, value_at(s, n.outputs[0], t));
  });
}

}  // namespace

bool rms_norm_fits(const NodeCheck& g) { return one_fits(g, NormKind::kRms); }
bool layer_norm_fits(const NodeCheck& g) { return one_fits(g, NormKind::kLayer); }
bool skip_rms_norm_fits(const NodeCheck& g) { return skip_fits(g, NormKind::kRms); }
bool skip_layer_norm_fits(const NodeCheck& g) { return skip_fits(g, NormKind::kLayer); }
void run_rms_norm(Step& s, const Node& n) { run_one(s, n, NormKind::kRms); }
void run_layer_norm(Step& s, const Node& n) { run_one(s, n, NormKind::kLayer); }
void run_skip_rms_norm(Step& s, const Node& n) { run_skip(s, n, NormKind::kRms); }
void run_skip_layer_norm(Step& s, const Node& n) { run_skip(s, n, NormKind::kLayer); }

}  // namespace qd
