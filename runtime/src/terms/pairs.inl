// Codes of 2 bits: [row block][columns / 16][64]. Byte 4 r + j: row r; bits 2f, 2f+1 are column 4 f + j.
QD_TERM(2, kPairs, Pairs)

#if defined(QD_TERM_RULES)
struct Pairs : GroupedTerm {
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 16) * 64; }
};

#elif defined(QD_TERM_KERNELS)
struct Pairs : IntegerCodes<Pairs> {
  static constexpr size_t kUnitBytes = 64;
  static bool small(const TermView&) { return true; }
  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
    const uint8_t* p = v.codes[0] + codes_at<Pairs>(v, rb, u);
    for (int f = 0; f < 4; f++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++) c[4 * f + j][r] = (p[4 * r + j] >> (2 * f)) & 3;
  }
};

#if defined(QD_AVX2)
template <>
struct Codes<Avx2, Pairs> : PlainCodes<Avx2, Pairs> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    const uint8_t *p = v.codes[0] + codes_at<Pairs>(v, rb, u0), *end = v.codes[0] + codes_at<Pairs>(v, rb, u1);
    for (uint8_t* to = out; p < end; p += 64, to += 256) {
      __m256i w = load256(p), u = load256(p + 32);
      store256(to, field<0, 3>(w)), store256(to + 32, field<0, 3>(u));
      store256(to + 64, field<2, 3>(w)), store256(to + 96, field<2, 3>(u));
      store256(to + 128, field<4, 3>(w)), store256(to + 160, field<4, 3>(u));
      store256(to + 192, field<6, 3>(w)), store256(to + 224, field<6, 3>(u));
    }
    return out;
  }

  // Fields 0 and 2 of a byte are added as they are, 1 and 3 as they stand, times four; a unit of the latter makes 2 *
  // 3048, so four units fit into 16 bits.
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t) {
    const __m256i low = _mm256_set1_epi8(3), high = _mm256_set1_epi8(12);
    const uint8_t* p = v.codes[0] + codes_at<Pairs>(v, rb, u0);
    Sums wide, wide4;
    wide.clear(), wide4.clear();
    for (uint32_t units = u1 - u0; units > 0;) {
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
};

#elif defined(QD_AVX512VNNI)
template <>
struct Codes<Avx512Vnni, Pairs> : SteppedCodes<Pairs> {
  template <class Even, class Odd>
  static void steps(const TermView&, uint32_t, uint32_t, const uint8_t* p, const uint8_t* end, Even even, Odd odd) {
    for (; p < end; p += 64) {
      __m512i w = load512(p);
      even(field<0, 3>(w)), odd(field<2, 3>(w)), even(field<4, 3>(w)), odd(field<6, 3>(w));
    }
  }
};

#elif defined(QD_NEON)
template <>
struct Codes<Neon, Pairs> : PlainCodes<Neon, Pairs> {
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t) {
    const uint8_t* p = v.codes[0] + codes_at<Pairs>(v, rb, u0);
    Sums sum;
    sum.clear();
    for (uint32_t u = u0; u < u1; u++, p += 64, q += 16) {
      sum.step([&](int i) { return signed_bytes(masked(vld1q_u8(p + 16 * i), 3)); }, q);
      sum.step([&](int i) { return signed_bytes(masked(vshrq_n_u8(vld1q_u8(p + 16 * i), 2), 3)); }, q + 4);
      sum.step([&](int i) { return signed_bytes(masked(vshrq_n_u8(vld1q_u8(p + 16 * i), 4), 3)); }, q + 8);
      sum.step([&](int i) { return signed_bytes(vshrq_n_u8(vld1q_u8(p + 16 * i), 6)); }, q + 12);
    }
    return sum.ints();
  }
};
#endif
#endif
