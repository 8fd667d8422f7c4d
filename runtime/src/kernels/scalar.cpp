// The kernels for any machine: the portable code with what the compiler takes for granted.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace qd {
namespace {
#include "lanes.inl"
#include "portable.inl"
#include "portable_tiles.inl"
#include "portable_vectors.inl"
#include "portable_integers.inl"
#include "portable_terms.inl"
#include "portable_attention.inl"
#include "table.inl"
}  // namespace

extern const Kernels kScalarKernels;
constexpr Kernels kScalarKernels = make_kernels<Portable>("scalar");

}  // namespace qd
