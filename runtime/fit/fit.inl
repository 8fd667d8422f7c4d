// The loops, for one instruction set. A panel is 64 rows: 4 registers of 16 rows for each level. A vector number is
// level * 4 + register, of `wide` = 4 levels in all; what belongs to columns lies [column][wide], what an update takes
// [block column] of four vectors each, so that it reads on: [wide / 4][block][4].
constexpr int kRegisters = 4, kPanel = 16 * kRegisters, kColumns = 6;
constexpr int kTogether = QDF_BYTES == 64 ? 4 : 1;  // vectors of an update that share the numbers of a matrix

template <class T>
struct Room {
  T* at;
  explicit Room(size_t n) : at(static_cast<T*>(aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64))) {
    if (at != nullptr) memset(static_cast<void*>(at), 0, n * sizeof(T));
  }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() { free(at); }
  T& operator[](size_t i) const { return at[i]; }
};

inline size_t packed_floats(uint32_t columns, uint32_t block, uint32_t from) {
  return static_cast<size_t>((columns - from + kColumns - 1) / kColumns) * block * kColumns;
}

inline void pack_block(uint32_t columns, uint32_t block, uint32_t at, uint32_t from, const float* matrix, float* packed) {
  for (uint32_t first = from; first < columns; first += kColumns)
    for (uint32_t j = 0; j < block; ++j)
      for (uint32_t k = first; k < first + kColumns; ++k)
        *packed++ = k < columns ? matrix[static_cast<size_t>(at + j) * columns + k] : 0.0f;
}

// state[k][..] -= sum over j of taken[j] * packed[j][k] for columns [from, columns).
template <int kWide>
void update(Lanes* state, const Lanes* taken, const float* packed, uint32_t block, uint32_t from, uint32_t columns) {
  for (int quad = 0; quad < kWide / 4; ++quad) {
    const Lanes* e = taken + static_cast<size_t>(quad) * block * 4;
    const float* numbers = packed;
    for (uint32_t first = from; first < columns; first += kColumns, numbers += static_cast<size_t>(block) * kColumns) {
      uint32_t count = columns - first < kColumns ? columns - first : kColumns;
      for (int x = 0; x < 4; x += kTogether) {
        Lanes sum[kColumns][kTogether];
        for (int i = 0; i < kColumns; ++i)
          for (int y = 0; y < kTogether; ++y) sum[i][y] = all(0);
        for (uint32_t j = 0; j < block; ++j)
#pragma GCC unroll 6
          for (int i = 0; i < kColumns; ++i) {
            Lanes number = all(numbers[j * kColumns + i]);
            for (int y = 0; y < kTogether; ++y) sum[i][y] = fused(number, e[j * 4 + x + y], sum[i][y]);
          }
        for (uint32_t i = 0; i < count; ++i)
          for (int y = 0; y < kTogether; ++y) {
            Lanes& to = state[static_cast<size_t>(first + i) * kWide + quad * 4 + x + y];
            to = to - sum[i][y];
          }
      }
    }
  }
}

template <int kWide>
QDF_INLINE Lanes& in_block(Lanes* taken, uint32_t block, int vector, uint32_t j) {
  return taken[(static_cast<size_t>(vector / 4) * block + j) * 4 + vector % 4];
}

