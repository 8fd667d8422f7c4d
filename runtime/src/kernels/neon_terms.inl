// Sums of integers and lookups in NEON, made of the including file's
//   int32x4_t dot4(int32x4_t sum, int8x16_t w, int8x16_t x): rows 0 .. 3 by 4 columns, exact for any int8 w and |x| <=
//   127.
// A vector holds 4 rows by 4 columns; four of them are the 64 bytes of a step.

struct Sums {
  int32x4_t p[4];
  void clear() {
    for (int i = 0; i < 4; i++) p[i] = vdupq_n_s32(0);
  }
  template <class Row>
  void step(Row row, const int8_t* q) {  // row(i): the bytes of rows 4 i .. 4 i + 3
    int8x16_t x = four(q);
    for (int i = 0; i < 4; i++) p[i] = dot4(p[i], row(i), x);
  }
  Ints ints() const {
    Ints r;
    for (int i = 0; i < 4; i++) r.p[i] = reinterpret_cast<IntPart>(p[i]);
    return r;
  }
};

inline int8x16_t signed_bytes(uint8x16_t x) { return vreinterpretq_s8_u8(x); }
inline uint8x16_t masked(uint8x16_t x, uint8_t mask) { return vandq_u8(x, vdupq_n_u8(mask)); }

inline int32_t sum_of(const int8_t* q, uint32_t n) {
  int32_t total = 0;
  for (uint32_t i = 0; i < n; i++) total += q[i];
  return total;
}

// Two halves of 16-bit sums over rows 0..15: the even and the odd of the four column groups, so that each stays within
// 16 * 127 * 15 for 128 columns of 4 planes.
struct Rows16 {
  int16x8_t low[2], high[2];
  void clear() {
    for (int h = 0; h < 2; h++) low[h] = high[h] = vdupq_n_s16(0);
  }
  void twice() {
    for (int h = 0; h < 2; h++) low[h] = vaddq_s16(low[h], low[h]), high[h] = vaddq_s16(high[h], high[h]);
  }
  void unit(const uint8_t* p, const int8_t* t) {
    for (int q = 0; q < 4; q++) {
      uint8x16_t b = vld1q_u8(p + 16 * q);
      add(vqtbl1q_s8(vld1q_s8(t + 16 * q), masked(b, 15)), q & 1);
      add(vqtbl1q_s8(vld1q_s8(t + 64 + 16 * q), vshrq_n_u8(b, 4)), q & 1);
    }
  }
  void add(int8x16_t x, int h) { low[h] = vaddw_s8(low[h], vget_low_s8(x)), high[h] = vaddw_high_s8(high[h], x); }
  Ints ints() const {
    Sums s;
    s.p[0] = vaddl_s16(vget_low_s16(low[0]), vget_low_s16(low[1])), s.p[1] = vaddl_high_s16(low[0], low[1]);
    s.p[2] = vaddl_s16(vget_low_s16(high[0]), vget_low_s16(high[1])), s.p[3] = vaddl_high_s16(high[0], high[1]);
    return s.ints();
  }
};

// Rows 4 i .. 4 i + 3 of the 16 bytes of one quarter of a plane's unit, each four times: the bits of four columns.
inline uint8x16_t four_rows(const uint8_t* p, int i) {
  static const uint8_t rows[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  return vqtbl1q_u8(vld1q_u8(p), vaddq_u8(vld1q_u8(rows), vdupq_n_u8(static_cast<uint8_t>(4 * i))));
}

inline void plane_bytes(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
  size_t at = codes_at<format::kPlanes>(v, rb, u0);
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
}

struct Neon {
  template <int K>
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    if constexpr (K == format::kBytes) return v.codes[0] + codes_at<K>(v, rb, u0);
    if (K != format::kPlanes || ((u0 | u1) & 1)) return Portable::tile<K>(v, rb, u0, u1, out);
    plane_bytes(v, rb, u0, u1, out);
    return out;
  }

  // Bytes above 127 as themselves less 128, put right at the end.
  template <int N>
  static void tile_sums(const uint8_t* t, uint32_t steps, bool small, const int8_t* const* q, Ints* out) {
    Sums sum[N];
    for (int n = 0; n < N; n++) sum[n].clear();
    uint8x16_t flip = vdupq_n_u8(small ? 0 : 128);
    for (uint32_t s = 0; s < steps; s++)
      for (int n = 0; n < N; n++)
        sum[n].step([&](int i) { return signed_bytes(veorq_u8(vld1q_u8(t + 64 * s + 16 * i), flip)); }, q[n] + 4 * s);
    for (int n = 0; n < N; n++)
      out[n] = small ? sum[n].ints() : sum[n].ints() + same_ints(128 * sum_of(q[n], 4 * steps));
  }

  template <int K>
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    Sums sum;
    sum.clear();
    if constexpr (K == format::kNibbles || K == format::kTable4) {
      if (K == format::kTable4 && v.term->tables > 1) return Portable::one<K>(v, rb, u0, u1, q, total);
      const uint8_t* p = v.codes[0] + codes_at<K>(v, rb, u0);
      int8x16_t table = K == format::kTable4 ? vld1q_s8(v.itable) : vdupq_n_s8(0);
      auto meaning = [&](uint8x16_t c) { return K == format::kTable4 ? vqtbl1q_s8(table, c) : signed_bytes(c); };
      for (uint32_t s = 2 * u0; s < 2 * u1; s++, p += 64, q += 8) {
        sum.step([&](int i) { return meaning(masked(vld1q_u8(p + 16 * i), 15)); }, q);
        sum.step([&](int i) { return meaning(vshrq_n_u8(vld1q_u8(p + 16 * i), 4)); }, q + 4);
      }
      return sum.ints();
    } else if constexpr (K == format::kPairs) {
      const uint8_t* p = v.codes[0] + codes_at<K>(v, rb, u0);
      for (uint32_t u = u0; u < u1; u++, p += 64, q += 16) {
        sum.step([&](int i) { return signed_bytes(masked(vld1q_u8(p + 16 * i), 3)); }, q);
        sum.step([&](int i) { return signed_bytes(masked(vshrq_n_u8(vld1q_u8(p + 16 * i), 2), 3)); }, q + 4);
        sum.step([&](int i) { return signed_bytes(masked(vshrq_n_u8(vld1q_u8(p + 16 * i), 4), 3)); }, q + 8);
        sum.step([&](int i) { return signed_bytes(vshrq_n_u8(vld1q_u8(p + 16 * i), 6)); }, q + 12);
      }
      return sum.ints();
    } else {
      uint8_t bytes[kTileBytes];
      Ints r;
      tile_sums<1>(tile<K>(v, rb, u0, u1, bytes), 4 * (u1 - u0), false, &q, &r);
      return is_table(K) ? r - same_ints(128 * total) : r;
    }
  }

  static Ints plane_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                         uint32_t p1) {
    size_t at = codes_at<format::kPlanes>(v, rb, u0);
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

  static void signs(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k++) {
      Rows16 sum;
      sum.clear();
      for (uint32_t u = 0; u < units; u++)
        sum.unit(p + 64 * u, tables + (static_cast<size_t>(u) * rank + k) * 128);
      out[k] = sum.ints();
    }
  }
};
