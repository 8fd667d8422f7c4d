// The loops in the compiler's vectors.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "loops.h"

#define QDF_BYTES 16
#define QDF_NAME "plain"

namespace qdf {
namespace {

#include "lanes.inl"

QDF_INLINE FloatPart fused_part(FloatPart a, FloatPart b, FloatPart c) { return a * b + c; }
QDF_INLINE Lanes root(const Lanes& x) {
  Lanes r;
  for (int i = 0; i < 16; ++i) set_lane(r, i, std::sqrt(lane(x, i)));
  return r;
}

#include "fit.inl"

}  // namespace

const Loops& kPlain = kLoops;

}  // namespace qdf
