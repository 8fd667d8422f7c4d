// Which kernels this build has and this machine can run.
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "kernels.h"

namespace qd {

extern const Kernels kScalarKernels, kAvx2Kernels, kAvx512VnniKernels, kNeonKernels, kDotprodKernels;

#if defined(__x86_64__)
const Kernels* const kAllKernels[] = {&kAvx512VnniKernels, &kAvx2Kernels, &kScalarKernels, nullptr};
#elif defined(__aarch64__)
const Kernels* const kAllKernels[] = {&kDotprodKernels, &kNeonKernels, &kScalarKernels, nullptr};
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

#if defined(__aarch64__)
static bool has_dotprod() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}
#endif

#if defined(__x86_64__)
static bool has_avx512vnni() {
#ifdef QD_SIMDE
  return true;
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && has_f16c();
#endif
}
#endif

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  __builtin_cpu_init();  // asks xgetbv too: AVX counts only where the system keeps its registers
  if (&kernels == &kAvx512VnniKernels) return has_avx512vnni();
  if (&kernels == &kAvx2Kernels) return __builtin_cpu_supports("avx2") && has_f16c();
#elif defined(__aarch64__)
  if (&kernels == &kDotprodKernels) return has_dotprod();
#endif
  return &kernels == &kScalarKernels || kernels.name != nullptr;
}

const Kernels* select_kernels(const char* name) {
  for (const Kernels* const* k = kAllKernels; *k; k++)
    if ((name == nullptr || strcmp(name, (*k)->name) == 0) && runs_here(**k)) return *k;
  return nullptr;
}

}  // namespace qd
