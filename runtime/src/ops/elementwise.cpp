// Sums, products and activations of single numbers.
#include "../ops.h"

namespace qd {
using namespace format;

namespace {

using Pair = void (*)(const float*, const float*, uint32_t, float*);

// in 0 and in 1 of one width, or tensor 0 of that width (or 1) in place of in 1.
template <class One>
void run_pair(Step& s, const Node& n, Pair pair, One one_number) {
  uint32_t width = s.model.file.values[n.outputs[0]].width;
  const float* tensor = n.inputs[1] == kNone ? s.model.floats(n.tensors[0]) : nullptr;
  bool one = tensor && s.model.file.tensors[n.tensors[0]].count == 1 && width != 1;
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    if (!one) return pair(x, tensor ? tensor : value_at(s, n.inputs[1], t), width, out);
    for (uint32_t i = 0; i < width; ++i) out[i] = one_number(x[i], *tensor);
  });
}

}  // namespace

bool pair_fits(const NodeCheck& g) {
  if (!same_shape(g.in(0), g.out(0))) return false;
  if (g.in(1)) return same_shape(g.in(1), g.out(0));
  return g.tensor(0, g.out(0)->width) || g.tensor(0, 1);
}

void run_add(Step& s, const Node& n) {
  run_pair(s, n, s.model.settings.kernels->add, [](float a, float b) { return a + b; });
}

void run_multiply(Step& s, const Node& n) {
  run_pair(s, n, s.model.settings.kernels->multiply, [](float a, float b) { return a * b; });
}

// Attributes: u Activation. act(in 0)
bool activate_fits(const NodeCheck& g) {
  return same_shape(g.in(0), g.out(0)) && g.attributes()[0] < kActivations;
}

void run_activate(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width, activation = s.model.file.attributes[n.attr];
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    s.model.settings.kernels->activate(activation, value_at(s, n.inputs[0], t), width, value_at(s, n.outputs[0], t));
  });
}

// Attributes: u Activation. act(in 0) * in 1
bool gate_fits(const NodeCheck& g) { return activate_fits(g) && same_shape(g.in(1), g.out(0)); }

void run_gate(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width, activation = s.model.file.attributes[n.attr];
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    s.model.settings.kernels->gate(activation, value_at(s, n.inputs[0], t), value_at(s, n.inputs[1], t), width,
                                   value_at(s, n.outputs[0], t));
  });
}

}  // namespace qd
