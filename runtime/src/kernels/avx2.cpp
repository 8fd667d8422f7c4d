// x86 with AVX2 and F16C. The portable code is compiled for it as it is; the sums of integers and lookups are written
// out. FMA is left out of the target on purpose: a fused product would change the bits.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif

namespace qd {
namespace {

#define QD_OWN_LANES  // these three in place of the portable ones
inline void half16(const uint8_t* p, float* out) {
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16))));
}
inline void to_half16(const float* x, uint16_t* out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(_mm256_loadu_ps(x), 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm256_cvtps_ph(_mm256_loadu_ps(x + 8), 0));
}
inline void tile_product(const float (*w)[16], const float* x, float* out) {
  __m256 a = _mm256_loadu_ps(out), b = _mm256_loadu_ps(out + 8);
  for (int j = 0; j < 16; j++) {
    __m256 t = _mm256_broadcast_ss(x + j);
    a = _mm256_add_ps(a, _mm256_mul_ps(_mm256_loadu_ps(w[j]), t));
    b = _mm256_add_ps(b, _mm256_mul_ps(_mm256_loadu_ps(w[j] + 8), t));
  }
  _mm256_storeu_ps(out, a);
  _mm256_storeu_ps(out + 8, b);
}

#include "portable.inl"
#include "portable_tiles.inl"
#include "portable_vectors.inl"
#include "portable_terms.inl"

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i twice(const void* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
inline __m256i four(const int8_t* q) {
  int32_t v;
  memcpy(&v, q, 4);
  return _mm256_set1_epi32(v);
}
inline __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Codes of 8 rows (half h of a row block) by 4 columns, from column 4 s on: byte 4 r + j.
template <int K>
inline __m256i codes(const TermView& v, uint32_t rb, uint32_t s, int h) {
  size_t columns = v.columns;
  if constexpr (K == format::kBytes) {
    return load256(v.codes[0] + (rb * (columns / 4) + s) * 64 + 32 * h);
  } else if constexpr (K == format::kPairs) {
    __m256i b = load256(v.codes[0] + (rb * (columns / 16) + s / 4) * 64 + 32 * h);
    return _mm256_and_si256(_mm256_srl_epi16(b, _mm_cvtsi32_si128(static_cast<int>(2 * (s & 3)))),
                            _mm256_set1_epi8(3));
  } else if constexpr (K == format::kTable3) {
    const uint8_t* p = v.codes[0] + (rb * (columns / 32) + s / 8) * 192 + 32 * h;
    __m256i low = load256(p + 64 * (s / 4 & 1)), high = load256(p + 128);
    low = _mm256_srl_epi16(low, _mm_cvtsi32_si128(static_cast<int>(2 * (s & 3))));
    high = _mm256_srl_epi16(high, _mm_cvtsi32_si128(static_cast<int>(s & 7)));
    high = _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(1)), 2);
    return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(3)), high);
  } else {
    static_assert(K == format::kPlanes, "a kind of four columns a step");
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6,
                                            6, 6, 6, 7, 7, 7, 7);
    __m256i mask = _mm256_set1_epi32(static_cast<int>(s & 4 ? 0x80402010u : 0x08040201u));
    __m256i c = _mm256_setzero_si256();
    size_t at = (rb * (columns / 32) + s / 8) * 64 + 16 * (s & 3) + 8 * static_cast<size_t>(h);
    for (uint32_t plane = 0; plane < v.planes; plane++) {
      int64_t eight;
      memcpy(&eight, v.codes[plane] + at, 8);
      __m256i b = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi64x(eight), spread), mask);
      c = _mm256_sub_epi8(_mm256_add_epi8(c, c), _mm256_cmpeq_epi8(b, mask));
    }
    return c;
  }
}

// A pair of products of a nibble reaches 3810: 8 of them fit into 16 bits.
template <int N>
inline void nibble_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* const* q,
                        int32_t (*out)[16]) {
  const __m256i low = _mm256_set1_epi8(15);
  const uint8_t* p = v.codes[0] + static_cast<size_t>(rb) * (v.columns / 8) * 64;
  for (int h = 0; h < 2; h++) {
    __m256i wide[N];
    for (int n = 0; n < N; n++) wide[n] = _mm256_setzero_si256();
    for (uint32_t s = 2 * u0; s < 2 * u1;) {
      __m256i sum[N];
      for (int n = 0; n < N; n++) sum[n] = _mm256_setzero_si256();
      for (uint32_t end = min_u(s + 4, 2 * u1); s < end; s++) {
        __m256i b = load256(p + static_cast<size_t>(s) * 64 + 32 * h);
        __m256i lo = _mm256_and_si256(b, low), hi = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
        for (int n = 0; n < N; n++) {
          __m256i a = _mm256_maddubs_epi16(lo, four(q[n] + 8 * s)), c = _mm256_maddubs_epi16(hi, four(q[n] + 8 * s + 4));
          sum[n] = _mm256_add_epi16(sum[n], _mm256_add_epi16(a, c));
        }
      }
      for (int n = 0; n < N; n++) wide[n] = _mm256_add_epi32(wide[n], widen(sum[n]));
    }
    for (int n = 0; n < N; n++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[n] + 8 * h), wide[n]);
  }
}