// The code whose weighted squared errors over all levels are least; of equal ones the least.
template <int kLevels>
QDF_INLINE Ints best_code(const Lanes* target, const Lanes* scale, const Lanes* weight) {
  constexpr int kLeaves = 1 << kLevels;
  Lanes cost[kLeaves];
  Ints code[kLeaves];
  auto error = [&](int level, int leaf) {
    float step = static_cast<float>(1 << (kLevels - level));
    float value = static_cast<float>(leaf) * step + 0.5f * (step - static_cast<float>(kLeaves));
    Lanes d = scale[level - 1] * all(value) - target[level - 1];
    return weight[level - 1] * d * d;
  };
  for (int leaf = 0; leaf < kLeaves; ++leaf) {
    cost[leaf] = error(kLevels, leaf);
    code[leaf] = same(leaf);
  }
  for (int level = kLevels - 1; level >= 0; --level)
    for (int leaf = 0; leaf < 1 << level; ++leaf) {
      Lanes least = cost[2 * leaf];
      Ints which = code[2 * leaf];
      lesser(least, which, cost[2 * leaf + 1], code[2 * leaf + 1]);
      cost[leaf] = level > 0 ? least + error(level, leaf) : least;
      code[leaf] = which;
    }
  return code[0];
}

// What the loops hold of the rows of a panel.
template <int kLevels>
struct Panel {
  static constexpr int kWide = kRegisters * kLevels;
  const qdf_rows& in;
  uint32_t first, groups;

  Panel(const qdf_rows& rows, uint32_t from) : in(rows), first(from), groups(rows.columns / rows.group) {}

  uint32_t row(int part, int x) const { return first + static_cast<uint32_t>(16 * part + x); }
  bool here(int part, int x) const { return row(part, x) < in.rows; }

  void load_targets(Lanes* to, const int32_t* order, int levels = kLevels) const {
    for (int l = 0; l < levels; ++l)
      for (int part = 0; part < kRegisters; ++part)
        for (int x = 0; x < 16; ++x) {
          const float* from = here(part, x) ? in.targets[l] + static_cast<size_t>(row(part, x)) * in.columns : nullptr;
          for (uint32_t k = 0; k < in.columns; ++k)
            set_lane(to[static_cast<size_t>(k) * (kRegisters * levels) + l * kRegisters + part], x,
                     from ? from[order ? order[k] : k] : 0.0f);
        }
  }
  float* scale_at(uint32_t r, uint32_t g) const { return in.scales + (static_cast<size_t>(r) * groups + g) * kLevels; }
  void load_scales(Lanes* to) const {
    for (uint32_t g = 0; g < groups; ++g)
      for (int l = 0; l < kLevels; ++l)
        for (int part = 0; part < kRegisters; ++part)
          for (int x = 0; x < 16; ++x)
            set_lane(to[static_cast<size_t>(g) * kWide + l * kRegisters + part], x,
                     here(part, x) ? scale_at(row(part, x), g)[l] : 1e-6f);
  }
  void store_scales(const Lanes* from) const {
    for (uint32_t g = 0; g < groups; ++g)
      for (int l = 0; l < kLevels; ++l)
        for (int part = 0; part < kRegisters; ++part)
          for (int x = 0; x < 16; ++x)
            if (here(part, x))
              scale_at(row(part, x), g)[l] = lane(from[static_cast<size_t>(g) * kWide + l * kRegisters + part], x);
  }
  void load_codes_of(uint8_t* to) const {  // [columns][64]
    for (int x = 0; x < kPanel; ++x)
      if (first + static_cast<uint32_t>(x) < in.rows)
        for (uint32_t k = 0; k < in.columns; ++k)
          to[static_cast<size_t>(k) * kPanel + x] = in.codes[static_cast<size_t>(first + x) * in.columns + k];
  }
  void store_codes_of(const uint8_t* from, const int32_t* order) const {
    for (int x = 0; x < kPanel; ++x)
      if (first + static_cast<uint32_t>(x) < in.rows)
        for (uint32_t k = 0; k < in.columns; ++k)
          in.codes[static_cast<size_t>(first + x) * in.columns + (order ? order[k] : k)] =
              from[static_cast<size_t>(k) * kPanel + x];
  }
};

template <int kLevels>
struct Rounding {
  static constexpr int kWide = kRegisters * kLevels;
  const qdf_rows& in;
  uint32_t block;
  const float* factor;
  const int32_t* order;
  Room<Lanes> state, taken, scales;
  Room<uint8_t> codes;

