// Signs times a product of low rank, one term per block of the decomposition: U float16 [row block][rank][16], V float16
// [rank][columns], then the signs tile by tile: for each tile of 512 columns (the last may be shorter) [row block][tile
// columns / 32][64] as kPlanes, bit 1 is +1. The rank is a multiple of 4, at most kMaxRank.
QD_TERM(9, kBitstack, Bitstack)

#if defined(QD_TERM_RULES)
struct Bitstack : AnyTerm {
  static Checked code_bytes(const TermShape& s) {
    uint32_t rank = s.term.rank;
    if (rank == 0 || rank % 4 || rank > kMaxRank) return Checked::none();
    return Checked(s.row_blocks) * rank * kRows * 2 + Checked(rank) * s.columns * 2 +
           Checked(s.row_blocks) * (s.columns / 32) * 64;
  }
};

#elif defined(QD_TERM_KERNELS)
// out[k] over `units` units of 32 columns: sums of what the signs look up; tables [unit][rank][8][16].
template <class P>
struct SignSums {
  static void sums(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k++) {
      int32_t sum[16] = {};
      for (uint32_t u = 0; u < units; u++) {
        const int8_t* t = tables + (static_cast<size_t>(u) * rank + k) * 128;
        for (int q = 0; q < 4; q++)
          for (int r = 0; r < 16; r++)
            sum[r] += t[16 * q + (p[64 * u + 16 * q + r] & 15)] + t[64 + 16 * q + (p[64 * u + 16 * q + r] >> 4)];
      }
      out[k] = ints_at(sum);
    }
  }
};

struct BitstackParts {
  const uint8_t *u, *v, *signs;
  explicit BitstackParts(const TermView& t)
      : u(t.codes[0]), v(u + static_cast<size_t>(t.row_blocks) * t.term->rank * 32),
        signs(v + static_cast<size_t>(t.term->rank) * t.columns * 2) {}
  const uint8_t* at(const TermView& t, uint32_t rb, uint32_t tile) const {
    uint32_t first = tile * format::kTile, width = min_u(format::kTile, t.columns - first);
    return signs + (static_cast<size_t>(t.row_blocks) * (first / 32) + static_cast<size_t>(rb) * (width / 32)) * 64;
  }
};

struct Bitstack {
  static void weights16(const TermView& t, uint32_t rb, uint32_t u, float (*w)[16]) {
    BitstackParts b(t);
    uint32_t rank = t.term->rank;
    Lanes sum[16];
    for (Lanes& x : sum) x = all(0.0f);
    for (uint32_t k = 0; k < rank; k++) {
      float right[16];
      Lanes left = from_half16(b.u + (static_cast<size_t>(rb) * rank + k) * 32);
      store(from_half16(b.v + (static_cast<size_t>(k) * t.columns + 16 * u) * 2), right);
      for (int j = 0; j < 16; j++) sum[j] = sum[j] + left * right[j];
    }
    uint32_t tile = u / (format::kTile / 16), inner = u % (format::kTile / 16);
    const uint8_t* p = b.at(t, rb, tile) + inner / 2 * 64;
    int shift = 4 * (inner & 1);
    for (int j = 0; j < 16; j++) {
      store(sum[j], w[j]);
      for (int r = 0; r < 16; r++)
        w[j][r] = (p[16 * (j / 4) + r] >> (shift + (j & 3))) & 1 ? w[j][r] : -w[j][r];
    }
  }

  // For one token tables of x V for every rank and four columns: [columns / 32][rank][8][16], then their scales
  // [tiles][rank].
  static uint64_t scratch(const Term& t, uint32_t columns, uint32_t tokens) {
    if (tokens != 1) return 0;
    uint64_t tiles = (uint64_t{columns} + format::kTile - 1) / format::kTile;
    return uint64_t{columns} * t.rank * 4 + tiles * t.rank * sizeof(float);
  }

