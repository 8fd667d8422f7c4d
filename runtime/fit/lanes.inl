// Sixteen rows side by side, in registers of QDF_BYTES. Included first by the file of each instruction set, inside its
// anonymous namespace; `fused(a, b, c)` = a * b + c is its own.
constexpr int kParts = 64 / QDF_BYTES, kPer = QDF_BYTES / 4;
typedef float FloatPart __attribute__((vector_size(QDF_BYTES)));
typedef int32_t IntPart __attribute__((vector_size(QDF_BYTES)));
#define QDF_INLINE inline __attribute__((always_inline))

struct Lanes {
  FloatPart p[kParts];
};
struct Ints {
  IntPart p[kParts];
};

QDF_INLINE FloatPart fused_part(FloatPart a, FloatPart b, FloatPart c);

QDF_INLINE Lanes all(float x) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.p[i] = x - FloatPart{};
  return r;
}
QDF_INLINE Ints same(int32_t x) {
  Ints r;
  for (int i = 0; i < kParts; ++i) r.p[i] = x - IntPart{};
  return r;
}
#define QDF_OPERATOR(Type, op)                                    \
  QDF_INLINE Type operator op(const Type& a, const Type& b) {     \
    Type r;                                                       \
    for (int i = 0; i < kParts; ++i) r.p[i] = a.p[i] op b.p[i];   \
    return r;                                                     \
  }
QDF_OPERATOR(Lanes, +)
QDF_OPERATOR(Lanes, -)
QDF_OPERATOR(Lanes, *)
QDF_OPERATOR(Lanes, /)
QDF_OPERATOR(Ints, +)
#undef QDF_OPERATOR
QDF_INLINE Lanes fused(const Lanes& a, const Lanes& b, const Lanes& c) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.p[i] = fused_part(a.p[i], b.p[i], c.p[i]);
  return r;
}
// The lesser of a and b, and which index it had; a where they are equal.
QDF_INLINE void lesser(Lanes& a, Ints& at, const Lanes& b, const Ints& bt) {
  for (int i = 0; i < kParts; ++i) {
    IntPart less = b.p[i] < a.p[i];
    a.p[i] = less ? b.p[i] : a.p[i];
    at.p[i] = less ? bt.p[i] : at.p[i];
  }
}
QDF_INLINE Lanes if_positive(const Lanes& x, const Lanes& otherwise) {
  Lanes r;
  for (int i = 0; i < kParts; ++i) r.p[i] = x.p[i] > FloatPart{} ? x.p[i] : otherwise.p[i];
  return r;
}
QDF_INLINE Lanes at_least(const Lanes& x, float least) {
  Lanes low = all(least), r;
  for (int i = 0; i < kParts; ++i) r.p[i] = x.p[i] > low.p[i] ? x.p[i] : low.p[i];
  return r;
}
QDF_INLINE bool differ(const Ints& a, const Ints& b) {
  bool any = false;
  for (int i = 0; i < kParts; ++i) {
    IntPart other = a.p[i] != b.p[i];
    for (int j = 0; j < kPer; ++j) any |= other[j] != 0;
  }
  return any;
}
QDF_INLINE float lane(const Lanes& x, int row) { return x.p[row / kPer][row % kPer]; }
QDF_INLINE void set_lane(Lanes& x, int row, float value) { x.p[row / kPer][row % kPer] = value; }
QDF_INLINE Ints load_codes(const uint8_t* p) {
  Ints r;
  for (int i = 0; i < 16; ++i) r.p[i / kPer][i % kPer] = p[i];
  return r;
}
QDF_INLINE void store_codes(const Ints& x, uint8_t* p) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(x.p[i / kPer][i % kPer]);
}
// What level L - shift reads of codes of L bits, in steps of the whole code: the middle of what is left, less (2^L - 1) / 2.
QDF_INLINE Lanes reading(const Ints& codes, int levels, int level) {
  int shift = levels - level;
  float step = static_cast<float>(1 << shift), zero = 0.5f * (step - static_cast<float>(1 << levels));
  Lanes r;
  for (int i = 0; i < kParts; ++i)
    r.p[i] = __builtin_convertvector(codes.p[i] >> shift, FloatPart) * step + zero;
  return r;
}
