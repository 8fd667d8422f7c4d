// Attention in portable code, in tiles of 64 keys: small products of matrices, and the online softmax between them.
//
// The order of sums: an entry of a product is one chain over its depth, from zero. The shares of a tile are added lane by
// lane (lane = position mod 16, lower positions first), then by reduce16. What is kept of earlier tiles is scaled once per
// tile, and the tile's own product added to it.

constexpr uint32_t kPositions = 64;  // of a tile

// How many entries of a product stay in registers: rows times vectors of 16.
#if QD_VECTOR_BYTES == 64
constexpr int kRowsAtOnce = 4, kVectorsAtOnce = 4;
#elif QD_VECTOR_BYTES == 32 || defined(__aarch64__)
constexpr int kRowsAtOnce = 4, kVectorsAtOnce = 1;
#else
constexpr int kRowsAtOnce = 2, kVectorsAtOnce = 1;
#endif

inline Lanes numbers_at(const float* p) { return lanes_at(p); }
inline Lanes numbers_at(const uint16_t* p) { return from_half16(reinterpret_cast<const uint8_t*>(p)); }

template <int R, int V, class T>
QD_INLINE void float_entries(const TileProduct& m, const T* b, uint32_t r0, uint32_t c0) {
  Lanes sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = all(0.0f);
  const float* a = static_cast<const float*>(m.a) + r0 * m.a_stride;
  b += c0;
  for (uint32_t k = 0; k < m.depth; k++, b += m.b_stride) {
    Lanes x[V];
    for (int v = 0; v < V; v++) x[v] = numbers_at(b + 16 * v);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < V; v++) sum[r][v] = sum[r][v] + x[v] * a[r * m.a_stride + k];
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) {
      float* out = static_cast<float*>(m.out) + (r0 + static_cast<uint32_t>(r)) * m.out_stride + c0 + 16 * v;
      store(m.keep ? lanes_at(out) * m.keep[r0 + static_cast<uint32_t>(r)] + sum[r][v] : sum[r][v], out);
    }
}

// Pairs of int16 against pairs of int8 or int16; a pair of `a` is read as one number of 32 bits.
template <class P, int R, int V, class T>
QD_INLINE void int_entries(const TileProduct& m, const T* b, uint32_t r0, uint32_t c0) {
  Ints sum[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) sum[r][v] = same_ints(0);
  const int16_t* a = static_cast<const int16_t*>(m.a) + r0 * m.a_stride;
  b += 2 * c0;
  for (uint32_t k = 0; k < m.depth; k += 2, b += 2 * m.b_stride)
    for (int v = 0; v < V; v++) {
      typename P::Pairs x = P::pairs_at(b + 32 * v);
      for (int r = 0; r < R; r++) {
        int32_t pair;
        memcpy(&pair, a + r * m.a_stride + k, 4);
        sum[r][v] = P::add_pairs(sum[r][v], x, pair);
      }
    }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) {
      int32_t* out = static_cast<int32_t*>(m.out) + (r0 + static_cast<uint32_t>(r)) * m.out_stride + c0 + 16 * v;
      for (int i = 0; i < kParts; i++) memcpy(out + i * (QD_VECTOR_BYTES / 4), &sum[r][v].p[i], QD_VECTOR_BYTES);
    }
}

template <class T>
constexpr bool kInPairs = false;
template <>
inline constexpr bool kInPairs<int8_t> = true;
template <>
inline constexpr bool kInPairs<int16_t> = true;