  Rounding(const qdf_rows& rows, uint32_t b, const float* f, const int32_t* o)
      : in(rows), block(b), factor(f), order(o), state(static_cast<size_t>(rows.columns) * kWide),
        taken(static_cast<size_t>(b) * kWide), scales(static_cast<size_t>(rows.columns / rows.group) * kWide),
        codes(static_cast<size_t>(rows.columns) * kPanel) {}
  bool has_room() const { return state.at && taken.at && scales.at && codes.at; }

  void column(uint32_t begin, uint32_t j, int part) {
    uint32_t k = begin + j;
    const float* row = factor + static_cast<size_t>(k) * in.columns;
    const Lanes* own = &scales[static_cast<size_t>(static_cast<uint32_t>(order[k]) / in.group) * kWide];
    Lanes target[kLevels], scale[kLevels], weight[kLevels], inverse = all(1.0f / row[k]);
    for (int l = 0; l < kLevels; ++l) {
      target[l] = state[static_cast<size_t>(k) * kWide + l * kRegisters + part];
      scale[l] = own[l * kRegisters + part];
      weight[l] = all(in.weights[l]);
    }
    Ints code = best_code<kLevels>(target, scale, weight);
    store_codes(code, &codes[static_cast<size_t>(k) * kPanel + 16 * part]);
    Lanes error[kLevels];
    for (int l = 0; l < kLevels; ++l) {
      error[l] = (target[l] - scale[l] * reading(code, kLevels, l + 1)) * inverse;
      in_block<kWide>(taken.at, block, l * kRegisters + part, j) = error[l];
    }
    for (uint32_t behind = k + 1; behind < begin + block; ++behind) {
      Lanes number = all(row[behind]), *to = &state[static_cast<size_t>(behind) * kWide + part];
      for (int l = 0; l < kLevels; ++l) to[l * kRegisters] = to[l * kRegisters] - error[l] * number;
    }
  }

  void run(const float* const* packed) {
    for (uint32_t first = 0; first < in.rows; first += kPanel) {
      Panel<kLevels> panel(in, first);
      panel.load_targets(state.at, order);
      panel.load_scales(scales.at);
      for (uint32_t begin = 0; begin < in.columns; begin += block) {
        for (uint32_t j = 0; j < block; ++j)
          for (int part = 0; part < kRegisters; ++part) column(begin, j, part);
        if (begin + block < in.columns)
          update<kWide>(state.at, taken.at, packed[begin / block], block, begin + block, in.columns);
      }
      panel.store_codes_of(codes.at, order);
    }
  }
};

template <int kLevels>
struct Descent {
  static constexpr int kWide = kRegisters * kLevels;
  const qdf_rows& in;
  const float* moment;
  const float* const* packed;
  uint32_t groups;
  Room<Lanes> product, target, taken, local, along, read, scales;  // product: (W - W_l) H
  Room<uint8_t> codes;

  Descent(const qdf_rows& rows, const float* h, const float* const* p)
      : in(rows), moment(h), packed(p), groups(rows.columns / rows.group),
        product(static_cast<size_t>(rows.columns) * kWide), target(static_cast<size_t>(rows.columns) * kWide),
        taken(static_cast<size_t>(rows.group) * kWide), local(static_cast<size_t>(rows.group) * kWide),
        along(static_cast<size_t>(rows.group) * kLevels), read(static_cast<size_t>(rows.group) * kLevels),
        scales(static_cast<size_t>(groups) * kWide), codes(static_cast<size_t>(rows.columns) * kPanel) {}
  bool has_room() const {
    return product.at && target.at && taken.at && local.at && along.at && read.at && scales.at && codes.at;
  }

  Ints code(uint32_t k, int part) const { return load_codes(&codes[static_cast<size_t>(k) * kPanel + 16 * part]); }
  float h(uint32_t j, uint32_t k) const { return moment[static_cast<size_t>(j) * in.columns + k]; }

