// What all the kernels are made of: numbers, sums over 16 lanes, the rounding of activations. Included by the file of
// each instruction set inside namespace qd and an anonymous namespace, so that the compiler may vectorise it for that
// set and no two sets share a symbol. Loops go over 16 lanes; nothing here depends on how they are carried out. The
// including file has <stdint.h>, <stddef.h>, <string.h> and kernels.h.

using format::Param;
using format::Term;

inline uint32_t min_u(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline float max_f(float a, float b) { return a > b ? a : b; }
inline uint32_t bits_of(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}
inline float float_of(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}
inline uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  memcpy(&v, p, 2);
  return v;
}
inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}

// Nearest, ties to even, for |x| < 2^22: the sum has no room for a fraction. As bits, so that a NaN does no harm.
constexpr float kRound = 12582912.0f;
inline int32_t round_to_int(float x) { return static_cast<int32_t>(bits_of(x + kRound) - 0x4b400000u); }

inline float reduce16(const float* lanes) {
  float a[8];
  for (int i = 0; i < 8; i++) a[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; i++) a[i] = a[i] + a[i + 4];
  return (a[0] + a[2]) + (a[1] + a[3]);
}

// ---- numbers
inline float from_f16(uint32_t h) {
  uint32_t sign = (h & 0x8000u) << 16, em = h & 0x7fffu;
  uint32_t normal = (em << 13) + 0x38000000u;
  uint32_t special = (em << 13) + 0x70000000u + (em > 0x7c00u ? (~em & 0x200u) << 13 : 0u);  // NaNs become quiet
  uint32_t small = bits_of(static_cast<float>(static_cast<int32_t>(em)) * 5.9604644775390625e-8f);
  uint32_t bits = em < 0x400u ? small : em < 0x7c00u ? normal : special;
  return float_of(bits | sign);
}

inline uint16_t to_f16(float x) {
  uint32_t b = bits_of(x), sign = (b >> 16) & 0x8000u, m = b & 0x7fffffffu;
  uint32_t normal = (m - 0x38000000u + 0xfffu + ((m >> 13) & 1u)) >> 13;  // the carry may reach infinity, as it must
  // Below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end of the fraction.
  uint32_t small = bits_of(float_of(m < 0x38800000u ? m : 0u) + 0.5f) - 0x3f000000u;
  uint32_t nan = 0x7e00u | ((m >> 13) & 0x1ffu);
  uint32_t r = m > 0x7f800000u ? nan : m >= 0x47800000u ? 0x7c00u : m < 0x38800000u ? small : normal;
  return static_cast<uint16_t>(r | sign);
}

inline float from_e4m3(uint32_t b) {
  uint32_t sign = (b & 0x80u) << 24, em = b & 0x7fu;
  uint32_t small = bits_of(static_cast<float>(static_cast<int32_t>(em)) * 0.001953125f);
  uint32_t bits = em < 8u ? small : em == 0x7fu ? 0x7fc00000u : (em << 20) + (120u << 23);
  return float_of(bits | sign);
}

inline float from_e8m0(uint32_t b) { return float_of(b == 0 ? 0x00400000u : b == 255 ? 0x7fc00000u : b << 23); }

#ifndef QD_OWN_HALVES
inline Lanes from_half16(const uint8_t* p) {
  float out[16];
  for (int r = 0; r < 16; r++) out[r] = from_f16(load_u16(p + 2 * r));
  return lanes_at(out);
}
inline void to_half16(const float* x, uint16_t* out) {
  for (int r = 0; r < 16; r++) out[r] = to_f16(x[r]);
}
#endif

inline Lanes from_bfloat16(const uint8_t* p) {
  uint32_t bits[16];
  float out[16];
  for (int r = 0; r < 16; r++) bits[r] = static_cast<uint32_t>(load_u16(p + 2 * r)) << 16;
  memcpy(out, bits, 64);
  return lanes_at(out);
}

// 16 numbers of a kind, `index` elements from p.
__attribute__((noinline)) inline Lanes numbers16(uint32_t kind, const uint8_t* p, size_t index) {
  float out[16] = {};
  switch (kind) {
    case format::kF32: memcpy(out, p + 4 * index, 64); break;
    case format::kF16: return from_half16(p + 2 * index);
    case format::kBF16: return from_bfloat16(p + 2 * index);
    case format::kE8M0:
      for (int r = 0; r < 16; r++) out[r] = from_e8m0(p[index + r]);
      break;
    case format::kU8:
      for (int r = 0; r < 16; r++) out[r] = static_cast<float>(p[index + r]);
      break;
    case format::kI8:
      for (int r = 0; r < 16; r++) out[r] = static_cast<float>(static_cast<int8_t>(p[index + r]));
      break;
    case format::kE4M3:
      for (int r = 0; r < 16; r++) out[r] = from_e4m3(p[index + r]);
      break;
    case format::kE5M2:
      for (int r = 0; r < 16; r++) out[r] = from_f16(static_cast<uint32_t>(p[index + r]) << 8);
      break;
    default: break;
  }
  return lanes_at(out);
}

// The common kind in place, the others by a call.
QD_INLINE Lanes load16(uint32_t kind, const uint8_t* p, size_t index) {
  return kind == format::kF16 ? from_half16(p + 2 * index) : numbers16(kind, p, index);
}

QD_INLINE Lanes load_param(const TermView& v, const Param& p, uint32_t rb, uint32_t g, float otherwise) {
  if (p.kind == format::kNo) return all(otherwise);
  uint32_t groups = v.term->groups;
  Lanes x = load16(p.kind, v.base + p.at, (static_cast<size_t>(rb) * groups + g) * 16);
  if (p.super_kind == format::kNo || p.super_span == 0) return x;
  uint32_t supers = (groups + p.super_span - 1) / p.super_span;
  return x * load16(p.super_kind, v.base + p.super_at, (static_cast<size_t>(rb) * supers + g / p.super_span) * 16);
}

