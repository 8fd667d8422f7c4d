// Codes of 8 bits: [row block][columns / 4][64]. Byte 4 r + j: row r, column j.
QD_TERM(3, kBytes, Bytes)

#if defined(QD_TERM_RULES)
struct Bytes : GroupedTerm {
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 4) * 64; }
};

#elif defined(QD_TERM_KERNELS)
struct Bytes : IntegerCodes<Bytes> {
  static constexpr size_t kUnitBytes = 256;
  static bool small(const TermView&) { return false; }
  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
    const uint8_t* p = v.codes[0] + codes_at<Bytes>(v, rb, u);
    for (int f = 0; f < 4; f++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++) c[4 * f + j][r] = p[64 * f + 4 * r + j];
  }
};

template <class P>
struct Codes<P, Bytes> : PlainCodes<P, Bytes> {  // the codes lie as a tile does
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t, uint8_t*) {
    return v.codes[0] + codes_at<Bytes>(v, rb, u0);
  }
};

#if defined(QD_AVX2)
// Even and odd bytes as 16 bits, exactly, for any byte.
struct Split {
  __m256i even, odd;
  explicit Split(__m256i w) : even(_mm256_and_si256(w, _mm256_set1_epi16(255))), odd(_mm256_srli_epi16(w, 8)) {}
};

template <>
struct Codes<Avx2, Bytes> : PlainCodes<Avx2, Bytes> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t, uint8_t*) {
    return v.codes[0] + codes_at<Bytes>(v, rb, u0);
  }

  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t) {
    const uint8_t* p = v.codes[0] + codes_at<Bytes>(v, rb, u0);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (uint32_t steps = 4 * (u1 - u0); steps > 0; steps--, p += 64, q += 4) {
      __m256i x = four(q), even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), odd = _mm256_srai_epi16(x, 8);
      Split w(load256(p)), u(load256(p + 32));
      a = _mm256_add_epi32(a, _mm256_madd_epi16(w.even, even));
      b = _mm256_add_epi32(b, _mm256_madd_epi16(w.odd, odd));
      c = _mm256_add_epi32(c, _mm256_madd_epi16(u.even, even));
      d = _mm256_add_epi32(d, _mm256_madd_epi16(u.odd, odd));
    }
    return ints_of(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
  }
};

#elif defined(QD_AVX512VNNI)
template <>
struct Codes<Avx512Vnni, Bytes> : SteppedCodes<Bytes> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t, uint8_t*) {
    return v.codes[0] + codes_at<Bytes>(v, rb, u0);
  }
  template <class Even, class Odd>
  static void steps(const TermView&, uint32_t, uint32_t, const uint8_t* p, const uint8_t* end, Even even, Odd odd) {
    for (; p < end; p += 128) even(load512(p)), odd(load512(p + 64));
  }
};
#endif
#endif
