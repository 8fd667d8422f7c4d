// The surface of the fitter: the best loops that run here.
#include "fit.h"

#include <cstdlib>
#include <cstring>

#include "loops.h"

namespace {

// QDEPLOY_FIT_ISA names others, for tests.
const qdf::Loops& chosen() {
  static const qdf::Loops& loops = []() -> const qdf::Loops& {
    const char* name = std::getenv("QDEPLOY_FIT_ISA");
    if (name != nullptr && std::strcmp(name, "plain") == 0) return qdf::kPlain;
#if defined(__x86_64__)
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
    if (avx512 && (name == nullptr || std::strcmp(name, "avx2") != 0)) return qdf::kAvx512;
    if (avx2) return qdf::kAvx2;
#endif
    return qdf::kPlain;
  }();
  return loops;
}

}  // namespace

size_t qdf_packed(uint32_t columns, uint32_t block, uint32_t from) { return chosen().packed(columns, block, from); }

void qdf_pack(uint32_t columns, uint32_t block, uint32_t at, uint32_t from, const float* matrix, float* packed) {
  chosen().pack(columns, block, at, from, matrix, packed);
}

int qdf_round(const qdf_rows* rows, uint32_t block, const float* factor, const float* const* packed,
              const int32_t* order) {
  return chosen().round(*rows, block, factor, packed, order);
}

int qdf_descend(const qdf_rows* rows, const float* moment, const float* const* packed, uint32_t sweeps, double* errors) {
  return chosen().descend(*rows, moment, packed, sweeps, errors);
}

int qdf_refit(const qdf_rows* rows, const float* const* packed, float ridge) {
  return chosen().refit(*rows, packed, ridge);
}

const char* qdf_isa(void) { return chosen().name; }
