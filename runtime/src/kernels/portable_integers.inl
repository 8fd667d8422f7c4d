// Products of codes with rounded activations. What an instruction set does in its own way is a policy P; `Portable` is
// the plain one. Sums of integers are exact, so that any order of them will do; what follows a sum is here, once.

constexpr uint32_t kMostTokens = 64;              // of a block of tokens that share one reading of the codes
constexpr uint32_t kTileBytes = 128 * format::kRows;  // codes of a group of activations
constexpr uint32_t kPlanesAtOnce = 4;             // whose lookups 16 bits can sum, over a group of activations
constexpr uint32_t kTablesInRegisters = 8;

// What the policies of wide registers leave to the portable one: half of 32 columns that are stored together, and more
// tables than they have registers for.
template <int K>
inline bool is_left_to_portable(const TermView& v, uint32_t u0, uint32_t u1) {
  return (is_table(K) && v.term->tables > kTablesInRegisters) || (is_of_32(K) && ((u0 | u1) & 1));
}

struct Portable {
  // Codes of the units u0 .. u1 as bytes, [column / 4][16 rows][4 columns]; what a table says is stored + 128. Returns
  // where they are: in `out`, or in the term itself.
  template <int K>
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    int16_t c[16][16];
    uint8_t* to = out;
    for (uint32_t u = u0; u < u1; u++, to += 256) {
      ints16<K>(v, rb, u, c);
      for (int j = 0; j < 16; j++)
        for (int r = 0; r < 16; r++)
          to[64 * (j / 4) + 4 * r + j % 4] = static_cast<uint8_t>(c[j][r] + (is_table(K) ? 128 : 0));
    }
    return out;
  }

  // out[n][row] = sum over `steps` steps of 4 columns of bytes * q[n]. `small`: no byte is above 15.
  template <int N>
  static void tile_sums(const uint8_t* t, uint32_t steps, bool, const int8_t* const* q, Ints* out) {
    for (int n = 0; n < N; n++) {
      int32_t sum[16] = {};
      for (uint32_t s = 0; s < steps; s++)
        for (int j = 0; j < 4; j++) {
          int32_t x = q[n][4 * s + j];
          for (int r = 0; r < 16; r++) sum[r] += t[64 * s + 4 * r + j] * x;
        }
      out[n] = ints_at(sum);
    }
  }

  // The same for one token from the codes themselves; `total` is the sum of q.
  template <int K>
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    uint8_t bytes[kTileBytes];
    Ints sum;
    tile_sums<1>(tile<K>(v, rb, u0, u1, bytes), 4 * (u1 - u0), false, &q, &sum);
    return is_table(K) ? sum - same_ints(128 * total) : sum;
  }

  // out[row] = sum over the planes p0 <= i < p1, at most kPlanesAtOnce, of 2^(p1-1-i) times the entries that the
  // plane's nibbles look up in the tables of all columns. Other policies are not asked for half of 32 columns.
  static Ints plane_sums(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables, uint32_t p0,
                         uint32_t p1) {
    int32_t out[16] = {};
    for (uint32_t plane = p0; plane < p1; plane++) {
      const uint8_t* p = v.codes[plane] + codes_at<format::kPlanes>(v, rb, 0);
      for (int r = 0; r < 16; r++) out[r] += out[r];
      for (uint32_t u = u0; u < u1; u++)
        for (int q = 0; q < 4; q++)
          for (int r = 0; r < 16; r++)
            out[r] += tables[u * 64 + 16 * q + ((p[u / 2 * 64 + 16 * q + r] >> (4 * (u & 1))) & 15)];
    }
    return ints_at(out);
  }

  // out[k] over `units` units of 32 columns; tables [unit][rank][8][16].
  static void signs(const uint8_t* p, const int8_t* tables, uint32_t units, uint32_t rank, Ints* out) {
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

// The groups of activations of a row block, one after the other: where each lies, and its params. A group of the term
// covers one or more of them; a term without groups is one of all columns.
struct GroupOf {
  uint32_t u0, u1, next, end;  // next: group of the term after the one whose params these are; end: its first column
  Params p;

  template <int K>
  QD_INLINE void go(const TermView& v, const Activations& a, uint32_t rb, uint32_t ag) {
    uint32_t first = ag * a.group;
    u0 = first / 16, u1 = min_u(first + a.group, v.columns) / 16;
    if (first < end) return;
    load_params<K>(v, rb, next++, &p);
    end = v.term->group ? end + v.term->group : v.columns;
  }
};

// What a sum of integers adds to the rows. x = q * sx; total: the sum of q.
template <int K>
inline Lanes finish(const TermView& v, const Params& p, const Lanes& acc, const Ints& sum, float sx, int32_t total) {
  Lanes s = as_floats(sum);
  if constexpr (is_table(K)) {
    return acc + (s * (sx * v.term->table_unit)) * p.scale;
  } else {
    float step = K == format::kPlanes ? plane_step(v) : 1.0f, all_q = static_cast<float>(total);
    Lanes t = (s * step - (p.zero - all(0.5f * (step - 1.0f))) * all_q) * sx;
    if (v.term->offset.kind == format::kNo) return acc + t * p.scale;
    return acc + (t * p.scale + p.offset * (all_q * sx));
  }
}

template <class P, int K>
inline void one_int_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t, uint32_t rb0,
                            uint32_t rb1) {
  for (uint32_t rb = rb0; rb < rb1; rb++) {
    GroupOf g = {};
    Lanes acc = lanes_at(y + 16 * rb);
    for (uint32_t ag = 0; ag < a.groups; ag++) {
      g.template go<K>(v, a, rb, ag);
      Ints sum = P::template one<K>(v, rb, g.u0, g.u1, a.q + static_cast<size_t>(ag) * a.group, a.sum[ag]);
      acc = finish<K>(v, g.p, acc, sum, a.scale[ag], a.sum[ag]);
    }
    store(acc, y + 16 * rb);
  }
}

