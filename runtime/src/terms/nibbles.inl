// Codes of 4 bits: [row block][columns / 8][64]. Byte 4 r + j: row r; low nibble column j, high nibble column 4 + j.
QD_TERM(1, kNibbles, Nibbles)

#if defined(QD_TERM_RULES)
struct Nibbles : GroupedTerm {
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 8) * 64; }
};

#elif defined(QD_TERM_KERNELS)
// Two steps of 4 columns by 16 rows, as the bytes of 16 columns at p say.
inline void nibbles16(const uint8_t* p, int16_t (*c)[16]) {
  for (int h = 0; h < 2; h++)
    for (int j = 0; j < 4; j++)
      for (int r = 0; r < 16; r++) {
        uint8_t b = p[64 * h + 4 * r + j];
        c[8 * h + j][r] = b & 15;
        c[8 * h + 4 + j][r] = b >> 4;
      }
}

struct Nibbles : IntegerCodes<Nibbles> {
  static constexpr size_t kUnitBytes = 128;
  static bool small(const TermView&) { return true; }
  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
    nibbles16(v.codes[0] + codes_at<Nibbles>(v, rb, u), c);
  }
};

#if defined(QD_AVX2)
inline void nibble_step(const uint8_t* p, const int8_t* q, Sums& sum) {
  __m256i w = load256(p), u = load256(p + 32);
  sum.add_products(low_nibbles(w), low_nibbles(u), four(q));
  sum.add_products(high_nibbles(w), high_nibbles(u), four(q + 4));
}

template <>
struct Codes<Avx2, Nibbles> : PlainCodes<Avx2, Nibbles> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    const uint8_t *p = v.codes[0] + codes_at<Nibbles>(v, rb, u0), *end = v.codes[0] + codes_at<Nibbles>(v, rb, u1);
    for (uint8_t* to = out; p < end; p += 64, to += 128) {
      __m256i w = load256(p), u = load256(p + 32);
      store256(to, low_nibbles(w)), store256(to + 32, low_nibbles(u));
      store256(to + 64, high_nibbles(w)), store256(to + 96, high_nibbles(u));
    }
    return out;
  }

  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t) {
    const uint8_t* p = v.codes[0] + codes_at<Nibbles>(v, rb, u0);
    uint32_t steps = 2 * (u1 - u0);
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
};

#elif defined(QD_AVX512VNNI)
template <>
struct Codes<Avx512Vnni, Nibbles> : SteppedCodes<Nibbles> {
  template <class Even, class Odd>
  static void steps(const TermView&, uint32_t, uint32_t, const uint8_t* p, const uint8_t* end, Even even, Odd odd) {
    for (; p < end; p += 64) {
      __m512i w = load512(p);
      even(field<0, 15>(w)), odd(field<4, 15>(w));
    }
  }
};

#elif defined(QD_NEON)
template <>
struct Codes<Neon, Nibbles> : PlainCodes<Neon, Nibbles> {
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t) {
    const uint8_t* p = v.codes[0] + codes_at<Nibbles>(v, rb, u0);
    Sums sum;
    sum.clear();
    for (uint32_t s = 2 * u0; s < 2 * u1; s++, p += 64, q += 8) {
      sum.step([&](int i) { return signed_bytes(masked(vld1q_u8(p + 16 * i), 15)); }, q);
      sum.step([&](int i) { return signed_bytes(vshrq_n_u8(vld1q_u8(p + 16 * i), 4)); }, q + 4);
    }
    return sum.ints();
  }
};
#endif
#endif
