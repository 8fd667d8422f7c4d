// x86 with AVX-512 (F, BW, VL) and VNNI: a register holds 16 rows by 4 columns of bytes, and vpdpbusd leaves the sum of
// a row in its lane. Bytes are the unsigned operand and activations the signed one; nothing saturates.
//
// QD_SIMDE compiles this with SIMDe's plain C++ in place of the instructions, so that it can be tested on any machine.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__x86_64__)
#ifdef QD_SIMDE
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#else
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of the undefined operands in GCC's own headers
#pragma GCC diagnostic ignored "-Wuninitialized"        // the same
#endif
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,f16c,prefer-vector-width=512")
#endif
#endif

namespace qd {
namespace {

#define QD_VECTOR_BYTES 64
#include "lanes.inl"

#define QD_OWN_HALVES  // these two in place of the portable ones
inline Lanes from_half16(const uint8_t* p) {
#ifdef QD_SIMDE  // has no conversion of 16
  float out[16];
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16))));
  return lanes_at(out);
#else
  __m512 whole = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  Lanes r;
  memcpy(&r, &whole, 64);
  return r;
#endif
}
inline void to_half16(const float* x, uint16_t* out) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(_mm256_loadu_ps(x), 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8), _mm256_cvtps_ph(_mm256_loadu_ps(x + 8), 0));
}

#include "portable.inl"
#include "portable_tiles.inl"
#include "portable_vectors.inl"
#include "portable_integers.inl"
#include "portable_terms.inl"
#include "portable_attention.inl"

inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }
inline void store512(void* p, __m512i x) { _mm512_storeu_si512(p, x); }
inline __m512i four(const int8_t* q) {
  int32_t v;
  memcpy(&v, q, 4);
  return _mm512_set1_epi32(v);
}
template <int kShift, int kMask>
inline __m512i field(__m512i x) {
  return _mm512_and_si512(kShift ? _mm512_srli_epi16(x, kShift) : x, _mm512_set1_epi8(static_cast<char>(kMask)));
}
inline Ints ints_of(__m512i x) {
  Ints r;
  memcpy(&r, &x, 64);
  return r;
}

// Two chains of sums, so that one need not wait for the other.
struct Sums {
  __m512i a, b;
  void clear() { a = b = _mm512_setzero_si512(); }
  void even(__m512i w, const int8_t* q) { a = _mm512_dpbusd_epi32(a, w, four(q)); }
  void odd(__m512i w, const int8_t* q) { b = _mm512_dpbusd_epi32(b, w, four(q)); }
  Ints ints() const { return ints_of(_mm512_add_epi32(a, b)); }
};

// ---- tables: which of them a row takes, as a mask of its four bytes
struct Tables {
  uint32_t count;
  __m512i entries[kTablesInRegisters];
  __mmask64 masks[kTablesInRegisters];

  template <uint32_t levels>
  void go(const TermView& v, uint32_t rb, uint32_t u) {
    count = v.term->tables ? v.term->tables : 1;
    const uint8_t* select = selects(v, rb, group_of(v, u));
    for (uint32_t t = 0; t < count; t++) {
      uint8_t biased[16];
      for (uint32_t i = 0; i < 16; i++) biased[i] = static_cast<uint8_t>(v.itable[t * levels + i % levels] + 128);
      entries[t] = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(biased)));
      masks[t] = ~uint64_t{0};
      if (select) masks[t] = mask(select, t);
    }
  }
  // Rows that select no table take the first.
  uint64_t mask(const uint8_t* select, uint32_t t) const {
    uint64_t m = 0;
    for (int r = 0; r < 16; r++)
      if ((select[r] < count ? select[r] : 0) == t) m |= uint64_t{15} << (4 * r);
    return m;
  }
  __m512i look_up(__m512i codes) const {
    if (count == 1) return _mm512_shuffle_epi8(entries[0], codes);
    __m512i r = _mm512_setzero_si512();
    for (uint32_t t = 0; t < count; t++) r = _mm512_mask_shuffle_epi8(r, masks[t], entries[t], codes);
    return r;
  }
};