// N tokens of a block and one group, from its bytes.
template <class P, int K, int N>
inline void tile_product(const TermView& v, const Activations& a, const GroupOf& g, const uint8_t* bytes, uint32_t ag,
                         uint32_t token, float (*acc)[16]) {
  const int8_t* q[N];
  Ints sums[N];
  size_t at = static_cast<size_t>(ag) * a.tokens + token;
  for (int n = 0; n < N; n++) q[n] = a.q + (at + static_cast<size_t>(n)) * a.group;
  bool small = K == format::kNibbles || K == format::kPairs || (K == format::kPlanes && v.planes <= 4);
  P::template tile_sums<N>(bytes, 4 * (g.u1 - g.u0), small, q, sums);
  for (int n = 0; n < N; n++) {
    int32_t total = a.sum[at + static_cast<size_t>(n)];
    Ints sum = is_table(K) ? sums[n] - same_ints(128 * total) : sums[n];
    store(finish<K>(v, g.p, lanes_at(acc[n]), sum, a.scale[at + static_cast<size_t>(n)], total), acc[n]);
  }
}

template <class P, int K>
inline void int_rows(const TermView& v, const Activations& a, float* y, size_t y_stride, uint32_t rb, uint32_t first) {
  alignas(64) uint8_t buffer[kTileBytes];
  alignas(64) float acc[kMostTokens][16];
  uint32_t tokens = min_u(kMostTokens, a.tokens - first);
  for (uint32_t t = 0; t < tokens; t++) memcpy(acc[t], y + (first + t) * y_stride + 16 * rb, 64);
  GroupOf g = {};
  for (uint32_t ag = 0; ag < a.groups; ag++) {
    g.template go<K>(v, a, rb, ag);
    const uint8_t* bytes = P::template tile<K>(v, rb, g.u0, g.u1, buffer);
    uint32_t t = 0;
    for (; t + 4 <= tokens; t += 4) tile_product<P, K, 4>(v, a, g, bytes, ag, first + t, acc + t);
    for (; t < tokens; t++) tile_product<P, K, 1>(v, a, g, bytes, ag, first + t, acc + t);
  }
  for (uint32_t t = 0; t < tokens; t++) memcpy(y + (first + t) * y_stride + 16 * rb, acc[t], 64);
}

template <class P, int K>
inline void int_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                        uint32_t rb0, uint32_t rb1) {
  for (uint32_t first = 0; first < a.tokens; first += kMostTokens)
    for (uint32_t rb = rb0; rb < rb1; rb++) int_rows<P, K>(v, a, y, y_stride, rb, first);
}

// out[row] = sum over the resident planes i of 2^(p-1-i) times what they look up.
template <class P>
inline Ints lookups(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* tables) {
  uint32_t head = min_u(v.planes, kPlanesAtOnce);
  Ints sum = P::plane_sums(v, rb, u0, u1, tables, 0, head);
  if (v.planes == head) return sum;
  return (sum << (v.planes - head)) + P::plane_sums(v, rb, u0, u1, tables, head, v.planes);
}

template <class P>
inline void plane_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t, uint32_t rb0,
                          uint32_t rb1) {
  float step = 0.5f * plane_step(v);
  Lanes middle = all(0.5f * static_cast<float>((1u << v.term->planes) - 1u));
  bool offset = v.term->offset.kind != format::kNo;
  for (uint32_t rb = rb0; rb < rb1; rb++) {
    GroupOf g = {};
    Lanes acc = lanes_at(y + 16 * rb);
    for (uint32_t ag = 0; ag < a.groups; ag++) {
      g.template go<format::kPlanes>(v, a, rb, ag);
      bool half = is_left_to_portable<format::kPlanes>(v, g.u0, g.u1);
      Ints sum = half ? lookups<Portable>(v, rb, g.u0, g.u1, a.tables) : lookups<P>(v, rb, g.u0, g.u1, a.tables);
      float fsum = a.fsum[ag];
      Lanes t = (as_floats(sum) * (a.table_scale[ag] * step) + (middle - g.p.zero) * fsum) * g.p.scale;
      acc = acc + (offset ? t + g.p.offset * fsum : t);
    }
    store(acc, y + 16 * rb);
  }
}
