// The loops for x86 with avx512f, avx2, fma.
#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "loops.h"
#include <immintrin.h>
#pragma GCC target("avx512f,avx2,fma")

#define QDF_BYTES 64
#define QDF_NAME "avx512"

namespace qdf {
namespace {

#include "lanes.inl"

QDF_INLINE FloatPart fused_part(FloatPart a, FloatPart b, FloatPart c) { return _mm512_fmadd_ps(a, b, c); }
QDF_INLINE Lanes root(const Lanes& x) {
  Lanes r;
  r.p[0] = _mm512_maskz_sqrt_ps(0xffff, x.p[0]);
  return r;
}

#include "fit.inl"

}  // namespace

const Loops& kAvx512 = kLoops;

}  // namespace qdf
#endif
