// Columns turned in blocks by the matrix of Hadamard.
#include <cmath>

#include "../ops.h"

namespace qd {
using namespace format;

// Attributes: u columns of a block, a power of two. Blocks of in 0 times Sylvester's matrix over the root of their size.
bool hadamard_fits(const NodeCheck& g) {
  uint32_t size = g.attributes()[0];
  return same_shape(g.in(0), g.out(0)) && size > 0 && (size & (size - 1)) == 0 && g.in(0)->width % size == 0;
}

void run_hadamard(Step& s, const Node& n) {
  uint32_t width = s.model.file.values[n.outputs[0]].width, size = s.model.file.attributes[n.attr];
  float factor = static_cast<float>(1 / std::sqrt(static_cast<double>(size)));
  for_tokens(s, n, [&](uint32_t, uint32_t t) {
    const float* x = value_at(s, n.inputs[0], t);
    float* out = value_at(s, n.outputs[0], t);
    for (uint32_t i = 0; i < width; ++i) out[i] = x[i] * factor;
    for (uint32_t step = 1; step < size; step *= 2)
      for (uint32_t first = 0; first < width; first += 2 * step)
        for (uint32_t i = first; i < first + step; ++i) {
          float a = out[i], b = out[i + step];
          out[i] = a + b;
          out[i + step] = a - b;
        }
  });
}

}  // namespace qd
