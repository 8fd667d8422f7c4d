// The loops of one instruction set, which fit.cpp chooses from when it runs.
#pragma once
#include <cstddef>
#include <cstdint>

#include "fit.h"

namespace qdf {

struct Loops {
  const char* name;
  size_t (*packed)(uint32_t columns, uint32_t block, uint32_t from);
  void (*pack)(uint32_t columns, uint32_t block, uint32_t at, uint32_t from, const float* matrix, float* packed);
  int (*round)(const qdf_rows&, uint32_t block, const float* factor, const float* const* packed, const int32_t* order);
  int (*descend)(const qdf_rows&, const float* moment, const float* const* packed, uint32_t sweeps, double* errors);
  int (*refit)(const qdf_rows&, const float* const* packed, float ridge);
};

extern const Loops& kPlain;
#if defined(__x86_64__)
extern const Loops& kAvx2;
extern const Loops& kAvx512;
#endif

}  // namespace qdf
