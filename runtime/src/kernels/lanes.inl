// The rows of a row block as vectors: 16 floats or 16 int32, in as many registers as the instruction set needs
// (QD_VECTOR_BYTES each). One lane is one row, so that an operation here is 16 independent ones and gives the same bits
// at every width. Included first by the file of each instruction set, inside its namespaces.

#ifndef QD_VECTOR_BYTES
#define QD_VECTOR_BYTES 16
#endif

#define QD_INLINE inline __attribute__((always_inline))

constexpr int kParts = 64 / QD_VECTOR_BYTES;
typedef float FloatPart __attribute__((vector_size(QD_VECTOR_BYTES)));
typedef int32_t IntPart __attribute__((vector_size(QD_VECTOR_BYTES)));

struct Lanes {
  FloatPart p[kParts];
};
struct Ints {
  IntPart p[kParts];
};

#define QD_LANES_OPERATOR(type, op)                     \
  inline type operator op(const type& a, const type& b) { \
    type r;                                             \
    for (int i = 0; i < kParts; i++) r.p[i] = a.p[i] op b.p[i]; \
    return r;                                           \
  }
QD_LANES_OPERATOR(Lanes, +)
QD_LANES_OPERATOR(Lanes, -)
QD_LANES_OPERATOR(Lanes, *)
QD_LANES_OPERATOR(Ints, +)
QD_LANES_OPERATOR(Ints, -)
#undef QD_LANES_OPERATOR

inline Lanes operator*(const Lanes& a, float b) {
  Lanes r;
  for (int i = 0; i < kParts; i++) r.p[i] = a.p[i] * b;
  return r;
}
inline Ints operator<<(const Ints& a, uint32_t n) {
  Ints r;
  for (int i = 0; i < kParts; i++) r.p[i] = a.p[i] << static_cast<int>(n);
  return r;
}
inline Lanes all(float x) {
  Lanes r;
  for (int i = 0; i < kParts; i++) r.p[i] = x - FloatPart{};
  return r;
}
// Part by part: a copy of the whole goes through memory in pieces of another size, and waits there.
inline Lanes lanes_at(const float* p) {
  Lanes r;
  for (int i = 0; i < kParts; i++) memcpy(&r.p[i], p + i * (QD_VECTOR_BYTES / 4), QD_VECTOR_BYTES);
  return r;
}
inline Ints ints_at(const int32_t* p) {
  Ints r;
  for (int i = 0; i < kParts; i++) memcpy(&r.p[i], p + i * (QD_VECTOR_BYTES / 4), QD_VECTOR_BYTES);
  return r;
}
inline Ints same_ints(int32_t x) {
  Ints r;
  for (int i = 0; i < kParts; i++) r.p[i] = x + IntPart{};
  return r;
}
inline void store(const Lanes& x, float* p) {
  for (int i = 0; i < kParts; i++) memcpy(p + i * (QD_VECTOR_BYTES / 4), &x.p[i], QD_VECTOR_BYTES);
}
inline Lanes as_floats(const Ints& x) {
  Lanes r;
  for (int i = 0; i < kParts; i++) r.p[i] = __builtin_convertvector(x.p[i], FloatPart);
  return r;
}