  void multiply() {
    memset(static_cast<void*>(product.at), 0, static_cast<size_t>(in.columns) * kWide * sizeof(Lanes));
    for (uint32_t g = 0; g < groups; ++g) {
      for (uint32_t j = 0; j < in.group; ++j)
        for (int part = 0; part < kRegisters; ++part) {
          uint32_t k = g * in.group + j;
          Ints c = code(k, part);
          for (int l = 0; l < kLevels; ++l) {
            int v = l * kRegisters + part;
            in_block<kWide>(taken.at, in.group, v, j) =
                scales[static_cast<size_t>(g) * kWide + v] * reading(c, kLevels, l + 1) -
                target[static_cast<size_t>(k) * kWide + v];
          }
        }
      update<kWide>(product.at, taken.at, packed[g], in.group, 0, in.columns);
    }
  }

  // The least of each level's error over its scale alone; `local` follows.
  void scale_step(uint32_t g, int part, Lanes* fresh) {
    uint32_t begin = g * in.group;
    for (uint32_t j = 0; j < in.group; ++j) {
      Ints c = code(begin + j, part);
      for (int l = 0; l < kLevels; ++l) read[j * kLevels + l] = reading(c, kLevels, l + 1);
    }
    Lanes curvature[kLevels], slope[kLevels];
    for (int l = 0; l < kLevels; ++l) curvature[l] = slope[l] = all(0);
    for (uint32_t k = 0; k < in.group; ++k) {
      Lanes sum[kLevels];
      for (int l = 0; l < kLevels; ++l) sum[l] = all(0);
      for (uint32_t j = 0; j < in.group; ++j) {
        Lanes number = all(h(begin + j, begin + k));
        for (int l = 0; l < kLevels; ++l) sum[l] = fused(number, read[j * kLevels + l], sum[l]);
      }
      for (int l = 0; l < kLevels; ++l) {
        along[k * kLevels + l] = sum[l];
        curvature[l] = curvature[l] + sum[l] * read[k * kLevels + l];
        slope[l] = slope[l] + local[static_cast<size_t>(k) * kWide + l * kRegisters + part] * read[k * kLevels + l];
      }
    }
    for (int l = 0; l < kLevels; ++l) {
      int v = l * kRegisters + part;
      Lanes old = fresh[l], step = slope[l] / (curvature[l] * all(1.001f) + all(1e-20f));
      fresh[l] = if_positive(old + step, old);
      step = fresh[l] - old;
      for (uint32_t j = 0; j < in.group; ++j)
        local[static_cast<size_t>(j) * kWide + v] = local[static_cast<size_t>(j) * kWide + v] - step * along[j * kLevels + l];
      scales[static_cast<size_t>(g) * kWide + v] = fresh[l];
    }
  }

  void code_step(uint32_t g, uint32_t j, int part, const Lanes* old, const Lanes* fresh) {
    uint32_t k = g * in.group + j;
    float own = h(k, k);
    Ints before = code(k, part), after = before;
    Lanes was[kLevels], target_of[kLevels], weight[kLevels];
    for (int l = 0; l < kLevels; ++l) was[l] = reading(before, kLevels, l + 1);
    if (own > 0) {
      for (int l = 0; l < kLevels; ++l) {
        target_of[l] = fresh[l] * was[l] + local[static_cast<size_t>(j) * kWide + l * kRegisters + part] * all(1.0f / own);
        weight[l] = all(in.weights[l]);
      }
      after = best_code<kLevels>(target_of, fresh, weight);
    }
    bool moved = differ(before, after);
    if (moved) store_codes(after, &codes[static_cast<size_t>(k) * kPanel + 16 * part]);
    for (int l = 0; l < kLevels; ++l) {
      int v = l * kRegisters + part;
      Lanes now = reading(after, kLevels, l + 1);
      in_block<kWide>(taken.at, in.group, v, j) = own > 0 ? fresh[l] * now - old[l] * was[l] : all(0);
      if (!moved) continue;
      Lanes change = fresh[l] * (now - was[l]);
      for (uint32_t behind = j + 1; behind < in.group; ++behind) {
        Lanes& to = local[static_cast<size_t>(behind) * kWide + v];
        to = to - change * all(h(k, g * in.group + behind));
      }
    }
  }

