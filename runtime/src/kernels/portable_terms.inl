// Products of terms with activations. What an instruction set does in its own way is a policy P; `Portable` is the
// plain one. Sums of integers are exact, so that any order of them will do; what follows a sum is here, once.

struct Portable {
  // out[n][row] = sum over units u0 .. u1 of ints * q[n], n < N.
  template <int K, int N>
  static void sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* const* q,
                   int32_t (*out)[16]) {
    int16_t c[16][16];
    memset(out, 0, N * 64);
    for (uint32_t u = u0; u < u1; u++) {
      ints16<K>(v, rb, u, c);
      for (int n = 0; n < N; n++)
        for (int j = 0; j < 16; j++) {
          int16_t x = q[n][16 * u + j];
          for (int r = 0; r < 16; r++) out[n][r] += c[j][r] * x;
        }
    }
  }

  // out[row] = sum over the resident planes i of 2^(p-1-i) times the entries that the plane's nibbles look up.
  static void lookups(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, int32_t* out) {
    memset(out, 0, 64);
    for (uint32_t plane = 0; plane < v.planes; plane++) {
      const uint8_t* p = v.codes[plane] + static_cast<size_t>(rb) * (v.columns / 32) * 64;
      for (int r = 0; r < 16; r++) out[r] += out[r];
      for (uint32_t u = u0; u < u1; u++)
        for (int q = 0; q < 4; q++)
          for (int r = 0; r < 16; r++)
            out[r] += tables[u * 64 + 16 * q + ((p[u / 2 * 64 + 16 * q + r] >> (4 * (u & 1))) & 15)];
    }
  }

  // out[k][row] over `units` units of 32 columns; tables [unit][rank][8][16].
  static void signs(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, int32_t (*out)[16]) {
    memset(out, 0, rank * 64);
    for (uint32_t u = 0; u < units; u++, p += 64)
      for (uint32_t k = 0; k < rank; k++, tables += 128)
        for (int q = 0; q < 4; q++)
          for (int r = 0; r < 16; r++)
            out[k][r] += tables[16 * q + (p[16 * q + r] & 15)] + tables[64 + 16 * q + (p[16 * q + r] >> 4)];
  }
};

// y += W x for N tokens and one group of activations, from the sums of integers.
template <class P, int K, int N>
inline void group_product(const TermView& v, const Activations& a, const Params& p, uint32_t rb, uint32_t ag,
                          uint32_t token, float* y, size_t y_stride) {
  const int8_t* q[N];
  int32_t sums[N][16];
  for (int n = 0; n < N; n++) q[n] = a.q + static_cast<size_t>(token + n) * a.stride;
  P::template sums<K, N>(v, rb, ag * a.group / 16, min_u((ag + 1) * a.group, v.columns) / 16, q, sums);
  for (int n = 0; n < N; n++) {
    size_t at = static_cast<size_t>(token + n) * a.groups + ag;
    float sx = a.scale[at], total = static_cast<float>(a.sum[at]);
    float* out = y + (token + n) * y_stride + 16 * rb;
    if constexpr (is_table(K)) {
      float unit = sx * v.term->table_unit;
      for (int r = 0; r < 16; r++) out[r] += (static_cast<float>(sums[n][r]) * unit) * p.scale[r];
    } else {
      float step = K == format::kPlanes ? plane_step(v) : 1.0f, middle = 0.5f * (step - 1.0f);
      for (int r = 0; r < 16; r++) {
        float t = (static_cast<float>(sums[n][r]) * step - (p.zero[r] - middle) * total) * sx;
        out[r] += t * p.scale[r] + p.offset[r] * (total * sx);
      }
    }
  }
}

