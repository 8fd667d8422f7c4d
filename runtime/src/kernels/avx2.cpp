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

// ---- one token, straight from the codes
inline void nibble_step(const uint8_t* p, const int8_t* q, Sums& sum) {
  __m256i w = load256(p), u = load256(p + 32);
  sum.add_products(low_nibbles(w), low_nibbles(u), four(q));
  sum.add_products(high_nibbles(w), high_nibbles(u), four(q + 4));
}

inline Ints one_nibbles(const uint8_t* p, uint32_t steps, const int8_t* q) {
  Sums wide, sum;
  wide.clear();
  for (; steps >= 4; steps -= 4, p += 256, q += 32) {
    sum.clear();
    for (int i = 0; i < 4; i++) nibble_step(p + 64 * i, q + 8 * i, sum);
    wide.add_wide(sum);
  }
  sum.clear();
  for (; steps > 0; steps--, p += 64, q += 8) nibble_step(p, q, sum);
  wide.add_wide(sum);
  return wide.ints();
}

// Fields 0 and 2 of a byte are added as they are, 1 and 3 as they stand, times four; a unit of the latter makes 2 *
// 3048, so four units fit into 16 bits.
inline Ints one_pairs(const uint8_t* p, uint32_t units, const int8_t* q) {
  const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
  Sums wide, wide4;
  wide.clear(), wide4.clear();
  while (units > 0) {
    Sums sum, sum4;
    sum.clear(), sum4.clear();
    for (uint32_t n = min_u(units, 4); n > 0; n--, units--, p += 64, q += 16) {
      __m256i w = load256(p), u = load256(p + 32), w2 = _mm256_srli_epi16(w, 4), u2 = _mm256_srli_epi16(u, 4);
      sum.add_products(_mm256_and_si256(w, low), _mm256_and_si256(u, low), four(q));
      sum4.add_products(_mm256_and_si256(w, high), _mm256_and_si256(u, high), four(q + 4));
      sum.add_products(_mm256_and_si256(w2, low), _mm256_and_si256(u2, low), four(q + 8));
      sum4.add_products(_mm256_and_si256(w2, high), _mm256_and_si256(u2, high), four(q + 12));
    }
    wide.add_wide(sum), wide4.add_wide(sum4);
  }
  return ints_of(_mm256_add_epi32(wide.a, _mm256_srai_epi32(wide4.a, 2)),
                 _mm256_add_epi32(wide.b, _mm256_srai_epi32(wide4.b, 2)));
}

// Even and odd bytes as 16 bits, exactly, for any byte.
struct Split {
  __m256i even, odd;
  explicit Split(__m256i w) : even(_mm256_and_si256(w, _mm256_set1_epi16(255))), odd(_mm256_srli_epi16(w, 8)) {}
};

inline Ints one_bytes(const uint8_t* p, uint32_t steps, const int8_t* q) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (; steps > 0; steps--, p += 64, q += 4) {
    __m256i x = four(q), even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd = _mm256_srai_epi16(x, 8);
    Split w(load256(p)), u(load256(p + 32));
    a = _mm256_add_epi32(a, _mm256_madd_epi16(w.even, even));
    b = _mm256_add_epi32(b, _mm256_madd_epi16(w.odd, odd));
    c = _mm256_add_epi32(c, _mm256_madd_epi16(u.even, even));
    d = _mm256_add_epi32(d, _mm256_madd_epi16(u.odd, odd));
  }
  return ints_of(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
}

// ---- tables: which of them a row takes, as a mask of its four bytes in each half
inline __m256i spread_rows(int64_t eight) {
  const __m256i rows =
      _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), rows);
}

struct Tables {
  uint32_t count;
  __m256i entries[kTablesInRegisters], first[kTablesInRegisters], second[kTablesInRegisters];

  template <int K>
  void go(const TermView& v, uint32_t rb, uint32_t u) {
    constexpr uint32_t levels = K == format::kTable4 ? 16 : 8;
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

// Codes of the four columns f of a unit of 32 of kTable3 (f: 0 .. 7). Bit 3 may be set: the tables stand twice.
template <int F>
inline __m256i three_bits(const uint8_t* p) {
  __m256i low = load256(p + 64 * (F / 4)), high = load256(p + 128);
  high = F < 2 ? _mm256_slli_epi16(high, F < 2 ? 2 - F : 0) : _mm256_srli_epi16(high, F > 2 ? F - 2 : 0);
  return _mm256_or_si256(field<2 * (F % 4), 3>(low), _mm256_and_si256(high, _mm256_set1_epi8(4)));
}

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
  template <int F>
  void step3(const uint8_t* p, const int8_t* q) {
    step(three_bits<F>(p), three_bits<F>(p + 32), q + 4 * F);
  }
};

inline Ints one_table4(const Tables& t, const uint8_t* p, uint32_t steps, const int8_t* q) {
  TableSums sum(t);
  for (; steps > 0; steps--, p += 64, q += 8) {
    __m256i w = load256(p), u = load256(p + 32);
    sum.step(low_nibbles(w), low_nibbles(u), q);
    sum.step(high_nibbles(w), high_nibbles(u), q + 4);
  }
  return ints_of(sum.a, sum.b);
}

inline Ints one_table3(const Tables& t, const uint8_t* p, uint32_t units, const int8_t* q) {
  TableSums sum(t);
  for (; units > 0; units--, p += 192, q += 32) {
    sum.step3<0>(p, q), sum.step3<1>(p, q), sum.step3<2>(p, q), sum.step3<3>(p, q);
    sum.step3<4>(p, q), sum.step3<5>(p, q), sum.step3<6>(p, q), sum.step3<7>(p, q);
  }
  return ints_of(sum.a, sum.b);
}

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

// ---- codes as bytes
inline void plane_bytes(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
  size_t at = codes_at<format::kPlanes>(v, rb, u0);
  uint32_t steps = 4 * (u1 - u0);
  for (uint32_t s = 0; s < steps; s++) {
    __m256i bit = _mm256_set1_epi32(static_cast<int>(s & 4 ? 0x80402010u : 0x08040201u));
    for (size_t half = 0; half < 2; half++) {
      __m256i c = _mm256_setzero_si256();
      for (uint32_t plane = 0; plane < v.planes; plane++) {
        int64_t eight;
        memcpy(&eight, v.codes[plane] + at + s / 8 * 64 + 16 * (s & 3) + 8 * half, 8);
        __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread_rows(eight), bit), bit);
        c = _mm256_sub_epi8(_mm256_add_epi8(c, c), set);
      }
      store256(out + 64 * s + 32 * half, c);
    }
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
  template <int F>
  void put3(const uint8_t* p) {
    put(three_bits<F>(p), three_bits<F>(p + 32));
  }
};

