// From stored codes to numbers, 16 rows by 16 columns at a time (a unit, u), in portable code; see portable.inl and
// format.h for the layouts. Tiles are [column][row].

// Where 16 columns lie: the group of unit u. A term of one group may leave `group` at 0.
inline uint32_t group_of(const TermView& v, uint32_t u) { return v.term->group ? u * 16 / v.term->group : 0; }

constexpr bool is_table(int kind) { return kind == format::kTable4 || kind == format::kTable3; }
constexpr bool is_of_32(int kind) { return kind == format::kTable3 || kind == format::kPlanes; }  // columns together
constexpr bool is_integer(int kind) { return kind >= format::kNibbles && kind <= format::kPlanes; }

inline const uint8_t* selects(const TermView& v, uint32_t rb, uint32_t g) {
  if (v.term->tables <= 1) return nullptr;
  return v.base + v.term->select_at + (static_cast<size_t>(rb) * v.term->groups + g) * 16;
}

// Where unit u of a row block begins in the codes of a term, or of one of its planes; two units of 32 columns that are
// stored together begin at the same place.
template <int K>
inline size_t codes_at(const TermView& v, uint32_t rb, uint32_t u) {
  static_assert(is_integer(K) || is_table(K), "a kind with codes");
  constexpr size_t bytes = K == format::kPlanes   ? 32
                           : K == format::kPairs  ? 64
                           : K == format::kTable3 ? 96
                           : K == format::kBytes  ? 256
                                                  : 128;
  return (static_cast<size_t>(rb) * (v.columns / 16) + (is_of_32(K) ? u & ~1u : u)) * bytes;
}

// Codes as they are stored; of kPlanes the resident bits only.
template <int K>
inline void codes16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
  const uint8_t* p = v.codes[0] + codes_at<K>(v, rb, u);
  if constexpr (K == format::kNibbles || K == format::kTable4) {
    for (int h = 0; h < 2; h++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++) {
          uint8_t b = p[64 * h + 4 * r + j];
          c[8 * h + j][r] = b & 15;
          c[8 * h + 4 + j][r] = b >> 4;
        }
  } else if constexpr (K == format::kPairs) {
    for (int f = 0; f < 4; f++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++) c[4 * f + j][r] = (p[4 * r + j] >> (2 * f)) & 3;
  } else if constexpr (K == format::kBytes) {
    for (int f = 0; f < 4; f++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++) c[4 * f + j][r] = p[64 * f + 4 * r + j];
  } else if constexpr (K == format::kTable3) {
    const uint8_t *low = p + 64 * (u & 1), *high = p + 128;
    int top = 4 * (u & 1);
    for (int f = 0; f < 4; f++)
      for (int j = 0; j < 4; j++)
        for (int r = 0; r < 16; r++)
          c[4 * f + j][r] =
              static_cast<int16_t>(((low[4 * r + j] >> (2 * f)) & 3) | ((high[4 * r + j] >> (top + f)) & 1) << 2);
  } else {
    static_assert(K == format::kPlanes, "a kind with codes");
    memset(c, 0, 512);
    int shift = 4 * (u & 1);
    for (uint32_t plane = 0; plane < v.planes; plane++) {
      p = v.codes[plane] + codes_at<K>(v, rb, u);
      for (int q = 0; q < 4; q++)
        for (int i = 0; i < 4; i++)
          for (int r = 0; r < 16; r++)
            c[4 * q + i][r] = static_cast<int16_t>(2 * c[4 * q + i][r] + ((p[16 * q + r] >> (shift + i)) & 1));
    }
  }
}

// What codes mean for sums of integers: themselves, or the int8 of the row's table.
template <int K>
inline void ints16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
  codes16<K>(v, rb, u, c);
  if constexpr (is_table(K)) {
    uint32_t levels = K == format::kTable4 ? 16 : 8;
    const uint8_t* select = selects(v, rb, group_of(v, u));
    for (int r = 0; r < 16; r++) {
      const int8_t* table = v.itable + (select && select[r] < v.term->tables ? select[r] : 0) * levels;
      for (int j = 0; j < 16; j++) c[j][r] = table[c[j][r]];
    }
  }
}

struct Params {
  Lanes scale, zero, offset;
};

// `zero` as the sums need it: for planes with p of P resident, code = 2^(P-p) u + (2^(P-p) - 1) / 2 with u the resident
// bits as a number, and the constant goes into the zero.
inline float plane_step(const TermView& v) { return static_cast<float>(1u << (v.term->planes - v.planes)); }