// ---- functions
inline float exp_f(float x) {
  float c = x > 88.72283f ? 88.72283f : x;
  c = c < -87.3f ? -87.3f : c;
  float t = c * 1.44269504088896341f + kRound;
  float n = t - kRound;
  float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  uint32_t e = bits_of(t) - 0x4b400000u + 256u;  // never negative, so that it can be halved as unsigned
  uint32_t half = e >> 1;
  float y = (p * float_of((half - 1u) << 23)) * float_of((e - half - 1u) << 23);  // two factors: 2^128 is no float
  return x < -87.3f ? 0.0f : y;
}

inline float tanh_f(float x) {
  float a = float_of(bits_of(x) & 0x7fffffffu), z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  float near = p * z * x + x;
  float far = 1.0f - 2.0f / (exp_f(a + a) + 1.0f);
  far = x < 0.0f ? -far : far;
  return a < 0.625f ? near : far;
}

// erfc of z >= 0, to 1.2e-7 of its value (Numerical Recipes' Chebyshev fit).
inline float erfc_f(float z) {
  float t = 1.0f / (1.0f + 0.5f * z);
  float p = 0.17087277f;
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  return t * exp_f(p - z * z);
}

inline float sigmoid_f(float x) { return 1.0f / (1.0f + exp_f(-x)); }
inline float gelu_f(float x) {
  float half = 0.5f * erfc_f(float_of(bits_of(x) & 0x7fffffffu) * 0.70710678118654752f);
  return x < 0.0f ? x * half : x * (1.0f - half);
}
inline float gelu_tanh_f(float x) {
  // 0.5 (1 + tanh u) is sigmoid(2 u), which keeps its digits in the left tail
  return x * sigmoid_f(1.5957691216057308f * (x + 0.044715f * (x * x * x)));
}

// ---- rounding of activations
inline float max_abs(const float* x, uint32_t n) {
  float m[16] = {};
  for (uint32_t j = 0; j < n; j += 16)
    for (int r = 0; r < 16; r++) m[r] = max_f(float_of(bits_of(x[j + r]) & 0x7fffffffu), m[r]);
  float most = 0.0f;
  for (int r = 0; r < 16; r++) most = max_f(m[r], most);
  return most;
}

inline float sum_lanes(const float* x, uint32_t n) {
  float s[16] = {};
  for (uint32_t j = 0; j < n; j += 16)
    for (int r = 0; r < 16; r++) s[r] += x[j + r];
  return reduce16(s);
}

// Below this a reciprocal would not be finite; such a group counts as zero.
constexpr float kTiny = 1e-35f;

// One token of several: group g goes to q + g * tokens * group, its numbers to index g * tokens.
inline void quantize(const float* x, uint32_t columns, uint32_t group, uint32_t tokens, int8_t* q, float* scale,
                     int32_t* sum, float* fsum) {
  uint32_t done = 0;
  for (size_t g = 0; done < columns; g += tokens, done += group) {
    float most = max_abs(x + done, group);
    float inverse = most > kTiny ? 127.0f / most : 0.0f;
    int8_t* out = q + g * group;
    int32_t total = 0;
    for (uint32_t j = 0; j < group; j += 16)
      for (int r = 0; r < 16; r++) {
        int32_t v = round_to_int(x[done + j + r] * inverse);
        out[j + r] = static_cast<int8_t>(v);
        total += static_cast<int8_t>(v);
      }
    scale[g] = most > kTiny ? most / 127.0f : 0.0f;
    sum[g] = total;
    fsum[g] = sum_lanes(x + done, group);
  }
}

constexpr float kSigns[4][16] = {{-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
                                 {-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1},
                                 {-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1},
                                 {-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1}};

inline float abs_f(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

// The largest entry of the tables of n columns: all signs alike.
inline float most_of_fours(const float* x, uint32_t n) {
  float most = 0.0f;
  for (uint32_t j = 0; j < n; j += 4)
    most = max_f(abs_f(x[j]) + abs_f(x[j + 1]) + abs_f(x[j + 2]) + abs_f(x[j + 3]), most);
  return most;
}

// The 16 entries of the four columns at x.
inline void table16(const float* x, float inverse, int8_t* out) {
  float a = x[0], b = x[1], c = x[2], d = x[3];
  for (int i = 0; i < 16; i++) {
    float e = ((kSigns[0][i] * a + kSigns[1][i] * b) + kSigns[2][i] * c) + kSigns[3][i] * d;
    out[i] = static_cast<int8_t>(round_to_int(e * inverse));
  }
}

inline void make_tables(const float* x, uint32_t columns, uint32_t group, int8_t* tables, float* table_scale,
                        float* fsum) {
  uint32_t done = 0;
  for (uint32_t g = 0; done < columns; g++, done += group) {
    float most = most_of_fours(x + done, group);
    float inverse = most > kTiny ? 127.0f / most : 0.0f;
    table_scale[g] = most > kTiny ? most / 127.0f : 0.0f;
    fsum[g] = sum_lanes(x + done, group);
    for (uint32_t j = done; j < min_u(done + group, columns); j += 4) table16(x + j, inverse, tables + j * 4);
  }
}

inline void gather(const float* x, const int32_t* map, uint32_t columns, float* out) {
  for (uint32_t j = 0; j < columns; j++) out[j] = map[j] < 0 ? 0.0f : x[map[j]];
}