// Codes of at most 15 directly, larger ones as two nibbles. A group has at most 32 steps.
template <int K, int N, bool kSmall>
inline void byte_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* const* q,
                      int32_t (*out)[16]) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int h = 0; h < 2; h++) {
    __m256i wide[N];
    for (int n = 0; n < N; n++) wide[n] = _mm256_setzero_si256();
    for (uint32_t s = 4 * u0; s < 4 * u1;) {
      __m256i sum[N], top[N];
      for (int n = 0; n < N; n++) sum[n] = top[n] = _mm256_setzero_si256();
      for (uint32_t end = min_u(s + 8, 4 * u1); s < end; s++) {
        __m256i b = codes<K>(v, rb, s, h), lo = b, hi = b;
        if (!kSmall) lo = _mm256_and_si256(b, low), hi = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
        for (int n = 0; n < N; n++) {
          __m256i x = four(q[n] + 4 * s);
          sum[n] = _mm256_add_epi16(sum[n], _mm256_maddubs_epi16(lo, x));
          if (!kSmall) top[n] = _mm256_add_epi16(top[n], _mm256_maddubs_epi16(hi, x));
        }
      }
      for (int n = 0; n < N; n++) {
        wide[n] = _mm256_add_epi32(wide[n], widen(sum[n]));
        if (!kSmall) wide[n] = _mm256_add_epi32(wide[n], _mm256_slli_epi32(widen(top[n]), 4));
      }
    }
    for (int n = 0; n < N; n++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[n] + 8 * h), wide[n]);
  }
}

// |w| x with the sign of w on x: a pair reaches 128 * 127 * 2 = 32512, which just fits, so every pair is widened.
template <int N>
inline void signed_step(__m256i w, const int8_t* const* q, uint32_t column, __m256i* wide) {
  __m256i a = _mm256_abs_epi8(w);
  for (int n = 0; n < N; n++) {
    __m256i x = _mm256_sign_epi8(four(q[n] + column), w);
    wide[n] = _mm256_add_epi32(wide[n], widen(_mm256_maddubs_epi16(a, x)));
  }
}

template <int K, int N>
inline void table_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* const* q,
                       int32_t (*out)[16]) {
  const __m256i low = _mm256_set1_epi8(15);
  int8_t entries[16];
  memcpy(entries, v.itable, K == format::kTable4 ? 16 : 8);
  if (K == format::kTable3) memcpy(entries + 8, v.itable, 8);
  __m256i table = twice(entries);
  for (int h = 0; h < 2; h++) {
    __m256i wide[N];
    for (int n = 0; n < N; n++) wide[n] = _mm256_setzero_si256();
    if constexpr (K == format::kTable4) {
      const uint8_t* p = v.codes[0] + static_cast<size_t>(rb) * (v.columns / 8) * 64 + 32 * h;
      for (uint32_t s = 2 * u0; s < 2 * u1; s++) {
        __m256i b = load256(p + static_cast<size_t>(s) * 64);
        signed_step<N>(_mm256_shuffle_epi8(table, _mm256_and_si256(b, low)), q, 8 * s, wide);
        b = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
        signed_step<N>(_mm256_shuffle_epi8(table, b), q, 8 * s + 4, wide);
      }
    } else {
      for (uint32_t s = 4 * u0; s < 4 * u1; s++)
        signed_step<N>(_mm256_shuffle_epi8(table, codes<K>(v, rb, s, h)), q, 4 * s, wide);
    }
    for (int n = 0; n < N; n++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[n] + 8 * h), wide[n]);
  }
}

// Bytes a and b of a row, summed; rows 0..7 and 8..15 of both halves of the registers.
inline void add_rows(__m256i a, __m256i b, __m256i* first, __m256i* second) {
  const __m256i one = _mm256_set1_epi8(1);
  *first = _mm256_add_epi16(*first, _mm256_maddubs_epi16(one, _mm256_unpacklo_epi8(a, b)));
  *second = _mm256_add_epi16(*second, _mm256_maddubs_epi16(one, _mm256_unpackhi_epi8(a, b)));
}

// The two halves of a register of 16-bit sums, added into 8 sums of 32 bits.
inline __m256i fold(__m256i x) {
  return _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)),
                          _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1)));
}