template <class P>
struct TileProducts {
  template <int R, int V, class T>
  static void entries(const TileProduct& m, const T* b, uint32_t r0, uint32_t c0) {
    if constexpr (kInPairs<T>) int_entries<P, R, V>(m, b, r0, c0);
    else float_entries<R, V>(m, b, r0, c0);
  }
  template <int R, class T>
  static void rows(const TileProduct& m, const T* b, uint32_t r0) {
    uint32_t c = 0;
    for (; c + 16 * kVectorsAtOnce <= m.columns; c += 16 * kVectorsAtOnce) entries<R, kVectorsAtOnce>(m, b, r0, c);
    if constexpr (kVectorsAtOnce > 2)
      for (; c + 32 <= m.columns; c += 32) entries<R, 2>(m, b, r0, c);
    for (; c < m.columns; c += 16) entries<R, 1>(m, b, r0, c);
  }
  // T: float, uint16_t (halves), int8_t or int16_t (pairs).
  template <class T>
  static void product(const TileProduct& m) {
    const T* b = static_cast<const T*>(m.b);
    uint32_t r = 0;
    for (; r + kRowsAtOnce <= m.rows; r += kRowsAtOnce) rows<kRowsAtOnce>(m, b, r);
    for (; r < m.rows; r++) rows<1>(m, b, r);
  }
};

inline void widen_f16(const uint16_t* x, uint32_t n, float* out) {
  for (uint32_t j = 0; j < n; j += 16) store(numbers_at(x + j), out + j);
}
inline void widen_int8(const int8_t* x, uint32_t n, int16_t* out) {
  for (uint32_t j = 0; j < n; j++) out[j] = x[j];
}

inline float round_int16(const float* x, uint32_t n, float levels, int16_t* out) {
  float most = 0.0f;
  for (uint32_t j = 0; j < n; j++) most = max_f(abs_f(x[j]), most);
  float inverse = most > kTiny ? levels / most : 0.0f;
  for (uint32_t j = 0; j < n; j++) out[j] = static_cast<int16_t>(round_to_int(x[j] * inverse));
  return most > kTiny ? most / levels : 0.0f;
}

inline void scale_scores(float* scores, float factor) {
  for (uint32_t i = 0; i < kPositions; i++) scores[i] *= factor;
}

inline void float_scores(const int32_t* sums, const float* key_scale, float factor, float* scores) {
  for (uint32_t i = 0; i < kPositions; i++) scores[i] = static_cast<float>(sums[i]) * key_scale[i] * factor;
}

inline float tile_shares(float* scores, uint32_t begin, uint32_t end, float* most, float* total) {
  const float lowest = float_of(0xff800000u);
  for (uint32_t i = 0; i < begin; i++) scores[i] = lowest;
  for (uint32_t i = end; i < kPositions; i++) scores[i] = lowest;
  float m[16], s[16], all_most = *most;
  for (int r = 0; r < 16; r++) m[r] = max_f(max_f(scores[r], scores[r + 16]), max_f(scores[r + 32], scores[r + 48]));
  for (int r = 0; r < 16; r++) all_most = max_f(m[r], all_most);
  if (bits_of(all_most) == 0xff800000u) {  // nothing is seen yet
    memset(scores, 0, kPositions * sizeof(float));
    return 1.0f;
  }
  for (uint32_t i = 0; i < kPositions; i++) scores[i] = exp_f(scores[i] - all_most);
  for (int r = 0; r < 16; r++) s[r] = ((scores[r] + scores[r + 16]) + scores[r + 32]) + scores[r + 48];
  float keep = exp_f(*most - all_most);
  *total = *total * keep + reduce16(s);
  *most = all_most;
  return keep;
}

inline void join_shares(float* values, float* most, float* total, const float* other, float other_most,
                        float other_total, uint32_t n) {
  float all_most = max_f(other_most, *most);
  if (bits_of(all_most) == 0xff800000u) return;  // neither has seen anything
  float keep = exp_f(*most - all_most), factor = exp_f(other_most - all_most);
  for (uint32_t j = 0; j < n; j++) values[j] = values[j] * keep + other[j] * factor;
  *total = *total * keep + other_total * factor;
  *most = all_most;
}
inline void add_ints(float* to, float keep, const int32_t* x, float factor, uint32_t n) {
  for (uint32_t j = 0; j < n; j++) to[j] = to[j] * keep + static_cast<float>(x[j]) * factor;
}