  void sweep() {
    for (uint32_t g = 0; g < groups; ++g) {
      size_t at = static_cast<size_t>(g) * in.group * kWide;
      memcpy(static_cast<void*>(local.at), product.at + at, static_cast<size_t>(in.group) * kWide * sizeof(Lanes));
      for (int part = 0; part < kRegisters; ++part) {
        Lanes old[kLevels], fresh[kLevels];
        for (int l = 0; l < kLevels; ++l) old[l] = fresh[l] = scales[static_cast<size_t>(g) * kWide + l * kRegisters + part];
        scale_step(g, part, fresh);
        for (uint32_t j = 0; j < in.group; ++j) code_step(g, j, part, old, fresh);
      }
      update<kWide>(product.at, taken.at, packed[g], in.group, 0, in.columns);
    }
  }

  void errors_of(const Panel<kLevels>& panel, double* errors) const {
    for (int l = 0; l < kLevels; ++l)
      for (int part = 0; part < kRegisters; ++part) {
        double sum[16] = {};
        for (uint32_t k = 0; k < in.columns; ++k) {
          size_t at = static_cast<size_t>(k) * kWide + l * kRegisters + part;
          Lanes scale = scales[static_cast<size_t>(k / in.group) * kWide + l * kRegisters + part];
          Lanes part_of = (target[at] - scale * reading(code(k, part), kLevels, l + 1)) * product[at];
          for (int x = 0; x < 16; ++x) sum[x] += static_cast<double>(lane(part_of, x));
        }
        for (int x = 0; x < 16; ++x)
          if (panel.here(part, x)) errors[static_cast<size_t>(panel.row(part, x)) * kLevels + l] = sum[x];
      }
  }

  void run(uint32_t sweeps, double* errors) {
    for (uint32_t first = 0; first < in.rows; first += kPanel) {
      Panel<kLevels> panel(in, first);
      panel.load_targets(target.at, nullptr);
      panel.load_scales(scales.at);
      panel.load_codes_of(codes.at);
      multiply();
      for (uint32_t i = 0; i < sweeps; ++i) sweep();
      if (errors) errors_of(panel, errors);
      panel.store_scales(scales.at);
      panel.store_codes_of(codes.at, nullptr);
    }
  }
};

template <int kLevels>
struct Refit {
  static constexpr int kWide = kRegisters * kLevels;
  const qdf_rows& in;
  const float* const* packed;
  uint32_t groups;
  bool shared;  // all levels stand for the same weight
  Room<Lanes> read, blocks, along, target, wanted, normal, right, scales;
  Room<uint8_t> codes;

  Refit(const qdf_rows& rows, const float* const* p)
      : in(rows), packed(p), groups(rows.columns / rows.group), shared(true), read(size()), blocks(size()), along(size()),
        target(size()), wanted(size()), normal(static_cast<size_t>(groups) * groups * kWide),
        right(static_cast<size_t>(groups) * kWide), scales(static_cast<size_t>(groups) * kWide),
        codes(static_cast<size_t>(rows.columns) * kPanel) {
    for (int l = 1; l < kLevels; ++l) shared &= rows.targets[l] == rows.targets[0];
  }
  size_t size() const { return static_cast<size_t>(in.columns) * kWide; }
  bool has_room() const {
    return read.at && blocks.at && along.at && target.at && wanted.at && normal.at && right.at && scales.at && codes.at;
  }