struct Avx2 {
  template <int K>
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<K>(v, u0, u1)) return Portable::tile<K>(v, rb, u0, u1, out);
    if constexpr (K == format::kPlanes) {
      plane_bytes(v, rb, u0, u1, out);
      return out;
    }
    const uint8_t *p = v.codes[0] + codes_at<K>(v, rb, u0), *end = v.codes[0] + codes_at<K>(v, rb, u1);
    if constexpr (K == format::kBytes) return p;
    Tables t;
    if constexpr (is_table(K)) t.go<K>(v, rb, u0);
    Biased biased = {t, out};
    uint8_t* to = out;
    while (p < end) {
      if constexpr (K == format::kTable3) {
        biased.put3<0>(p), biased.put3<1>(p), biased.put3<2>(p), biased.put3<3>(p);
        biased.put3<4>(p), biased.put3<5>(p), biased.put3<6>(p), biased.put3<7>(p);
        p += 192;
        continue;
      }
      __m256i w = load256(p), u = load256(p + 32);
      p += 64;
      if constexpr (K == format::kTable4) {
        biased.put(low_nibbles(w), low_nibbles(u));
        biased.put(high_nibbles(w), high_nibbles(u));
      } else if constexpr (K == format::kNibbles) {
        store256(to, low_nibbles(w)), store256(to + 32, low_nibbles(u));
        store256(to + 64, high_nibbles(w)), store256(to + 96, high_nibbles(u));
        to += 128;
      } else if constexpr (K == format::kPairs) {
        store256(to, field<0, 3>(w)), store256(to + 32, field<0, 3>(u));
        store256(to + 64, field<2, 3>(w)), store256(to + 96, field<2, 3>(u));
        store256(to + 128, field<4, 3>(w)), store256(to + 160, field<4, 3>(u));
        store256(to + 192, field<6, 3>(w)), store256(to + 224, field<6, 3>(u));
        to += 256;
      }
    }
    return out;
  }

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

  template <int K>
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    if (K == format::kPlanes || is_left_to_portable<K>(v, u0, u1)) return Portable::one<K>(v, rb, u0, u1, q, total);
    const uint8_t* p = v.codes[0] + codes_at<K>(v, rb, u0);
    uint32_t units = u1 - u0;
    if constexpr (K == format::kNibbles) return one_nibbles(p, 2 * units, q);
    if constexpr (K == format::kPairs) return one_pairs(p, units, q);
    if constexpr (K == format::kBytes) return one_bytes(p, 4 * units, q);
    Tables t;
    if constexpr (is_table(K)) t.go<K>(v, rb, u0);
    return K == format::kTable4 ? one_table4(t, p, 2 * units, q) : one_table3(t, p, units / 2, q);
  }

  // In 128 columns of 4 planes the sum of half a register reaches 16 * 127 * 15 = 30480.
  static Ints plane_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                         uint32_t p1) {
    size_t at = codes_at<format::kPlanes>(v, rb, u0);
    uint32_t units = (u1 - u0) / 2;
    tables += u0 * 64;
    Sums sum;
    sum.clear();
    for (uint32_t plane = p0; plane < p1; plane++) {
      const uint8_t* p = v.codes[plane] + at;
      sum.add16(sum.a, sum.b);
      for (uint32_t u = 0; u < units; u++)
        look_up_unit(load256(p + 64 * u), load256(p + 64 * u + 32), tables + 128 * u, sum);
    }
    return ints_of(fold(sum.a), fold(sum.b));
  }

  // Four ranks at a time, in 16 bits: a tile has 128 lookups, 64 of them in each half of a register.
  static void signs(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k += 4) {
      Sums sum[4];
      for (int i = 0; i < 4; i++) sum[i].clear();
      for (uint32_t u = 0; u < units; u++) {
        __m256i a = load256(p + 64 * u), b = load256(p + 64 * u + 32);
        const int8_t* t = tables + (static_cast<size_t>(u) * rank + k) * 128;
        for (int i = 0; i < 4; i++) look_up_unit(a, b, t + 128 * i, sum[i]);
      }
      for (int i = 0; i < 4; i++) out[k + static_cast<uint32_t>(i)] = ints_of(fold(sum[i].a), fold(sum[i].b));
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