// Lookups of planes p0 .. p1, at most 4: in 128 columns a half register's sum reaches 16 * 127 * 15 = 30480.
inline void plane_sums(const TermView& v, size_t at, uint32_t units, const int8_t* tables, uint32_t p0, uint32_t p1,
                       __m256i* first, __m256i* second) {
  const __m256i low = _mm256_set1_epi8(15);
  *first = *second = _mm256_setzero_si256();
  for (uint32_t plane = p0; plane < p1; plane++) {
    const uint8_t* p = v.codes[plane] + at;
    *first = _mm256_add_epi16(*first, *first);
    *second = _mm256_add_epi16(*second, *second);
    for (uint32_t u = 0; u < units; u++) {
      const int8_t* t = tables + 128 * u;
      __m256i a = load256(p + 64 * u), b = load256(p + 64 * u + 32);
      add_rows(_mm256_shuffle_epi8(load256(t), _mm256_and_si256(a, low)),
               _mm256_shuffle_epi8(load256(t + 32), _mm256_and_si256(b, low)), first, second);
      a = _mm256_and_si256(_mm256_srli_epi16(a, 4), low);
      b = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
      add_rows(_mm256_shuffle_epi8(load256(t + 64), a), _mm256_shuffle_epi8(load256(t + 96), b), first, second);
    }
  }
}

struct Avx2 {
  template <int K, int N>
  static void sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* const* q,
                   int32_t (*out)[16]) {
    if constexpr (K == format::kNibbles) {
      nibble_sums<N>(v, rb, u0, u1, q, out);
    } else if constexpr (is_table(K)) {
      if (v.term->tables > 1)
        Portable::sums<K, N>(v, rb, u0, u1, q, out);
      else
        table_sums<K, N>(v, rb, u0, u1, q, out);
    } else if constexpr (K == format::kPairs) {
      byte_sums<K, N, true>(v, rb, u0, u1, q, out);
    } else {
      if (K == format::kPlanes && v.planes <= 4)
        byte_sums<K, N, true>(v, rb, u0, u1, q, out);
      else
        byte_sums<K, N, false>(v, rb, u0, u1, q, out);
    }
  }

  static void lookups(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, int32_t* out) {
    if ((u0 | u1) & 1) {  // half a unit of planes
      Portable::lookups(v, rb, u0, u1, tables, out);
      return;
    }
    size_t at = (static_cast<size_t>(rb) * (v.columns / 32) + u0 / 2) * 64;
    uint32_t units = (u1 - u0) / 2, head = min_u(v.planes, 4);
    __m256i first, second;
    plane_sums(v, at, units, tables + u0 * 64, 0, head, &first, &second);
    __m256i a = fold(first), b = fold(second);
    if (v.planes > head) {
      plane_sums(v, at, units, tables + u0 * 64, head, v.planes, &first, &second);
      __m128i more = _mm_cvtsi32_si128(static_cast<int>(v.planes - head));
      a = _mm256_add_epi32(_mm256_sll_epi32(a, more), fold(first));
      b = _mm256_add_epi32(_mm256_sll_epi32(b, more), fold(second));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 8), b);
  }

  // Four ranks at a time, in 16 bits: a tile has 128 lookups, 64 of them in each half of a register.
  static void signs(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, int32_t (*out)[16]) {
    const __m256i low = _mm256_set1_epi8(15);
    for (uint32_t k = 0; k < rank; k += 4) {
      __m256i first[4], second[4];
      for (int i = 0; i < 4; i++) first[i] = second[i] = _mm256_setzero_si256();
      for (uint32_t u = 0; u < units; u++) {
        __m256i a = load256(p + 64 * u), b = load256(p + 64 * u + 32);
        __m256i a1 = _mm256_and_si256(_mm256_srli_epi16(a, 4), low), b1 = _mm256_and_si256(_mm256_srli_epi16(b, 4), low);
        a = _mm256_and_si256(a, low);
        b = _mm256_and_si256(b, low);
        const int8_t* t = tables + (static_cast<size_t>(u) * rank + k) * 128;
        for (int i = 0; i < 4; i++, t += 128) {
          add_rows(_mm256_shuffle_epi8(load256(t), a), _mm256_shuffle_epi8(load256(t + 32), b), &first[i], &second[i]);
          add_rows(_mm256_shuffle_epi8(load256(t + 64), a1), _mm256_shuffle_epi8(load256(t + 96), b1), &first[i],
                   &second[i]);
        }
      }
      for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[k + i]), fold(first[i]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[k + i] + 8), fold(second[i]));
      }
    }
  }
};

}  // namespace

extern const Kernels kAvx2Kernels;
constexpr Kernels kAvx2Kernels = make_kernels<Avx2>("avx2");

}  // namespace qd

#if defined(__clang__)
#pragma clang attribute pop
#endif
// GCC's options stay pushed to the end: templates are made there.
#endif
