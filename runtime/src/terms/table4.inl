// Codes of 4 bits that index tables of 16 numbers; they lie as those of kNibbles. Which table a group takes stands at
// `select`, where there are several.
QD_TERM(5, kTable4, Table4)

#if defined(QD_TERM_RULES)
struct Table4 : TableTerm<16> {
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 8) * 64; }
};

#elif defined(QD_TERM_KERNELS)
struct Table4 : TableCodes<Table4, 16> {
  static constexpr size_t kUnitBytes = 128;
  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
    nibbles16(v.codes[0] + codes_at<Table4>(v, rb, u), c);
  }
};

#if defined(QD_AVX2)
template <>
struct Codes<Avx2, Table4> : PlainCodes<Avx2, Table4> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<Table4>(v, u0, u1)) return PlainCodes::tile(v, rb, u0, u1, out);
    const uint8_t *p = v.codes[0] + codes_at<Table4>(v, rb, u0), *end = v.codes[0] + codes_at<Table4>(v, rb, u1);
    Tables t;
    t.go<16>(v, rb, u0);
    for (Biased biased = {t, out}; p < end; p += 64) {
      __m256i w = load256(p), u = load256(p + 32);
      biased.put(low_nibbles(w), low_nibbles(u));
      biased.put(high_nibbles(w), high_nibbles(u));
    }
    return out;
  }

  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    if (is_left_to_portable<Table4>(v, u0, u1)) return PlainCodes::one(v, rb, u0, u1, q, total);
    const uint8_t* p = v.codes[0] + codes_at<Table4>(v, rb, u0);
    Tables t;
    t.go<16>(v, rb, u0);
    TableSums sum(t);
    for (uint32_t steps = 2 * (u1 - u0); steps > 0; steps--, p += 64, q += 8) {
      __m256i w = load256(p), u = load256(p + 32);
      sum.step(low_nibbles(w), low_nibbles(u), q);
      sum.step(high_nibbles(w), high_nibbles(u), q + 4);
    }
    return ints_of(sum.a, sum.b);
  }
};

#elif defined(QD_AVX512VNNI)
template <>
struct Codes<Avx512Vnni, Table4> : SteppedCodes<Table4> {
  template <class Even, class Odd>
  static void steps(const TermView& v, uint32_t rb, uint32_t u0, const uint8_t* p, const uint8_t* end, Even even,
                    Odd odd) {
    Tables t;
    t.go<16>(v, rb, u0);
    for (; p < end; p += 64) {
      __m512i w = load512(p);
      even(t.look_up(field<0, 15>(w))), odd(t.look_up(field<4, 15>(w)));
    }
  }
};

#elif defined(QD_NEON)
template <>
struct Codes<Neon, Table4> : PlainCodes<Neon, Table4> {
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    if (v.term->tables > 1) return PlainCodes::one(v, rb, u0, u1, q, total);
    const uint8_t* p = v.codes[0] + codes_at<Table4>(v, rb, u0);
    int8x16_t table = vld1q_s8(v.itable);
    Sums sum;
    sum.clear();
    for (uint32_t s = 2 * u0; s < 2 * u1; s++, p += 64, q += 8) {
      sum.step([&](int i) { return vqtbl1q_s8(table, masked(vld1q_u8(p + 16 * i), 15)); }, q);
      sum.step([&](int i) { return vqtbl1q_s8(table, vshrq_n_u8(vld1q_u8(p + 16 * i), 4)); }, q + 4);
    }
    return sum.ints();
  }
};
#endif
#endif
