// Products of terms with floats: the exact ones of every kind, and those of the kinds that are not integers.

// acc[n] += sum over `columns` columns of w[column][row] * x[n][column], columns in order.
template <int N>
inline void float_tile(const float (*w)[16], uint32_t columns, const float* const* x, float (*acc)[16]) {
  Lanes sum[N];
  for (int n = 0; n < N; n++) sum[n] = lanes_at(acc[n]);
  for (uint32_t j = 0; j < columns; j++) {
    Lanes c = lanes_at(w[j]);
    for (int n = 0; n < N; n++) sum[n] = sum[n] + c * x[n][j];
  }
  for (int n = 0; n < N; n++) store(sum[n], acc[n]);
}

constexpr uint32_t kFloatColumns = 128;  // of a tile of floats: 8 KB

template <int K>
inline void float_rows(const TermView& v, const Activations& a, float* y, size_t y_stride, uint32_t rb,
                       uint32_t first) {
  alignas(64) float w[kFloatColumns][16], acc[kMostTokens][16];
  uint32_t tokens = min_u(kMostTokens, a.tokens - first);
  for (uint32_t t = 0; t < tokens; t++) memcpy(acc[t], y + (first + t) * y_stride + 16 * rb, 64);
  for (uint32_t j = 0; j < v.columns; j += kFloatColumns) {
    uint32_t columns = min_u(kFloatColumns, v.columns - j);
    for (uint32_t i = 0; i < columns; i += 16) weights16<K>(v, rb, (j + i) / 16, w + i);
    for (uint32_t t = 0; t < tokens;) {
      const float* x[4];
      for (uint32_t n = 0; n < 4; n++)
        x[n] = a.x + static_cast<size_t>(first + min_u(t + n, tokens - 1)) * a.stride + j;
      if (t + 4 <= tokens) float_tile<4>(w, columns, x, acc + t), t += 4;
      else float_tile<1>(w, columns, x, acc + t), t++;
    }
  }
  for (uint32_t t = 0; t < tokens; t++) memcpy(y + (first + t) * y_stride + 16 * rb, acc[t], 64);
}

template <int K>
inline void exact_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                          uint32_t rb0, uint32_t rb1) {
  for (uint32_t first = 0; first < a.tokens; first += kMostTokens)
    for (uint32_t rb = rb0; rb < rb1; rb++) float_rows<K>(v, a, y, y_stride, rb, first);
}

// One token against floats of 16 or 32 bits: a row's sum is one chain of additions, so four row blocks go side by side.
template <int R, class Load>
inline void one_float_rows(const TermView& v, const Activations& a, float* y, uint32_t rb, size_t size, Load load) {
  Lanes acc[R], scale[R];
  uint32_t group = v.term->group ? v.term->group : v.columns;
  for (uint32_t r = 0; r < R; r++) acc[r] = lanes_at(y + 16 * (rb + r));
  for (uint32_t first = 0, g = 0; first < v.columns; first += group, g++) {
    const uint8_t* p[R];
    for (uint32_t r = 0; r < R; r++) {
      p[r] = v.codes[0] + (static_cast<size_t>(rb + r) * v.columns + first) * 16 * size;
      scale[r] = load_param(v, v.term->scale, rb + r, g, 1.0f);
    }
    for (size_t j = 0, n = min_u(group, v.columns - first); j < n; j++)
      for (uint32_t r = 0; r < R; r++) acc[r] = acc[r] + (load(p[r] + j * 16 * size) * scale[r]) * a.x[first + j];
  }
  for (uint32_t r = 0; r < R; r++) store(acc[r], y + 16 * (rb + r));
}

template <class Load>
inline void one_floats_of(const TermView& v, const Activations& a, float* y, uint32_t rb0, uint32_t rb1, size_t size,
                          Load load) {
  uint32_t rb = rb0;
  for (; rb + 4 <= rb1; rb += 4) one_float_rows<4>(v, a, y, rb, size, load);
  for (; rb < rb1; rb++) one_float_rows<1>(v, a, y, rb, size, load);
}

inline void one_float_product(const TermView& v, const Activations& a, const uint8_t* scratch, float* y,
                              size_t y_stride, uint32_t rb0, uint32_t rb1) {
  switch (v.term->element) {
    case format::kF16: one_floats_of(v, a, y, rb0, rb1, 2, [](const uint8_t* p) { return from_half16(p); }); break;
    case format::kBF16: one_floats_of(v, a, y, rb0, rb1, 2, [](const uint8_t* p) { return from_bfloat16(p); }); break;
    case format::kF32:
      one_floats_of(v, a, y, rb0, rb1, 4, [](const uint8_t* p) { return lanes_at(reinterpret_cast<const float*>(p)); });
      break;
    default: exact_product<format::kFloats>(v, a, scratch, y, y_stride, rb0, rb1);
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
      alignas(64) float sum[16] = {};
      Params p;
      load_params<format::kVector>(v, rb, g, &p);
      for (uint32_t i = first / t.width; i < min_u(first + group, v.columns) / t.width; i++)
        for (uint32_t b = 0; b < t.books; b++) {
          const float* entries = table + (static_cast<size_t>(i) * t.books + b) * t.levels;
          for (uint32_t r = 0; r < 16; r++) sum[r] += entries[vector_code(v, rb, i, b, r)];
        }
      store(lanes_at(y + 16 * rb) + lanes_at(sum) * p.scale, y + 16 * rb);
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
      Ints sums[kMaxRank];
      P::signs(b.at(v, rb, first / format::kTile), tables + static_cast<size_t>(first / 32) * rank * 128,
               min_u(format::kTile, v.columns - first) / 32, rank, sums);
      Lanes acc = lanes_at(y + 16 * rb);
      for (uint32_t k = 0; k < rank; k++)
        acc = acc + as_floats(sums[k]) * (from_half16(b.u + (static_cast<size_t>(rb) * rank + k) * 32) * scales[k]);
      store(acc, y + 16 * rb);
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
  k.kinds[K] = {Need::kInt8, Need::kInt8, one_int_product<P, K>, int_product<P, K>, exact_product<K>, nullptr, nullptr};
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
  k.kinds[format::kFloats] = {none, none, one_float_product, floats, floats, nullptr, nullptr};
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