template <int K>
QD_INLINE void load_params(const TermView& v, uint32_t rb, uint32_t g, Params* p) {
  p->scale = load_param(v, v.term->scale, rb, g, 1.0f);
  if constexpr (is_integer(K)) {
    p->zero = load_param(v, v.term->zero, rb, g, v.term->zero_for_all);
    p->offset = load_param(v, v.term->offset, rb, g, 0.0f);
  }
}

inline uint32_t vector_code(const TermView& v, uint32_t rb, size_t position, uint32_t book, uint32_t row) {
  const Term& t = *v.term;
  size_t i = ((rb * static_cast<size_t>(v.columns / t.width) + position) * t.books + book) * 16 + row;
  uint32_t code = t.levels <= 256 ? v.codes[0][i] : load_u16(v.codes[0] + 2 * i);
  return code < t.levels ? code : 0;
}

// The parts of a BitStack block: U, V, and the signs of unit u as four rows of 16 bytes, in the nibble 4 (u & 1).
struct Bitstack {
  const uint8_t *u, *v, *signs;
  explicit Bitstack(const TermView& t)
      : u(t.codes[0]), v(u + static_cast<size_t>(t.row_blocks) * t.term->rank * 32),
        signs(v + static_cast<size_t>(t.term->rank) * t.columns * 2) {}
  const uint8_t* at(const TermView& t, uint32_t rb, uint32_t tile) const {
    uint32_t first = tile * format::kTile, width = min_u(format::kTile, t.columns - first);
    return signs + (static_cast<size_t>(t.row_blocks) * (first / 32) + static_cast<size_t>(rb) * (width / 32)) * 64;
  }
};

inline void bitstack16(const TermView& t, uint32_t rb, uint32_t u, float (*w)[16]) {
  Bitstack b(t);
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

// Weights as they are, in float32.
template <int K>
inline void weights16(const TermView& v, uint32_t rb, uint32_t u, float (*w)[16]) {
  Params p;
  uint32_t g = group_of(v, u);
  load_params<K>(v, rb, g, &p);
  if constexpr (is_integer(K)) {
    int16_t c[16][16];
    codes16<K>(v, rb, u, c);
    float step = K == format::kPlanes ? plane_step(v) : 1.0f;
    Lanes middle = all(0.5f * (step - 1.0f));
    for (int j = 0; j < 16; j++) {
      for (int r = 0; r < 16; r++) w[j][r] = static_cast<float>(c[j][r]);
      store((((lanes_at(w[j]) * step + middle) - p.zero) * p.scale) + p.offset, w[j]);
    }
  } else if constexpr (is_table(K)) {
    int16_t c[16][16];
    codes16<K>(v, rb, u, c);
    uint32_t levels = K == format::kTable4 ? 16 : 8;
    const uint8_t* select = selects(v, rb, g);
    for (int r = 0; r < 16; r++) {
      const float* table = v.table + (select && select[r] < v.term->tables ? select[r] : 0) * levels;
      for (int j = 0; j < 16; j++) w[j][r] = table[c[j][r]];
    }
    for (int j = 0; j < 16; j++) store(lanes_at(w[j]) * p.scale, w[j]);
  } else if constexpr (K == format::kFloats) {
    for (uint32_t j = 0; j < 16; j++) {
      size_t at = (rb * static_cast<size_t>(v.columns) + 16 * u + j) * 16;
      store(load16(v.term->element, v.codes[0], at) * p.scale, w[j]);
    }
  } else {
    static_assert(K == format::kVector, "a kind of tiles");
    uint32_t width = v.term->width;
    memset(w, 0, 1024);
    for (uint32_t j = 0; j < 16; j++) {
      uint32_t position = (16 * u + j) / width, e = (16 * u + j) % width;
      for (uint32_t b = 0; b < v.term->books; b++)
        for (uint32_t r = 0; r < 16; r++)
          w[j][r] +=
              v.table[(static_cast<size_t>(b) * v.term->levels + vector_code(v, rb, position, b, r)) * width + e];
      store(lanes_at(w[j]) * p.scale, w[j]);
    }
  }
}

template <>
inline void weights16<format::kBitstack>(const TermView& v, uint32_t rb, uint32_t u, float (*w)[16]) {
  bitstack16(v, rb, u, w);
}
