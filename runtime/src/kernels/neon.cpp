// AArch64: NEON is its baseline, and the compiler makes it of the portable loops over 16 lanes.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__aarch64__)
namespace qd {
namespace {
#include "portable.inl"
#include "portable_tiles.inl"
#include "portable_vectors.inl"
#include "portable_terms.inl"
}  // namespace

extern const Kernels kNeonKernels;
constexpr Kernels kNeonKernels = make_kernels<Portable>("neon");

}  // namespace qd
#endif
