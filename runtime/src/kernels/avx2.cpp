// x86 with AVX2 and F16C. The portable code is compiled for it as it is; the sums of integers and lookups are written
// out. FMA is left out of the target on purpose: a fused product would change the bits.
//
// A register holds 8 rows by 4 columns of bytes, half a step of a row block. Products of bytes go through vpmaddubsw,
// whose sums of two saturate at 16 bits: a byte of at most 15 makes 3810 at most, so that 8 of them can be added before
// they are widened; larger bytes go as two nibbles.
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

#define QD_VECTOR_BYTES 32
#include "lanes.inl"

#define QD_OWN_HALVES  // these two in place of the portable ones
inline Lanes from_half16(const uint8_t* p) {
  Lanes r;
  r.p[0] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  r.p[1] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
  return r;
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

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store256(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline __m256i twice(const void* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}
inline __m256i four(const int8_t* q) {
  int32_t v;
  memcpy(&v, q, 4);
  return _mm256_set1_epi32(v);
}
inline __m256i widen(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
inline __m256i low_nibbles(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
template <int kShift, int kMask>
inline __m256i field(__m256i x) {
  return _mm256_and_si256(_mm256_srli_epi16(x, kShift), _mm256_set1_epi8(kMask));
}
inline Ints ints_of(__m256i first, __m256i second) {
  Ints r;
  r.p[0] = reinterpret_cast<IntPart>(first), r.p[1] = reinterpret_cast<IntPart>(second);
  return r;
}

// Sums of a row block: rows 0..7 and 8..15. GCC makes implicit constructors for the base target: zeros are put by hand.
struct Sums {
  __m256i a, b;
  void clear() { a = b = _mm256_setzero_si256(); }
  void add16(__m256i x, __m256i y) { a = _mm256_add_epi16(a, x), b = _mm256_add_epi16(b, y); }
  void add_products(__m256i w, __m256i u, __m256i x) { add16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(u, x)); }
  void add_wide(const Sums& s) { a = _mm256_add_epi32(a, widen(s.a)), b = _mm256_add_epi32(b, widen(s.b)); }
  Ints ints() const { return ints_of(a, b); }
};

// ---- tables: which of them a row takes, as a mask of its four bytes in each half
inline __m256i spread_rows(int64_t eight) {
  const __m256i rows =
      _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), rows);
}

struct Tables {
  uint32_t count;
  __m256i entries[kTablesInRegisters], first[kTablesInRegisters], second[kTablesInRegisters];

  template <uint32_t levels>
  void go(const TermView& v, uint32_t rb, uint32_t u) {
    count = v.term->tables ? v.term->tables : 1;
    const uint8_t* select = selects(v, rb, group_of(v, u));
    for (uint32_t t = 0; t < count; t++) {
      int8_t both[16];
      memcpy(both, v.itable + t * levels, levels);
      memcpy(both + 16 - levels, v.itable + t * levels, levels);
      entries[t] = twice(both);
      if (!select) continue;
      int64_t low, high;
      memcpy(&low, select, 8), memcpy(&high, select + 8, 8);
      first[t] = mask(spread_rows(low), t), second[t] = mask(spread_rows(high), t);
    }
  }
  // Rows that select no table take the first.
  __m256i mask(__m256i rows, uint32_t t) const {
    __m256i beyond = _mm256_cmpeq_epi8(_mm256_max_epu8(rows, _mm256_set1_epi8(static_cast<char>(count))), rows);
    return _mm256_cmpeq_epi8(_mm256_andnot_si256(beyond, rows), _mm256_set1_epi8(static_cast<char>(t)));
  }
  __m256i look_up(__m256i codes, const __m256i* masks) const {
    if (count == 1) return _mm256_shuffle_epi8(entries[0], codes);
    __m256i r = _mm256_setzero_si256();
    for (uint32_t t = 0; t < count; t++)
      r = _mm256_or_si256(r, _mm256_and_si256(_mm256_shuffle_epi8(entries[t], codes), masks[t]));
    return r;
  }
};

// |w| x with the sign of w on x: a pair reaches 128 * 127 * 2 = 32512, which just fits, so every pair is widened.
inline __m256i signed_products(__m256i w, __m256i x) {
  return widen(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
}

struct TableSums {
  const Tables& t;
  __m256i a, b;
  explicit TableSums(const Tables& tables) : t(tables) { a = b = _mm256_setzero_si256(); }
  void step(__m256i first, __m256i second, const int8_t* q) {
    __m256i x = four(q);
    a = _mm256_add_epi32(a, signed_products(t.look_up(first, t.first), x));
    b = _mm256_add_epi32(b, signed_products(t.look_up(second, t.second), x));
  }
};

// ---- lookups of planes. Bytes a and b of a row, summed; rows 0..7 and 8..15 of both halves of the registers.
inline void add_rows(__m256i a, __m256i b, Sums& sum) {
  const __m256i one = _mm256_set1_epi8(1);
  sum.add16(_mm256_maddubs_epi16(one, _mm256_unpacklo_epi8(a, b)),
            _mm256_maddubs_epi16(one, _mm256_unpackhi_epi8(a, b)));
}

// Unit of 32 columns of signs against its 8 tables.
inline void look_up_unit(__m256i a, __m256i b, const int8_t* t, Sums& sum) {
  add_rows(_mm256_shuffle_epi8(load256(t), low_nibbles(a)), _mm256_shuffle_epi8(load256(t + 32), low_nibbles(b)), sum);
  add_rows(_mm256_shuffle_epi8(load256(t + 64), high_nibbles(a)), _mm256_shuffle_epi8(load256(t + 96), high_nibbles(b)),
           sum);
}

// The two halves of a register of 16-bit sums, added into 8 sums of 32 bits.
inline __m256i fold(__m256i x) {
  return _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(x)),
                          _mm256_cvtepi16_epi32(_mm256_extracti128_si256(x, 1)));
}

