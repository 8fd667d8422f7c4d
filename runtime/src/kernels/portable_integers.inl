// Products of codes with rounded activations. What an instruction set does in its own way is a policy P; `Portable` is
// the plain one. Sums of integers are exact, so that any order of them will do; what follows a sum is here, once.

constexpr uint32_t kMostTokens = 64;              // of a block of tokens that share one reading of the codes
constexpr uint32_t kTileBytes = 128 * format::kRows;  // codes of a group of activations
constexpr uint32_t kPlanesAtOnce = 4;             // whose lookups 16 bits can sum, over a group of activations
constexpr uint32_t kTablesInRegisters = 8;

// What the policies of wide registers leave to the plain way: half of 32 columns that are stored together, and more
// tables than they have registers for.
template <class T>
inline bool is_left_to_portable(const TermView& v, uint32_t u0, uint32_t u1) {
  return (T::kLevels > 0 && v.term->tables > kTablesInRegisters) || (T::kOf32 && ((u0 | u1) & 1));
}

struct Portable {
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

  // Two neighbours in each of 16 columns, as integers of 32 bits.
  struct Pairs {
    Ints first, second;
  };
  template <class T>
  static Pairs pairs_at(const T* p) {
    int32_t first[16], second[16];
    for (int r = 0; r < 16; r++) first[r] = p[2 * r], second[r] = p[2 * r + 1];
    return {ints_at(first), ints_at(second)};
  }
  // sum + first * the low half of `pair` + second * its high half
  static Ints add_pairs(const Ints& sum, const Pairs& x, int32_t pair) {
    int32_t low = static_cast<int16_t>(pair & 0xffff), high = pair >> 16;
    Ints r;
    for (int i = 0; i < kParts; i++) r.p[i] = sum.p[i] + x.first.p[i] * low + x.second.p[i] * high;
    return r;
  }
};

template <class P, class T>
struct Codes;

template <class P, class T>
struct PlainCodes {
  // Codes of the units u0 .. u1 as bytes, [column / 4][16 rows][4 columns]; what a table says is stored + 128. Returns
  // where they are: in `out`, or in the term itself.
  static const uint8_t* tile(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, uint8_t* out) {
    int16_t c[16][16];
    uint8_t* to = out;
    for (uint32_t u = u0; u < u1; u++, to += 256) {
      ints16<T>(v, rb, u, c);
      for (int j = 0; j < 16; j++)
        for (int r = 0; r < 16; r++)
          to[64 * (j / 4) + 4 * r + j % 4] = static_cast<uint8_t>(c[j][r] + (T::kLevels > 0 ? 128 : 0));
    }
    return out;
  }

  // The sums of one token from the codes themselves; `total` is the sum of q.
  static Ints one(const TermView& v, uint32_t rb, uint32_t u0, uint32_t u1, const int8_t* q, int32_t total) {
    alignas(64) uint8_t bytes[kTileBytes];
    Ints sum;
    P::template tile_sums<1>(Codes<P, T>::tile(v, rb, u0, u1, bytes), 4 * (u1 - u0), false, &q, &sum);
    return T::kLevels > 0 ? sum - same_ints(128 * total) : sum;
  }
};

// The codes of a kind for a policy. What an instruction set does in its own way is a specialization of this, in the file
// of the kind.
template <class P, class T>
struct Codes : PlainCodes<P, T> {};

// The groups of activations of a row block, one after the other: where each lies, and its params. A group of the term
// covers one or more of them; a term without groups is one of all columns.
struct GroupOf {
  uint32_t u0, u1, next, end;  // next: group of the term after the one whose params these are; end: its first column
  Params p;

  template <class T>
  QD_INLINE void go(const TermView& v, const Activations& a, uint32_t rb, uint32_t ag) {
    uint32_t first = ag * a.group;
    u0 = first / 16, u1 = min_u(first + a.group, v.columns) / 16;
    if (first < end) return;
    load_params<T>(v, rb, next++, &p);
    end = v.term->group ? end + v.term->group : v.columns;
  }
};