template <class P, int K>
inline void int_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                        uint32_t rb0, uint32_t rb1) {
  for (uint32_t rb = rb0; rb < rb1; rb++) {
    Params p;
    uint32_t last = format::kNone;
    for (uint32_t ag = 0; ag < a.groups; ag++) {
      uint32_t g = group_of(v, ag * a.group / 16);
      if (g != last) load_params<K>(v, rb, last = g, &p);
      uint32_t token = 0;
      for (; token + 4 <= a.tokens; token += 4) group_product<P, K, 4>(v, a, p, rb, ag, token, y, y_stride);
      for (; token < a.tokens; token++) group_product<P, K, 1>(v, a, p, rb, ag, token, y, y_stride);
    }
  }
}

template <class P>
inline void plane_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t, uint32_t rb0,
                          uint32_t rb1) {
  float step = 0.5f * plane_step(v), middle = 0.5f * static_cast<float>((1u << v.term->planes) - 1u);
  for (uint32_t rb = rb0; rb < rb1; rb++) {
    Params p;
    uint32_t last = format::kNone;
    for (uint32_t ag = 0; ag < a.groups; ag++) {
      uint32_t u0 = ag * a.group / 16, u1 = min_u((ag + 1) * a.group, v.columns) / 16, g = group_of(v, u0);
      if (g != last) load_params<format::kPlanes>(v, rb, last = g, &p);
      int32_t sums[16];
      P::lookups(v, rb, u0, u1, a.tables, sums);
      float ts = a.table_scale[ag] * step, fsum = a.fsum[ag], *out = y + 16 * rb;
      for (int r = 0; r < 16; r++) {
        float t = static_cast<float>(sums[r]) * ts + (middle - p.zero[r]) * fsum;
        out[r] += t * p.scale[r] + p.offset[r] * fsum;
      }
    }
  }
}

template <int K>
inline void exact_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                          uint32_t rb0, uint32_t rb1) {
  float w[16][16];
  for (uint32_t rb = rb0; rb < rb1; rb++)
    for (uint32_t u = 0; u < v.columns / 16; u++) {
      weights16<K>(v, rb, u, w);
      for (uint32_t token = 0; token < a.tokens; token++)
        tile_product(w, a.x + static_cast<size_t>(token) * a.stride + 16 * u, y + token * y_stride + 16 * rb);
    }
}

template <int K>
inline void decode_row(const TermView& v, uint32_t row, float* out) {
  float w[16][16];
  for (uint32_t u = 0; u < v.columns / 16; u++) {
    weights16<K>(v, row / 16, u, w);
    for (int j = 0; j < 16; j++) out[16 * u + j] += w[j][row % 16];
  }
}

// ---- kVector: for one token, the product of every entry with its columns is worked out beforehand.
inline size_t vector_scratch(const Term& t, uint32_t columns, uint32_t tokens) {
  if (tokens != 1 || t.levels > 256 || t.width == 0) return 0;
  return static_cast<size_t>(columns / t.width) * t.books * t.levels * sizeof(float);
}

inline void vector_prepare(const TermView& v, const Activations& a, uint8_t* scratch) {
  const Term& t = *v.term;
  if (vector_scratch(t, v.columns, a.tokens) == 0) return;
  float* out = reinterpret_cast<float*>(scratch);
  for (uint32_t position = 0; position < v.columns / t.width; position++)
    for (uint32_t i = 0; i < t.books * t.levels; i++) {
      float s = 0.0f;
      const float* entry = v.table + static_cast<size_t>(i) * t.width;
      for (uint32_t e = 0; e < t.width; e++) s += entry[e] * a.x[position * t.width + e];
      *out++ = s;
    }
}

