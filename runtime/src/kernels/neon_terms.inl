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

struct Neon : Portable {
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
};

#define QD_NEON
#include "table.inl"
