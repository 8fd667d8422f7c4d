// From stored codes to numbers, 16 rows by 16 columns at a time (a unit, u), in portable code; see portable.inl and
// format.h for the layouts. Tiles are [column][row].

// Where 16 columns lie: the group of unit u. A term of one group may leave `group` at 0.
inline uint32_t group_of(const TermView& v, uint32_t u) { return v.term->group ? u * 16 / v.term->group : 0; }

inline const uint8_t* selects(const TermView& v, uint32_t rb, uint32_t g) {
  if (v.term->tables <= 1) return nullptr;
  return v.base + v.term->select_at + (static_cast<size_t>(rb) * v.term->groups + g) * 16;
}

// Where unit u of a row block begins in the codes of a term, or of one of its planes; two units of 32 columns that are
// stored together begin at the same place.
template <class T>
inline size_t codes_at(const TermView& v, uint32_t rb, uint32_t u) {
  return (static_cast<size_t>(rb) * (v.columns / 16) + (T::kOf32 ? u & ~1u : u)) * T::kUnitBytes;
}

struct Params {
  Lanes scale, zero, offset;
};

template <class T>
QD_INLINE void load_params(const TermView& v, uint32_t rb, uint32_t g, Params* p) {
  p->scale = load_param(v, v.term->scale, rb, g, 1.0f);
  if constexpr (T::kLevels == 0) {
    p->zero = load_param(v, v.term->zero, rb, g, v.term->zero_for_all);
    p->offset = load_param(v, v.term->offset, rb, g, 0.0f);
  }
}

// What the types of the kinds are made of. Of a kind with codes a type has
//   kUnitBytes  of the codes of 16 columns; kOf32: 32 columns are stored together
//   kLevels     entries of a table that a code indexes; 0: the code is a number
//   codes16     the codes of a unit as they are stored
//   small       whether no code is above 15; step: what a code counts
// and of every kind kernels<P>(), its row of the table of an instruction set whose policy is P.
template <class P, class T>
constexpr Kind integer_kernels();

// Codes that are integers: ((code - zero) * scale) + offset.
template <class T>
struct IntegerCodes {
  static constexpr bool kOf32 = false;
  static constexpr uint32_t kLevels = 0;
  static float step(const TermView&) { return 1.0f; }

  static void weights16(const TermView& v, uint32_t rb, uint32_t u, float (*w)[16]) {
    Params p;
    load_params<T>(v, rb, group_of(v, u), &p);
    int16_t c[16][16];
    T::codes16(v, rb, u, c);
    float step = T::step(v);
    Lanes middle = all(0.5f * (step - 1.0f));
    for (int j = 0; j < 16; j++) {
      for (int r = 0; r < 16; r++) w[j][r] = static_cast<float>(c[j][r]);
      store((((lanes_at(w[j]) * step + middle) - p.zero) * p.scale) + p.offset, w[j]);
    }
  }

  template <class P>
  static constexpr Kind kernels() {
    return integer_kernels<P, T>();
  }
};

// Codes that index a table: table[select][code] * scale.
template <class T, uint32_t kEntries>
struct TableCodes {
  static constexpr bool kOf32 = false;
  static constexpr uint32_t kLevels = kEntries;
  static bool small(const TermView&) { return false; }

  static void weights16(const TermView& v, uint32_t rb, uint32_t u, float (*w)[16]) {
    uint32_t g = group_of(v, u);
    Params p;
    load_params<T>(v, rb, g, &p);
    int16_t c[16][16];
    T::codes16(v, rb, u, c);
    const uint8_t* select = selects(v, rb, g);
    for (int r = 0; r < 16; r++) {
      const float* table = v.table + (select && select[r] < v.term->tables ? select[r] : 0) * kLevels;
      for (int j = 0; j < 16; j++) w[j][r] = table[c[j][r]];
    }
    for (int j = 0; j < 16; j++) store(lanes_at(w[j]) * p.scale, w[j]);
  }

  template <class P>
  static constexpr Kind kernels() {
    return integer_kernels<P, T>();
  }
};

// What codes mean for sums of integers: themselves, or the int8 of the row's table.
template <class T>
inline void ints16(const TermView& v, uint32_t rb, uint32_t u, int16_t (*c)[16]) {
  T::codes16(v, rb, u, c);
  if constexpr (T::kLevels > 0) {
    const uint8_t* select = selects(v, rb, group_of(v, u));
    for (int r = 0; r < 16; r++) {
      const int8_t* table = v.itable + (select && select[r] < v.term->tables ? select[r] : 0) * T::kLevels;
      for (int j = 0; j < 16; j++) c[j][r] = table[c[j][r]];
    }
  }
}