// Entries never straddle groups: the writer keeps one group per row, or groups that are multiples of the width.
inline void vector_product(const TermView& v, const Activations& a, const uint8_t* scratch, float* y, size_t y_stride,
                           uint32_t rb0, uint32_t rb1) {
  const Term& t = *v.term;
  uint32_t group = t.group ? t.group : v.columns;
  if (vector_scratch(t, v.columns, a.tokens) == 0 || group % t.width) {
    exact_product<format::kVector>(v, a, scratch, y, y_stride, rb0, rb1);
    return;
  }
  const float* table = reinterpret_cast<const float*>(scratch);
  for (uint32_t rb = rb0; rb < rb1; rb++)
    for (uint32_t first = 0, g = 0; first < v.columns; first += group, g++) {
      float sum[16] = {};
      Params p;
      load_params<format::kVector>(v, rb, g, &p);
      for (uint32_t i = first / t.width; i < min_u(first + group, v.columns) / t.width; i++)
        for (uint32_t b = 0; b < t.books; b++) {
          const float* entries = table + (static_cast<size_t>(i) * t.books + b) * t.levels;
          for (uint32_t r = 0; r < 16; r++) sum[r] += entries[vector_code(v, rb, i, b, r)];
        }
      for (int r = 0; r < 16; r++) y[16 * rb + r] += sum[r] * p.scale[r];
    }
}

// ---- kBitstack: for one token, tables of x V for every rank and four columns: [columns / 32][rank][8][16], then
// their scales [tiles][rank].
constexpr uint32_t kMaxRank = 64;

inline size_t bitstack_scratch(const Term& t, uint32_t columns, uint32_t tokens) {
  if (tokens != 1) return 0;
  size_t tiles = (columns + format::kTile - 1) / format::kTile;
  return static_cast<size_t>(columns) * t.rank * 4 + tiles * t.rank * sizeof(float);
}

inline void bitstack_prepare(const TermView& v, const Activations& a, uint8_t* scratch) {
  if (a.tokens != 1) return;
  uint32_t rank = v.term->rank;
  int8_t* tables = reinterpret_cast<int8_t*>(scratch);
  float* scales = reinterpret_cast<float*>(scratch + static_cast<size_t>(v.columns) * rank * 4);
  Bitstack b(v);
  for (uint32_t first = 0; first < v.columns; first += format::kTile)
    for (uint32_t k = 0; k < rank; k++) {
      float xv[format::kTile];
      uint32_t width = min_u(format::kTile, v.columns - first);
      for (uint32_t j = 0; j < width; j += 16) {
        half16(b.v + (static_cast<size_t>(k) * v.columns + first + j) * 2, xv + j);
        for (int r = 0; r < 16; r++) xv[j + r] *= a.x[first + j + r];
      }
      float most = most_of_fours(xv, width), inverse = most > kTiny ? 127.0f / most : 0.0f;
      *scales++ = most > kTiny ? most / 127.0f : 0.0f;
      for (uint32_t j = 0; j < width; j += 4)
        table16(xv + j, inverse, tables + (static_cast<size_t>((first + j) / 32) * rank + k) * 128 + j % 32 * 4);
    }
}

template <class P>
inline void bitstack_product(const TermView& v, const Activations& a, const uint8_t* scratch, float* y,
                             size_t y_stride, uint32_t rb0, uint32_t rb1) {
  uint32_t rank = v.term->rank;
  if (a.tokens != 1 || rank > kMaxRank) {
    exact_product<format::kBitstack>(v, a, scratch, y, y_stride, rb0, rb1);
    return;
  }
  const int8_t* tables = reinterpret_cast<const int8_t*>(scratch);
  const float* scales = reinterpret_cast<const float*>(scratch + static_cast<size_t>(v.columns) * rank * 4);
  Bitstack b(v);
  for (uint32_t first = 0; first < v.columns; first += format::kTile, scales += rank)
    for (uint32_t rb = rb0; rb < rb1; rb++) {
      int32_t sums[kMaxRank][16];
      P::signs(b.at(v, rb, first / format::kTile), tables + static_cast<size_t>(first / 32) * rank * 128,
               min_u(format::kTile, v.columns - first) / 32, rank, sums);
      for (uint32_t k = 0; k < rank; k++) {
        float left[16], *out = y + 16 * rb;
        half16(b.u + (static_cast<size_t>(rb) * rank + k) * 32, left);
        for (int r = 0; r < 16; r++) out[r] += static_cast<float>(sums[k][r]) * (left[r] * scales[k]);
      }
    }
}

