// Which kernels this build has and this machine can run.
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels.h"

namespace qd {

extern const Kernels kScalarKernels, kAvx2Kernels, kNeonKernels;

#if defined(__x86_64__)
const Kernels* const kAllKernels[] = {&kAvx2Kernels, &kScalarKernels, nullptr};
#elif defined(__aarch64__)
const Kernels* const kAllKernels[] = {&kNeonKernels, &kScalarKernels, nullptr};
#else
const Kernels* const kAllKernels[] = {&kScalarKernels, nullptr};
#endif

#if defined(__x86_64__)
// Half precision conversions; compilers do not all know the name for __builtin_cpu_supports.
static bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks xgetbv too: AVX counts only where the system keeps its registers
  if (&kernels == &kAvx2Kernels) return __builtin_cpu_supports("avx2") && has_f16c();
#endif
  return &kernels == &kScalarKernels || kernels.name != nullptr;
}

const Kernels* select_kernels(const char* name) {
  for (const Kernels* const* k = kAllKernels; *k; k++)
    if ((name == nullptr || strcmp(name, (*k)->name) == 0) && runs_here(**k)) return *k;
  return nullptr;
}

}  // namespace qd