// What a sum of integers adds to the rows. x = q * sx; total: the sum of q.
template <class T>
inline Lanes finish(const TermView& v, const Params& p, const Lanes& acc, const Ints& sum, float sx, int32_t total) {
  Lanes s = as_floats(sum);
  if constexpr (T::kLevels > 0) {
    return acc + (s * (sx * v.term->table_unit)) * p.scale;
  } else {
    float step = T::step(v), all_q = static_cast<float>(total);
    Lanes t = (s * step - (p.zero - all(0.5f * (step - 1.0f))) * all_q) * sx;
    if (v.term->offset.kind == format::kNo) return acc + t * p.scale;
    return acc + (t * p.scale + p.offset * (all_q * sx));
  }
}

template <class P, class T>
inline void one_int_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t, uint32_t rb0,
                            uint32_t rb1) {
  for (uint32_t rb = rb0; rb < rb1; rb++) {
    GroupOf g = {};
    Lanes acc = lanes_at(y + 16 * rb);
    for (uint32_t ag = 0; ag < a.groups; ag++) {
      g.template go<T>(v, a, rb, ag);
      Ints sum = Codes<P, T>::one(v, rb, g.u0, g.u1, a.q + static_cast<size_t>(ag) * a.group, a.sum[ag]);
      acc = finish<T>(v, g.p, acc, sum, a.scale[ag], a.sum[ag]);
    }
    store(acc, y + 16 * rb);
  }
}

// N tokens of a block and one group, from its bytes.
template <class P, class T, int N>
inline void tile_product(const TermView& v, const Activations& a, const GroupOf& g, const uint8_t* bytes, uint32_t ag,
                         uint32_t token, float (*acc)[16]) {
  const int8_t* q[N];
  Ints sums[N];
  size_t at = static_cast<size_t>(ag) * a.tokens + token;
  for (int n = 0; n < N; n++) q[n] = a.q + (at + static_cast<size_t>(n)) * a.group;
  P::template tile_sums<N>(bytes, 4 * (g.u1 - g.u0), T::small(v), q, sums);
  for (int n = 0; n < N; n++) {
    int32_t total = a.sum[at + static_cast<size_t>(n)];
    Ints sum = T::kLevels > 0 ? sums[n] - same_ints(128 * total) : sums[n];
    store(finish<T>(v, g.p, lanes_at(acc[n]), sum, a.scale[at + static_cast<size_t>(n)], total), acc[n]);
  }
}

template <class P, class T>
inline void int_rows(const TermView& v, const Activations& a, float* y, size_t y_stride, uint32_t rb, uint32_t first) {
  alignas(64) uint8_t buffer[kTileBytes];
  alignas(64) float acc[kMostTokens][16];
  uint32_t tokens = min_u(kMostTokens, a.tokens - first);
  for (uint32_t t = 0; t < tokens; t++) memcpy(acc[t], y + (first + t) * y_stride + 16 * rb, 64);
  GroupOf g = {};
  for (uint32_t ag = 0; ag < a.groups; ag++) {
    g.template go<T>(v, a, rb, ag);
    const uint8_t* bytes = Codes<P, T>::tile(v, rb, g.u0, g.u1, buffer);
    uint32_t t = 0;
    for (; t + 4 <= tokens; t += 4) tile_product<P, T, 4>(v, a, g, bytes, ag, first + t, acc + t);
    for (; t < tokens; t++) tile_product<P, T, 1>(v, a, g, bytes, ag, first + t, acc + t);
  }
  for (uint32_t t = 0; t < tokens; t++) memcpy(y + (first + t) * y_stride + 16 * rb, acc[t], 64);
}

template <class P, class T>
inline void int_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                        uint32_t rb0, uint32_t rb1) {
  for (uint32_t first = 0; first < a.tokens; first += kMostTokens)
    for (uint32_t rb = rb0; rb < rb1; rb++) int_rows<P, T>(v, a, y, y_stride, rb, first);
}
