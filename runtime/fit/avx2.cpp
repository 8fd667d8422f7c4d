// The loops for x86 with avx2, fma.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "loops.h"
#include <immintrin.h>
#pragma GCC target("avx2,fma")

#define QDF_BYTES 32
#define QDF_NAME "avx2"

namespace qdf {
namespace {

#include "lanes.inl"

QDF_INLINE FloatPart fused_part(FloatPart a, FloatPart b, FloatPart c) { return _mm256_fmadd_ps(a, b, c); }
QDF_INLINE Lanes root(const Lanes& x) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.p[i] = _mm256_sqrt_ps(x.p[i]);
  return r;
}

#include "fit.inl"

}  // namespace

const Loops& kAvx2 = kLoops;

}  // namespace qdf
#endif