// ---- lookups of planes, of 32 columns each. A lane of 16 bytes is 16 rows against the tables of four columns.
struct Rows {
  __m512i first, second;  // 16-bit sums of rows 0..7 and 8..15 of each lane
  void clear() { first = second = _mm512_setzero_si512(); }
  void twice() { first = _mm512_add_epi16(first, first), second = _mm512_add_epi16(second, second); }
  void unit(__m512i signs, const int8_t* t) {
    const __m512i one = _mm512_set1_epi8(1);
    __m512i low = field<0, 15>(signs), high = field<4, 15>(signs);  // named, since SIMDe's calls are macros
    __m512i a = _mm512_shuffle_epi8(load512(t), low), b = _mm512_shuffle_epi8(load512(t + 64), high);
    first = _mm512_add_epi16(first, _mm512_maddubs_epi16(one, _mm512_unpacklo_epi8(a, b)));
    second = _mm512_add_epi16(second, _mm512_maddubs_epi16(one, _mm512_unpackhi_epi8(a, b)));
  }
  // Halves of the register are added in 16 bits (twice 15240 at most), then widened.
  static __m256i fold(__m512i x) {
    __m256i s = _mm256_add_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(s)),
                            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(s, 1)));
  }
  Ints ints() const {
    Ints r;
    __m256i a = fold(first), b = fold(second);
    memcpy(&r, &a, 32);
    memcpy(reinterpret_cast<char*>(&r) + 32, &b, 32);
    return r;
  }
};

struct Avx512Vnni {
  template <int N>
  static void tile_sums(const uint8_t* t, uint32_t steps, bool, const int8_t* const* q, Ints* out) {
    Sums sum[N];
    for (int n = 0; n < N; n++) sum[n].clear();
    for (uint32_t s = 0; s < steps; s += 2) {  // a unit has four
      __m512i w = load512(t + 64 * s), u = load512(t + 64 * s + 64);
      for (int n = 0; n < N; n++) sum[n].even(w, q[n] + 4 * s), sum[n].odd(u, q[n] + 4 * s + 4);
    }
    for (int n = 0; n < N; n++) out[n] = sum[n].ints();
  }

  struct Pairs {
    __m512i x;
  };
  static Pairs pairs_at(const int16_t* p) { return {load512(p)}; }
  static Pairs pairs_at(const int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Ints add_pairs(const Ints& sum, const Pairs& x, int32_t pair) {
    __m512i s;
    memcpy(&s, &sum, 64);
    return ints_of(_mm512_dpwssd_epi32(s, x.x, _mm512_set1_epi32(pair)));
  }
};

// Codes that come in steps of 4 columns, as bytes: steps() gives each to `even` and `odd` in turn.
template <class T>
struct SteppedCodes {
  using Own = Codes<Avx512Vnni, T>;
  using Plain = PlainCodes<Avx512Vnni, T>;

  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<T>(v, u0, u1)) return Plain::tile(v, rb, u0, u1, out);
    uint8_t* to = out;
    auto put = [&](__m512i w) { store512(to, w), to += 64; };
    Own::steps(v, rb, u0, v.codes[0] + codes_at<T>(v, rb, u0), v.codes[0] + codes_at<T>(v, rb, u1), put, put);
    return out;
  }

  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    if (is_left_to_portable<T>(v, u0, u1)) return Plain::one(v, rb, u0, u1, q, total);
    Sums sum;
    sum.clear();
    auto even = [&](__m512i w) { sum.even(w, q), q += 4; };
    auto odd = [&](__m512i w) { sum.odd(w, q), q += 4; };
    Own::steps(v, rb, u0, v.codes[0] + codes_at<T>(v, rb, u0), v.codes[0] + codes_at<T>(v, rb, u1), even, odd);
    return T::kLevels > 0 ? sum.ints() - same_ints(128 * total) : sum.ints();
  }
};

#define QD_AVX512VNNI
#include "table.inl"

}  // namespace

extern const Kernels kAvx512VnniKernels;
constexpr Kernels kAvx512VnniKernels = make_kernels<Avx512Vnni>("avx512vnni");

}  // namespace qd

#if defined(__clang__) && !defined(QD_SIMDE)
#pragma clang attribute pop
#endif
// GCC's options stay pushed to the end: templates are made there.
#endif
