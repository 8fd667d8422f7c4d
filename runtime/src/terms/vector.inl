// Sums of vector codebooks: [row block][columns / width][books][16] codes of 1 or 2 bytes. The codebooks [books][levels]
// [width] float32 are a resident tensor; width divides the columns, entries lie along a row.
QD_TERM(8, kVector, Vector)

#if defined(QD_TERM_RULES)
struct Vector : AnyTerm {
  static constexpr Tables kTables = Tables::kFloat;
  static constexpr uint32_t kMaxWidth = 64, kMaxBooks = 256, kMaxLevels = 65536;
  static uint32_t code_size(const Term& t) { return t.levels <= 256 ? 1 : 2; }

  static Checked code_bytes(const TermShape& s) {
    const Term& t = s.term;
    bool fits = t.width > 0 && t.width <= kMaxWidth && s.columns % t.width == 0 && t.books > 0 &&
                t.books <= kMaxBooks && t.levels > 0 && t.levels <= kMaxLevels;
    if (!fits) return Checked::none();
    return Checked(s.row_blocks) * (s.columns / t.width) * t.books * kRows * code_size(t);
  }
  static bool tables_fit(const File& f, const TermShape& s) {
    return is_tensor(f, s.term.table_tensor, kFloat32, Checked(s.term.books) * s.term.levels * s.term.width);
  }
  static bool is_sound(const Matrix& m, const Term& t, const uint8_t* block) {
    uint64_t codes = uint64_t{row_blocks(m)} * (m.padded_columns / t.width) * t.books * kRows;
    return codes_below(block + t.codes_at, codes, code_size(t), t.levels);
  }
};

#elif defined(QD_TERM_KERNELS)
inline uint32_t vector_code(const TermView& v, uint32_t rb, size_t position, uint32_t book, uint32_t row) {
  const Term& t = *v.term;
  size_t i = ((rb * static_cast<size_t>(v.columns / t.width) + position) * t.books + book) * 16 + row;
  uint32_t code = t.levels <= 256 ? v.codes[0][i] : load_u16(v.codes[0] + 2 * i);
  return code < t.levels ? code : 0;
}

struct Vector {
  static void weights16(const TermView& v, uint32_t rb, uint32_t u, float (*w)[16]) {
    uint32_t width = v.term->width;
    Lanes scale = load_param(v, v.term->scale, rb, group_of(v, u), 1.0f);
    memset(w, 0, 1024);
    for (uint32_t j = 0; j < 16; j++) {
      uint32_t position = (16 * u + j) / width, e = (16 * u + j) % width;
      for (uint32_t b = 0; b < v.term->books; b++)
        for (uint32_t r = 0; r < 16; r++)
          w[j][r] +=
              v.table[(static_cast<size_t>(b) * v.term->levels + vector_code(v, rb, position, b, r)) * width + e];
      store(lanes_at(w[j]) * scale, w[j]);
    }
  }

  // For one token the product of every entry with its columns is worked out beforehand.
  static uint64_t scratch(const Term& t, uint32_t columns, uint32_t tokens) {
    if (tokens != 1 || t.levels > 256 || t.width == 0) return 0;
    return uint64_t{columns / t.width} * t.books * t.levels * sizeof(float);
  }

  static void prepare(const TermView& v, const Activations& a, uint8_t* scratch_bytes) {
    const Term& t = *v.term;
    if (scratch(t, v.columns, a.tokens) == 0) return;
    float* out = reinterpret_cast<float*>(scratch_bytes);
    for (uint32_t position = 0; position < v.columns / t.width; position++)
      for (uint32_t i = 0; i < t.books * t.levels; i++) {
        float s = 0.0f;
        const float* entry = v.table + static_cast<size_t>(i) * t.width;
        for (uint32_t e = 0; e < t.width; e++) s += entry[e] * a.x[position * t.width + e];
        *out++ = s;
      }
  }

  // Entries never straddle groups: the writer keeps one group per row, or groups that are multiples of the width.
  static void one_product(const TermView& v, const Activations& a, const uint8_t* scratch_bytes, float* y,
                          size_t y_stride, uint32_t rb0, uint32_t rb1) {
    const Term& t = *v.term;
    uint32_t group = t.group ? t.group : v.columns;
    if (scratch(t, v.columns, a.tokens) == 0 || group % t.width) {
      exact_product<Vector>(v, a, scratch_bytes, y, y_stride, rb0, rb1);
      return;
    }
    const float* table = reinterpret_cast<const float*>(scratch_bytes);
    for (uint32_t rb = rb0; rb < rb1; rb++)
      for (uint32_t first = 0, g = 0; first < v.columns; first += group, g++) {
        alignas(64) float sum[16] = {};
        Lanes scale = load_param(v, t.scale, rb, g, 1.0f);
        for (uint32_t i = first / t.width; i < min_u(first + group, v.columns) / t.width; i++)
          for (uint32_t b = 0; b < t.books; b++) {
            const float* entries = table + (static_cast<size_t>(i) * t.books + b) * t.levels;
            for (uint32_t r = 0; r < 16; r++) sum[r] += entries[vector_code(v, rb, i, b, r)];
          }
        store(lanes_at(y + 16 * rb) + lanes_at(sum) * scale, y + 16 * rb);
      }
  }

  template <class P>
  static constexpr Kind kernels() {
    Kind k = float_kernels<Vector>(one_product);
    k.prepare = prepare;
    k.scratch = scratch;
    return k;
  }
};
#endif