  // Numbers [column][wide] as updates take them, group by group, times a sign.
  template <int kOf>
  void regroup(const Lanes* from, Lanes* to, float sign) const {
    for (uint32_t k = 0; k < in.columns; ++k)
      for (int v = 0; v < kOf; ++v) {
        Lanes* group = to + static_cast<size_t>(k / in.group) * in.group * kOf;
        in_block<kOf>(group, in.group, v, k % in.group) = from[static_cast<size_t>(k) * kOf + v] * all(sign);
      }
  }

  // wanted = W H.
  template <int kOf>
  void project(const Panel<kLevels>& panel) {
    panel.load_targets(along.at, nullptr, kOf / kRegisters);
    regroup<kOf>(along.at, target.at, -1.0f);
    memset(static_cast<void*>(wanted.at), 0, static_cast<size_t>(in.columns) * kOf * sizeof(Lanes));
    for (uint32_t g = 0; g < groups; ++g)
      update<kOf>(wanted.at, target.at + static_cast<size_t>(g) * in.group * kOf, packed[g], in.group, 0, in.columns);
  }

  void equations() {
    for (uint32_t a = 0; a < groups; ++a) {
      uint32_t begin = a * in.group, from = begin / kColumns * kColumns;
      for (int v = 0; v < kWide; ++v) {
        Lanes sum = all(0);
        for (uint32_t k = begin; k < begin + in.group; ++k) {
          Lanes w = shared ? wanted[static_cast<size_t>(k) * kRegisters + v % kRegisters] : wanted[static_cast<size_t>(k) * kWide + v];
          sum = fused(w, read[static_cast<size_t>(k) * kWide + v], sum);
        }
        right[static_cast<size_t>(a) * kWide + v] = sum;
      }
      memset(static_cast<void*>(along.at + static_cast<size_t>(from) * kWide), 0,
             static_cast<size_t>(in.columns - from) * kWide * sizeof(Lanes));
      update<kWide>(along.at, blocks.at + static_cast<size_t>(begin) * kWide,
                    packed[a] + static_cast<size_t>(from) * in.group, in.group, from, in.columns);
      for (uint32_t c = a; c < groups; ++c)
        for (int v = 0; v < kWide; ++v) {
          Lanes sum = all(0);
          for (uint32_t k = c * in.group; k < (c + 1) * in.group; ++k)
            sum = sum - along[static_cast<size_t>(k) * kWide + v] * read[static_cast<size_t>(k) * kWide + v];
          normal[(static_cast<size_t>(c) * groups + a) * kWide + v] = sum;
        }
    }
  }

  Lanes& entry(uint32_t row, uint32_t column, int v) const {
    return normal[(static_cast<size_t>(row) * groups + column) * kWide + v];
  }

  // Cholesky's decomposition of the 16 systems of a vector, and their solution in `right`.
  void solve(int v, float ridge) {
    Lanes mean = all(0);
    for (uint32_t a = 0; a < groups; ++a) mean = mean + entry(a, a, v);
    mean = mean * all(1e-9f / static_cast<float>(groups)) + all(1e-20f);
    for (uint32_t a = 0; a < groups; ++a) {
      Lanes more = entry(a, a, v) * all(ridge) + mean;
      entry(a, a, v) = entry(a, a, v) + more;
      right[static_cast<size_t>(a) * kWide + v] =
          right[static_cast<size_t>(a) * kWide + v] + more * scales[static_cast<size_t>(a) * kWide + v];
    }
    for (uint32_t a = 0; a < groups; ++a)
      for (uint32_t c = a; c < groups; ++c) {
        Lanes sum = entry(c, a, v);
        for (uint32_t k = 0; k < a; ++k) sum = sum - entry(c, k, v) * entry(a, k, v);
        entry(c, a, v) = c == a ? root(at_least(sum, 1e-30f)) : sum / entry(a, a, v);
      }
    for (uint32_t a = 0; a < groups; ++a) {
      Lanes sum = right[static_cast<size_t>(a) * kWide + v];
      for (uint32_t k = 0; k < a; ++k) sum = sum - entry(a, k, v) * right[static_cast<size_t>(k) * kWide + v];
      right[static_cast<size_t>(a) * kWide + v] = sum / entry(a, a, v);
    }
    for (uint32_t a = groups; a-- > 0;) {
      Lanes sum = right[static_cast<size_t>(a) * kWide + v];
      for (uint32_t k = a + 1; k < groups; ++k) sum = sum - entry(k, a, v) * right[static_cast<size_t>(k) * kWide + v];
      Lanes solved = sum / entry(a, a, v);
      right[static_cast<size_t>(a) * kWide + v] = solved;
      scales[static_cast<size_t>(a) * kWide + v] = if_positive(solved, scales[static_cast<size_t>(a) * kWide + v]);
    }
  }

