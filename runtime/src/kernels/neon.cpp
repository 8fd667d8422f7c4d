// AArch64: NEON is its baseline. Most of the portable code becomes it by itself; products of bytes are written out,
// once with the widening multiplication that every core has and once with the dot product of ARMv8.2 (see dotprod.cpp).
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace qd {
namespace {
#include "lanes.inl"
#include "neon.inl"

// Rows 0..3 of 16 bytes as int8, times four columns: pairs reach 128 * 127 * 2 = 32512, which fits into 16 bits.
inline int32x4_t dot4(int32x4_t sum, int8x16_t w, int8x16_t x) {
  int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
  return vpadalq_s16(sum, vpaddq_s16(low, high));
}
#include "neon_terms.inl"
}  // namespace

extern const Kernels kNeonKernels;
constexpr Kernels kNeonKernels = make_kernels<Neon>("neon");

}  // namespace qd
#endif