// ---- kSparse. What a damaged file says beyond the term is left out.
template <class Each>
inline void each_entry(const TermView& v, uint32_t rb, Each each) {
  const uint8_t* p = v.codes[0];
  const uint8_t* entries = p + (static_cast<size_t>(v.row_blocks) + 1) * 4;
  uint32_t end = min_u(load_u32(p + 4 * (rb + 1)), v.term->entries);
  for (uint32_t i = load_u32(p + 4 * rb); i < end; i++) {
    const uint8_t* e = entries + static_cast<size_t>(i) * 12;
    uint32_t column = load_u32(e), row = load_u32(e + 4);
    if (column < v.columns && row < 16) each(column, row, float_of(load_u32(e + 8)));
  }
}

inline void sparse_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                           uint32_t rb0, uint32_t rb1) {
  for (uint32_t rb = rb0; rb < rb1; rb++)
    each_entry(v, rb, [&](uint32_t column, uint32_t row, float value) {
      for (uint32_t t = 0; t < a.tokens; t++)
        y[t * y_stride + 16 * rb + row] += value * a.x[static_cast<size_t>(t) * a.stride + column];
    });
}

inline void sparse_row(const TermView& v, uint32_t row, float* out) {
  each_entry(v, row / 16, [&](uint32_t column, uint32_t r, float value) {
    if (r == row % 16) out[column] += value;
  });
}

// ---- the table of a policy
template <class P, int K>
constexpr void fill_ints(Kernels& k) {
  k.kinds[K] = {Need::kInt8, Need::kInt8, int_product<P, K>, int_product<P, K>, exact_product<K>, nullptr, nullptr};
  k.decode_row[K] = decode_row<K>;
}

template <class P>
constexpr Kernels make_kernels(const char* name) {
  Kernels k = {};
  k.name = name;
  fill_ints<P, format::kNibbles>(k);
  fill_ints<P, format::kPairs>(k);
  fill_ints<P, format::kBytes>(k);
  fill_ints<P, format::kPlanes>(k);
  fill_ints<P, format::kTable4>(k);
  fill_ints<P, format::kTable3>(k);
  k.kinds[format::kPlanes].one = plane_product<P>;
  k.kinds[format::kPlanes].one_need = Need::kTables;
  constexpr Need none = Need::kFloats;
  MatVec floats = exact_product<format::kFloats>, vectors = exact_product<format::kVector>;
  MatVec bits = exact_product<format::kBitstack>, sparse = sparse_product;
  k.kinds[format::kFloats] = {none, none, floats, floats, floats, nullptr, nullptr};
  k.kinds[format::kVector] = {none, none, vector_product, vectors, vectors, vector_prepare, vector_scratch};
  k.kinds[format::kBitstack] = {none, none, bitstack_product<P>, bits, bits, bitstack_prepare, bitstack_scratch};
  k.kinds[format::kSparse] = {none, none, sparse, sparse, sparse, nullptr, nullptr};
  k.decode_row[format::kFloats] = decode_row<format::kFloats>;
  k.decode_row[format::kVector] = decode_row<format::kVector>;
  k.decode_row[format::kBitstack] = decode_row<format::kBitstack>;
  k.decode_row[format::kSparse] = sparse_row;
  k.quantize = quantize, k.make_tables = make_tables, k.gather = gather;
  k.rms_norm = rms_norm, k.layer_norm = layer_norm, k.add = add, k.multiply = multiply, k.activate = activate;
  k.gate = gate, k.scale_rows = scale_rows, k.softmax = softmax, k.l2_norm = l2_norm, k.rotate = rotate;
  k.store_f16 = store_f16, k.store_int8 = store_int8;
  k.scores_f16 = scores_f16, k.scores_int8 = scores_int8, k.scores_f32 = scores_f32;
  k.mix_f16 = mix_f16, k.mix_int8 = mix_int8, k.mix_f32 = mix_f32;
  return k;
}