  void run(float ridge) {
    for (uint32_t first = 0; first < in.rows; first += kPanel) {
      Panel<kLevels> panel(in, first);
      panel.load_codes_of(codes.at);
      panel.load_scales(scales.at);
      for (uint32_t k = 0; k < in.columns; ++k)
        for (int part = 0; part < kRegisters; ++part) {
          Ints c = load_codes(&codes[static_cast<size_t>(k) * kPanel + 16 * part]);
          for (int l = 0; l < kLevels; ++l)
            read[static_cast<size_t>(k) * kWide + l * kRegisters + part] = reading(c, kLevels, l + 1);
        }
      regroup<kWide>(read.at, blocks.at, 1.0f);
      if (shared) project<kRegisters>(panel);
      else project<kWide>(panel);
      equations();
      for (int v = 0; v < kWide; ++v) solve(v, ridge);
      panel.store_scales(scales.at);
    }
  }
};

template <int kLevels>
int round_rows(const qdf_rows& rows, uint32_t block, const float* factor, const float* const* packed, const int32_t* order) {
  Rounding<kLevels> work(rows, block, factor, order);
  if (!work.has_room()) return 1;
  work.run(packed);
  return 0;
}

template <int kLevels>
int descend_rows(const qdf_rows& rows, const float* moment, const float* const* packed, uint32_t sweeps, double* errors) {
  Descent<kLevels> work(rows, moment, packed);
  if (!work.has_room()) return 1;
  work.run(sweeps, errors);
  return 0;
}

template <int kLevels>
int refit_rows(const qdf_rows& rows, const float* const* packed, float ridge) {
  Refit<kLevels> work(rows, packed);
  if (!work.has_room()) return 1;
  work.run(ridge);
  return 0;
}

// Calls `run` with the number of levels as a constant; 1 where there are no loops for it.
template <class Run>
int at_levels(uint32_t levels, Run run) {
  switch (levels) {
    case 1: return run(std::integral_constant<int, 1>());
    case 2: return run(std::integral_constant<int, 2>());
    case 3: return run(std::integral_constant<int, 3>());
    case 4: return run(std::integral_constant<int, 4>());
    case 8: return run(std::integral_constant<int, 8>());
    default: return 1;
  }
}

int round_any(const qdf_rows& rows, uint32_t block, const float* factor, const float* const* packed, const int32_t* order) {
  return at_levels(rows.levels, [&](auto n) { return round_rows<n.value>(rows, block, factor, packed, order); });
}

int descend_any(const qdf_rows& rows, const float* moment, const float* const* packed, uint32_t sweeps, double* errors) {
  return at_levels(rows.levels, [&](auto n) { return descend_rows<n.value>(rows, moment, packed, sweeps, errors); });
}

int refit_any(const qdf_rows& rows, const float* const* packed, float ridge) {
  return at_levels(rows.levels, [&](auto n) { return refit_rows<n.value>(rows, packed, ridge); });
}

constexpr Loops kLoops = {QDF_NAME, packed_floats, pack_block, round_any, descend_any, refit_any};
