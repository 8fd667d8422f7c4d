// AArch64 with the dot product of ARMv8.2: four products and their sum in one instruction; otherwise as neon.cpp.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__aarch64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#include <arm_neon.h>
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#include <arm_neon.h>
#endif

namespace qd {
namespace {
#include "lanes.inl"
#include "neon.inl"

inline int32x4_t dot4(int32x4_t sum, int8x16_t w, int8x16_t x) {
#if defined(__clang__) && __clang_major__ < 16  // its header has the intrinsic for whole files only
  __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
  return sum;
#else
  return vdotq_s32(sum, w, x);
#endif
}
#include "neon_terms.inl"
}  // namespace

extern const Kernels kDotprodKernels;
constexpr Kernels kDotprodKernels = make_kernels<Neon>("dotprod");

}  // namespace qd

#if defined(__clang__)
#pragma clang attribute pop
#endif
// GCC's options stay pushed to the end: templates are made there.
#endif