  static void prepare(const TermView& v, const Activations& a, uint8_t* scratch_bytes) {
    if (a.tokens != 1) return;
    uint32_t rank = v.term->rank;
    int8_t* tables = reinterpret_cast<int8_t*>(scratch_bytes);
    float* scales = reinterpret_cast<float*>(scratch_bytes + static_cast<size_t>(v.columns) * rank * 4);
    BitstackParts b(v);
    for (uint32_t first = 0; first < v.columns; first += format::kTile)
      for (uint32_t k = 0; k < rank; k++) {
        float xv[format::kTile];
        uint32_t width = min_u(format::kTile, v.columns - first);
        for (uint32_t j = 0; j < width; j += 16) {
          store(from_half16(b.v + (static_cast<size_t>(k) * v.columns + first + j) * 2) * lanes_at(a.x + first + j),
                xv + j);
        }
        float most = most_of_fours(xv, width), inverse = most > kTiny ? 127.0f / most : 0.0f;
        *scales++ = most > kTiny ? most / 127.0f : 0.0f;
        for (uint32_t j = 0; j < width; j += 4)
          table16(xv + j, inverse, tables + (static_cast<size_t>((first + j) / 32) * rank + k) * 128 + j % 32 * 4);
      }
  }

  template <class P>
  static void one_product(const TermView& v, const Activations& a, const uint8_t* scratch_bytes, float* y,
                          size_t y_stride, uint32_t rb0, uint32_t rb1) {
    uint32_t rank = v.term->rank;
    if (a.tokens != 1 || rank > format::kMaxRank) {
      exact_product<Bitstack>(v, a, scratch_bytes, y, y_stride, rb0, rb1);
      return;
    }
    const int8_t* tables = reinterpret_cast<const int8_t*>(scratch_bytes);
    const float* scales = reinterpret_cast<const float*>(scratch_bytes + static_cast<size_t>(v.columns) * rank * 4);
    BitstackParts b(v);
    for (uint32_t first = 0; first < v.columns; first += format::kTile, scales += rank)
      for (uint32_t rb = rb0; rb < rb1; rb++) {
        Ints sums[format::kMaxRank];
        SignSums<P>::sums(b.at(v, rb, first / format::kTile), tables + static_cast<size_t>(first / 32) * rank * 128,
                          min_u(format::kTile, v.columns - first) / 32, rank, sums);
        Lanes acc = lanes_at(y + 16 * rb);
        for (uint32_t k = 0; k < rank; k++)
          acc = acc + as_floats(sums[k]) * (from_half16(b.u + (static_cast<size_t>(rb) * rank + k) * 32) * scales[k]);
        store(acc, y + 16 * rb);
      }
  }

  template <class P>
  static constexpr Kind kernels() {
    Kind k = float_kernels<Bitstack>(one_product<P>);
    k.prepare = prepare;
    k.scratch = scratch;
    return k;
  }
};

#if defined(QD_AVX2)
template <>
struct SignSums<Avx2> {
  // Four ranks at a time, in 16 bits: a tile has 128 lookups, 64 of them in each half of a register.
  static void sums(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k += 4) {
      Sums sum[4];
      for (int i = 0; i < 4; i++) sum[i].clear();
      for (uint32_t u = 0; u < units; u++) {
        __m256i a = load256(p + 64 * u), b = load256(p + 64 * u + 32);
        const int8_t* t = tables + (static_cast<size_t>(u) * rank + k) * 128;
        for (int i = 0; i < 4; i++) look_up_unit(a, b, t + 128 * i, sum[i]);
      }
      for (int i = 0; i < 4; i++) out[k + static_cast<uint32_t>(i)] = ints_of(fold(sum[i].a), fold(sum[i].b));
    }
  }
};

#elif defined(QD_AVX512VNNI)
template <>
struct SignSums<Avx512Vnni> {
  // Four ranks at a time; a tile has 128 lookups, 32 of them in each lane.
  static void sums(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k += 4) {
      Rows sum[4];
      for (int i = 0; i < 4; i++) sum[i].clear();
      for (uint32_t u = 0; u < units; u++) {
        __m512i signs = load512(p + 64 * u);
        const int8_t* t = tables + (static_cast<size_t>(u) * rank + k) * 128;
        for (int i = 0; i < 4; i++) sum[i].unit(signs, t + 128 * i);
      }
      for (int i = 0; i < 4; i++) out[k + static_cast<uint32_t>(i)] = sum[i].ints();
    }
  }
};

#elif defined(QD_NEON)
template <>
struct SignSums<Neon> {
  static void sums(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
    for (uint32_t k = 0; k < rank; k++) {
      Rows16 sum;
      sum.clear();
      for (uint32_t u = 0; u < units; u++)
        sum.unit(p + 64 * u, tables + (static_cast<size_t>(u) * rank + k) * 128);
      out[k] = sum.ints();
    }
  }
};
#endif
#endif
