// Codes of 3 bits that index tables of 8 numbers: [row block][columns / 32][192]. Two units of kPairs (the low two bits of
// columns 0..15, 16..31), then a unit whose byte 4 r + j holds in bit f the top bit of column 4 f + j.
QD_TERM(6, kTable3, Table3)

#if defined(QD_TERM_RULES)
struct Table3 : TableTerm<8> {
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 32) * 192; }
};

#elif defined(QD_TERM_KERNELS)
struct Table3 : TableCodes<Table3, 8> {
  static constexpr size_t kUnitBytes = 96;
  static constexpr bool kOf32 = true;
  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
    const uint8_t* p = v.codes[0] + codes_at<Table3>(v, rb, u);
    const uint8_t *low = p + 64 * (u & 1), *high = p + 128;
    int top = 4 * (u & 1);
    for (int f = 0; f < 4; f++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++)
          c[4 * f + j][r] =
              static_cast<int16_t>(((low[4 * r + j] >> (2 * f)) & 3) | ((high[4 * r + j] >> (top + f)) & 1) << 2);
  }
};

#if defined(QD_AVX2)
// Codes of the four columns f of a unit of 32 (f: 0 .. 7). Bit 3 may be set: the tables stand twice.
template <int F>
inline __m256i three_bits(const uint8_t* p) {
  __m256i low = load256(p + 64 * (F / 4)), high = load256(p + 128);
  high = F < 2 ? _mm256_slli_epi16(high, F < 2 ? 2 - F : 0) : _mm256_srli_epi16(high, F > 2 ? F - 2 : 0);
  return _mm256_or_si256(field<2 * (F % 4), 3>(low), _mm256_and_si256(high, _mm256_set1_epi8(4)));
}

template <>
struct Codes<Avx2, Table3> : PlainCodes<Avx2, Table3> {
  template <int F>
  static void put(Biased& biased, const uint8_t* p) {
    biased.put(three_bits<F>(p), three_bits<F>(p + 32));
  }
  template <int F>
  static void step(TableSums& sum, const uint8_t* p, const int8_t* q) {
    sum.step(three_bits<F>(p), three_bits<F>(p + 32), q + 4 * F);
  }

  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<Table3>(v, u0, u1)) return PlainCodes::tile(v, rb, u0, u1, out);
    const uint8_t *p = v.codes[0] + codes_at<Table3>(v, rb, u0), *end = v.codes[0] + codes_at<Table3>(v, rb, u1);
    Tables t;
    t.go<8>(v, rb, u0);
    for (Biased biased = {t, out}; p < end; p += 192) {
      put<0>(biased, p), put<1>(biased, p), put<2>(biased, p), put<3>(biased, p);
      put<4>(biased, p), put<5>(biased, p), put<6>(biased, p), put<7>(biased, p);
    }
    return out;
  }

  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    if (is_left_to_portable<Table3>(v, u0, u1)) return PlainCodes::one(v, rb, u0, u1, q, total);
    const uint8_t* p = v.codes[0] + codes_at<Table3>(v, rb, u0);
    Tables t;
    t.go<8>(v, rb, u0);
    TableSums sum(t);
    for (uint32_t units = (u1 - u0) / 2; units > 0; units--, p += 192, q += 32) {
      step<0>(sum, p, q), step<1>(sum, p, q), step<2>(sum, p, q), step<3>(sum, p, q);
      step<4>(sum, p, q), step<5>(sum, p, q), step<6>(sum, p, q), step<7>(sum, p, q);
    }
    return ints_of(sum.a, sum.b);
  }
};

#elif defined(QD_AVX512VNNI)
// Codes of the four columns f of a unit of 32 (f: 0 .. 7). Bit 3 may be set: the tables stand twice.
template <int F>
inline __m512i three_bits(const uint8_t* p) {
  __m512i low = load512(p + 64 * (F / 4)), high = load512(p + 128);
  high = F < 2 ? _mm512_slli_epi16(high, F < 2 ? 2 - F : 0) : _mm512_srli_epi16(high, F > 2 ? F - 2 : 0);
  low = field<2 * (F % 4), 3>(low);
  return _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi8(4)));
}

template <>
struct Codes<Avx512Vnni, Table3> : SteppedCodes<Table3> {
  template <class Even, class Odd>
  static void steps(const TermView& v, uint32_t rb, uint32_t u0, const uint8_t* p, const uint8_t* end, Even even,
                    Odd odd) {
    Tables t;
    t.go<8>(v, rb, u0);
    for (; p < end; p += 192) {
      even(t.look_up(three_bits<0>(p))), odd(t.look_up(three_bits<1>(p)));
      even(t.look_up(three_bits<2>(p))), odd(t.look_up(three_bits<3>(p)));
      even(t.look_up(three_bits<4>(p))), odd(t.look_up(three_bits<5>(p)));
      even(t.look_up(three_bits<6>(p))), odd(t.look_up(three_bits<7>(p)));
    }
  }
};
#endif
#endif
