// Which kernels this build has and this machine can run.
#include <string.h>

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

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks xgetbv too: AVX counts only where the system keeps its registers
  if (&kernels == &kAvx2Kernels) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#endif
  return &kernels == &kScalarKernels || kernels.name != nullptr;
}

const Kernels* select_kernels(const char* name) {
  for (const Kernels* const* k = kAllKernels; *k; k++)
    if ((name == nullptr || strcmp(name, (*k)->name) == 0) && runs_here(**k)) return *k;
  return nullptr;
}

}  // namespace qd