// ---- several tokens, from bytes
template <int N, bool kHigh>
inline void nibble_products(const uint8_t* t, uint32_t steps, const int8_t* const* q, uint32_t at, Sums* wide) {
  Sums sum[N];
  for (int n = 0; n < N; n++) sum[n].clear();
  for (uint32_t s = 0; s < steps; s++, t += 64, at += 4) {
    __m256i w = load256(t), u = load256(t + 32);
    w = kHigh ? high_nibbles(w) : low_nibbles(w);
    u = kHigh ? high_nibbles(u) : low_nibbles(u);
    for (int n = 0; n < N; n++) sum[n].add_products(w, u, four(q[n] + at));
  }
  for (int n = 0; n < N; n++) {
    __m256i a = widen(sum[n].a), b = widen(sum[n].b);
    if (kHigh) a = _mm256_slli_epi32(a, 4), b = _mm256_slli_epi32(b, 4);
    wide[n].a = _mm256_add_epi32(wide[n].a, a), wide[n].b = _mm256_add_epi32(wide[n].b, b);
  }
}

struct Biased {  // what a table says, + 128
  const Tables& t;
  uint8_t* out;
  void put(__m256i first, __m256i second) {
    const __m256i top = _mm256_set1_epi8(static_cast<char>(0x80));
    store256(out, _mm256_xor_si256(t.look_up(first, t.first), top));
    store256(out + 32, _mm256_xor_si256(t.look_up(second, t.second), top));
    out += 64;
  }
};

struct Avx2 {
  template <int N>
  static void tile_sums(const uint8_t* t, uint32_t steps, bool small, const int8_t* const* q, Ints* out) {
    Sums wide[N];
    for (int n = 0; n < N; n++) wide[n].clear();
    for (uint32_t s = 0; s < steps; s += 8) {
      uint32_t n = min_u(8, steps - s);
      nibble_products<N, false>(t + 64 * s, n, q, 4 * s, wide);
      if (!small) nibble_products<N, true>(t + 64 * s, n, q, 4 * s, wide);
    }
    for (int n = 0; n < N; n++) out[n] = wide[n].ints();
  }

  struct Pairs {
    __m256i a, b;
  };
  static Pairs pairs_at(const int16_t* p) { return {load256(p), load256(p + 16)}; }
  static Pairs pairs_at(const int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
  }
  static Ints add_pairs(const Ints& sum, const Pairs& x, int32_t pair) {
    __m256i y = _mm256_set1_epi32(pair);
    return sum + ints_of(_mm256_madd_epi16(x.a, y), _mm256_madd_epi16(x.b, y));
  }
};

#define QD_AVX2
#include "table.inl"

}  // namespace

extern const Kernels kAvx2Kernels;
constexpr Kernels kAvx2Kernels = make_kernels<Avx2>("avx2");

}  // namespace qd

#if defined(__clang__)
#pragma clang attribute pop
#endif
// GCC's options stay pushed to the end: templates are made there.
#endif
