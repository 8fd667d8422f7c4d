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
#endif
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,f16c")
#endif
#endif

namespace qd {
namespace {

#define QD_VECTOR_BYTES 64
#include "lanes.inl"

#define QD_OWN_HALVES  // these two in place of the portable ones
inline Lanes from_half16(const uint8_t* p) {
  float out[16];
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  _mm256_storeu_ps(out + 8, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16))));
  return lanes_at(out);
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

  template <int K>
  void go(const TermView& v, uint32_t rb, uint32_t u) {
    constexpr uint32_t levels = K == format::kTable4 ? 16 : 8;
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

// Codes of the four columns f of a unit of 32 of kTable3 (f: 0 .. 7). Bit 3 may be set: the tables stand twice.
template <int F>
inline __m512i three_bits(const uint8_t* p) {
  __m512i low = load512(p + 64 * (F / 4)), high = load512(p + 128);
  high = F < 2 ? _mm512_slli_epi16(high, F < 2 ? 2 - F : 0) : _mm512_srli_epi16(high, F > 2 ? F - 2 : 0);
  low = field<2 * (F % 4), 3>(low);
  return _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi8(4)));
}

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

inline void plane_bytes(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
  size_t at = codes_at<format::kPlanes>(v, rb, u0);
  uint32_t steps = 4 * (u1 - u0);
  const __m512i rows =
      _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a, 0x09090909, 0x08080808,
                       0x07070707, 0x06060606, 0x05050505, 0x04040404, 0x03030303, 0x02020202, 0x01010101, 0);
  for (uint32_t s = 0; s < steps; s++) {
    __m512i bit = _mm512_set1_epi32(static_cast<int>(s & 4 ? 0x80402010u : 0x08040201u)), c = _mm512_setzero_si512();
    for (uint32_t plane = 0; plane < v.planes; plane++) {
      const uint8_t* p = v.codes[plane] + at + s / 8 * 64 + 16 * (s & 3);
      __m512i b = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      __mmask64 set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(b, rows), bit);
      c = _mm512_add_epi8(c, c);
      c = _mm512_mask_add_epi8(c, set, c, _mm512_set1_epi8(1));
    }
    store512(out + 64 * s, c);
  }
}

struct Avx512Vnni {
  // Gives every step of 4 columns, as bytes, to `even` and `odd` in turn.
  template <int K, class Even, class Odd>
  static void each_step(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, Even even, Odd odd) {
    const uint8_t *p = v.codes[0] + codes_at<K>(v, rb, u0), *end = v.codes[0] + codes_at<K>(v, rb, u1);
    Tables t;
    if constexpr (is_table(K)) t.go<K>(v, rb, u0);
    while (p < end) {
      if constexpr (K == format::kTable3) {
        even(t.look_up(three_bits<0>(p))), odd(t.look_up(three_bits<1>(p)));
        even(t.look_up(three_bits<2>(p))), odd(t.look_up(three_bits<3>(p)));
        even(t.look_up(three_bits<4>(p))), odd(t.look_up(three_bits<5>(p)));
        even(t.look_up(three_bits<6>(p))), odd(t.look_up(three_bits<7>(p)));
        p += 192;
      } else if constexpr (K == format::kTable4) {
        __m512i w = load512(p);
        even(t.look_up(field<0, 15>(w))), odd(t.look_up(field<4, 15>(w)));
        p += 64;
      } else if constexpr (K == format::kNibbles) {
        __m512i w = load512(p);
        even(field<0, 15>(w)), odd(field<4, 15>(w));
        p += 64;
      } else if constexpr (K == format::kPairs) {
        __m512i w = load512(p);
        even(field<0, 3>(w)), odd(field<2, 3>(w)), even(field<4, 3>(w)), odd(field<6, 3>(w));
        p += 64;
      } else {
        even(load512(p)), odd(load512(p + 64));
        p += 128;
      }
    }
  }

  template <int K>
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<K>(v, u0, u1)) return Portable::tile<K>(v, rb, u0, u1, out);
    if constexpr (K == format::kBytes) {
      return v.codes[0] + codes_at<K>(v, rb, u0);
    } else if constexpr (K == format::kPlanes) {
      plane_bytes(v, rb, u0, u1, out);
    } else {
      uint8_t* to = out;
      auto put = [&](__m512i w) { store512(to, w), to += 64; };
      each_step<K>(v, rb, u0, u1, put, put);
    }
    return out;
  }

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

  template <int K>
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    if (K == format::kPlanes || is_left_to_portable<K>(v, u0, u1)) return Portable::one<K>(v, rb, u0, u1, q, total);
    Sums sum;
    sum.clear();
    auto even = [&](__m512i w) { sum.even(w, q), q += 4; };
    auto odd = [&](__m512i w) { sum.odd(w, q), q += 4; };
    each_step<K>(v, rb, u0, u1, even, odd);
    return is_table(K) ? sum.ints() - same_ints(128 * total) : sum.ints();
  }

  // In 128 columns of 4 planes a lane's sum reaches 8 * 127 * 15 = 15240.
  static Ints plane_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                         uint32_t p1) {
    size_t at = codes_at<format::kPlanes>(v, rb, u0);
    uint32_t units = (u1 - u0) / 2;
    tables += u0 * 64;
    Rows sum;
    sum.clear();
    for (uint32_t plane = p0; plane < p1; plane++) {
      sum.twice();
      for (uint32_t u = 0; u < units; u++) sum.unit(load512(v.codes[plane] + at + 64 * u), tables + 128 * u);
    }
    return sum.ints();
  }

  // Four ranks at a time; a tile has 128 lookups, 32 of them in each lane.
  static void signs(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k += 4) {
      Rows sum[4];
      for (int i = 0; i < 4; i++) sum[i].clear();
      for (uint32_t u = 0; u < units; u++) {
        __m512i signs = load512(p + 64 * u);
        const int8_t* t = tables + (static_cast<size_t>(u) * rank + k) * 128;
        for (int i = 0; i < 4; i++) sum[i].unit(signs, t + 128 * i);
      }
      for (int i = 0; i < 4; i++) out[k + static_cast<uint32_t>(i)] = sum[i].ints();
    }
  }
};

}  // namespace

extern const Kernels kAvx512VnniKernels;
constexpr Kernels kAvx512VnniKernels = make_kernels<Avx512Vnni>("avx512vnni");

}  // namespace qd

#if defined(__clang__) && !defined(QD_SIMDE)
#pragma clang attribute pop
#endif
// GCC's options stay pushed to the end: templates are made there.
#endif
