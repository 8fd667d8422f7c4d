// Codes of 1 to 8 bits, bit by bit: one block per plane, most significant first, each [row block][columns / 32][64]. Byte
// 16 q + r: row r; bit i of the low nibble is column 4 q + i, of the high nibble column 16 + 4 q + i.
//
// With p of P planes resident a code reads as the middle of what is left: with s_i = +-1,
//   code = (2^(P-p) * sum_{i<p} 2^(p-1-i) s_i + 2^P - 1) / 2
//
// One token looks sums of four activations up in tables; several share the codes as bytes.
QD_TERM(4, kPlanes, Planes)

#if defined(QD_TERM_RULES)
struct Planes : GroupedTerm {
  static constexpr bool kInPlanes = true;
  static Checked code_bytes(const TermShape& s) { return Checked(s.row_blocks) * (s.columns / 32) * 64; }
};

#elif defined(QD_TERM_KERNELS)
// out[row] = sum over the planes p0 <= i < p1, at most kPlanesAtOnce, of 2^(p1-1-i) times the entries that the plane's
// nibbles look up in the tables of all columns. Only this plain one takes half of 32 columns.
template <class P>
struct PlaneSums {
  static Ints sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                   uint32_t p1);
};

// out[row] = sum over the resident planes i of 2^(p-1-i) times what they look up.
template <class P>
inline Ints lookups(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables) {
  uint32_t head = min_u(v.planes, kPlanesAtOnce);
  Ints sum = PlaneSums<P>::sums(v, rb, u0, u1, tables, 0, head);
  if (v.planes == head) return sum;
  return (sum << (v.planes - head)) + PlaneSums<P>::sums(v, rb, u0, u1, tables, head, v.planes);
}

struct Planes : IntegerCodes<Planes> {
  static constexpr size_t kUnitBytes = 32;
  static constexpr bool kOf32 = true;
  static bool small(const TermView& v) { return v.planes <= 4; }
  // code = step u + (step - 1) / 2 with u the resident bits as a number; the constant goes into the zero.
  static float step(const TermView& v) { return static_cast<float>(1u << (v.term->planes - v.planes)); }

  static void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {  // of the resident bits
    memset(c, 0, 512);
    int shift = 4 * (u & 1);
    for (uint32_t plane = 0; plane < v.planes; plane++) {
      const uint8_t* p = v.codes[plane] + codes_at<Planes>(v, rb, u);
      for (int q = 0; q < 4; q++)
        for (int i = 0; i < 4; i++)
          for (int r = 0; r < 16; r++)
            c[4 * q + i][r] = static_cast<int16_t>(2 * c[4 * q + i][r] + ((p[16 * q + r] >> (shift + i)) & 1));
    }
  }

  template <class P>
  static void one_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t, uint32_t rb0,
                          uint32_t rb1) {
    float half_step = 0.5f * step(v);
    Lanes middle = all(0.5f * static_cast<float>((1u << v.term->planes) - 1u));
    bool offset = v.term->offset.kind != format::kNo;
    for (uint32_t rb = rb0; rb < rb1; rb++) {
      GroupOf g = {};
      Lanes acc = lanes_at(y + 16 * rb);
      for (uint32_t ag = 0; ag < a.groups; ag++) {
        g.template go<Planes>(v, a, rb, ag);
        bool half = is_left_to_portable<Planes>(v, g.u0, g.u1);
        Ints sum = half ? lookups<Portable>(v, rb, g.u0, g.u1, a.tables) : lookups<P>(v, rb, g.u0, g.u1, a.tables);
        float fsum = a.fsum[ag];
        Lanes t = (as_floats(sum) * (a.table_scale[ag] * half_step) + (middle - g.p.zero) * fsum) * g.p.scale;
        acc = acc + (offset ? t + g.p.offset * fsum : t);
      }
      store(acc, y + 16 * rb);
    }
  }

  template <class P>
  static constexpr Kind kernels() {
    Kind k = integer_kernels<P, Planes>();
    k.one = one_product<P>;
    k.one_need = Need::kTables;
    return k;
  }
};

