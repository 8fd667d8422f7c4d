// What NEON and its dot product share; the file that includes this brings lanes.inl before it.

#define QD_OWN_HALVES  // these two in place of the portable ones
inline Lanes from_half16(const uint8_t* p) {
  Lanes r;
  for (int i = 0; i < 4; i++) {
    float16x4_t h;
    memcpy(&h, p + 8 * i, 8);
    r.p[i] = reinterpret_cast<FloatPart>(vcvt_f32_f16(h));
  }
  return r;
}
inline void to_half16(const float* x, uint16_t* out) {
  for (int i = 0; i < 4; i++) {
    float16x4_t h = vcvt_f16_f32(vld1q_f32(x + 4 * i));
    memcpy(out + 4 * i, &h, 8);
  }
}

#include "portable.inl"
#include "portable_tiles.inl"
#include "portable_vectors.inl"
#include "portable_integers.inl"
#include "portable_terms.inl"
#include "portable_attention.inl"

inline int8x16_t four(const int8_t* q) {
  int32_t v;
  memcpy(&v, q, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(v));
}