template <class P>
inline Ints PlaneSums<P>::sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables,
                               uint32_t p0, uint32_t p1) {
  int32_t out[16] = {};
  for (uint32_t plane = p0; plane < p1; plane++) {
    const uint8_t* p = v.codes[plane] + codes_at<Planes>(v, rb, 0);
    for (int r = 0; r < 16; r++) out[r] += out[r];
    for (uint32_t u = u0; u < u1; u++)
      for (int q = 0; q < 4; q++)
        for (int r = 0; r < 16; r++)
          out[r] += tables[u * 64 + 16 * q + ((p[u / 2 * 64 + 16 * q + r] >> (4 * (u & 1))) & 15)];
  }
  return ints_at(out);
}

#if defined(QD_AVX2)
template <>
struct Codes<Avx2, Planes> : PlainCodes<Avx2, Planes> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<Planes>(v, u0, u1)) return PlainCodes::tile(v, rb, u0, u1, out);
    size_t at = codes_at<Planes>(v, rb, u0);
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
    return out;
  }
};

template <>
struct PlaneSums<Avx2> {
  // In 128 columns of 4 planes the sum of half a register reaches 16 * 127 * 15 = 30480.
  static Ints sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                   uint32_t p1) {
    size_t at = codes_at<Planes>(v, rb, u0);
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
};

#elif defined(QD_AVX512VNNI)
template <>
struct Codes<Avx512Vnni, Planes> : PlainCodes<Avx512Vnni, Planes> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<Planes>(v, u0, u1)) return PlainCodes::tile(v, rb, u0, u1, out);
    size_t at = codes_at<Planes>(v, rb, u0);
    uint32_t steps = 4 * (u1 - u0);
    const __m512i rows = _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                                          0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                                          0x03030303, 0x02020202, 0x01010101, 0);
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
    return out;
  }
};

template <>
struct PlaneSums<Avx512Vnni> {
  // In 128 columns of 4 planes a lane's sum reaches 8 * 127 * 15 = 15240.
  static Ints sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                   uint32_t p1) {
    size_t at = codes_at<Planes>(v, rb, u0);
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
};

#elif defined(QD_NEON)
// Rows 4 i .. 4 i + 3 of the 16 bytes of one quarter of a plane's unit, each four times: the bits of four columns.
inline uint8x16_t four_rows(const uint8_t* p, int i) {
  static const uint8_t rows[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  return vqtbl1q_u8(vld1q_u8(p), vaddq_u8(vld1q_u8(rows), vdupq_n_u8(static_cast<uint8_t>(4 * i))));
}

template <>
struct Codes<Neon, Planes> : PlainCodes<Neon, Planes> {
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if (is_left_to_portable<Planes>(v, u0, u1)) return PlainCodes::tile(v, rb, u0, u1, out);
    size_t at = codes_at<Planes>(v, rb, u0);
    uint32_t steps = 4 * (u1 - u0);
    for (uint32_t s = 0; s < steps; s++) {
      uint8x16_t bit = vreinterpretq_u8_u32(vdupq_n_u32(s & 4 ? 0x80402010u : 0x08040201u));
      for (int i = 0; i < 4; i++) {
        uint8x16_t c = vdupq_n_u8(0);
        for (uint32_t plane = 0; plane < v.planes; plane++)
          c = vsubq_u8(vaddq_u8(c, c), vtstq_u8(four_rows(v.codes[plane] + at + s / 8 * 64 + 16 * (s & 3), i), bit));
        vst1q_u8(out + 64 * s + 16 * i, c);
      }
    }
    return out;
  }
};

template <>
struct PlaneSums<Neon> {
  static Ints sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                   uint32_t p1) {
    size_t at = codes_at<Planes>(v, rb, u0);
    uint32_t units = (u1 - u0) / 2;
    tables += u0 * 64;
    Rows16 sum;
    sum.clear();
    for (uint32_t plane = p0; plane < p1; plane++) {
      sum.twice();
      for (uint32_t u = 0; u < units; u++) sum.unit(v.codes[plane] + at + 64 * u, tables + 128 * u);
    }
    return sum.ints();
  }
};
#endif
#endif
