// A few entries that are added: row starts uint32 [row blocks + 1], then entries {uint32 column, uint32 row in the block,
// float32 value}, sorted by column within a row block.
QD_TERM(10, kSparse, Sparse)

#if defined(QD_TERM_RULES)
struct Sparse : AnyTerm {
  static Checked code_bytes(const TermShape& s) {
    return Checked(4) * (Checked(s.row_blocks) + 1) + Checked(12) * s.term.entries;
  }
  static bool is_sound(const Matrix& m, const Term& t, const uint8_t* block) {
    const uint8_t* codes = block + t.codes_at;
    uint32_t blocks = row_blocks(m), before = 0, start;
    for (uint32_t i = 0; i <= blocks; ++i) {
      std::memcpy(&start, codes + 4 * uint64_t{i}, 4);
      if (start < before || start > t.entries || (i == 0 && start != 0)) return false;
      before = start;
    }
    const uint8_t* entries = codes + 4 * (uint64_t{blocks} + 1);
    for (uint32_t i = 0; i < before; ++i) {
      uint32_t place[2];
      std::memcpy(place, entries + 12 * uint64_t{i}, 8);
      if (place[0] >= m.padded_columns || place[1] >= kRows) return false;
    }
    return true;
  }
};

#elif defined(QD_TERM_KERNELS)
struct Sparse {
  // What a damaged file says beyond the term is left out.
  template <class Each>
  static void each_entry(const TermView& v, uint32_t rb, Each each) {
    const uint8_t* p = v.codes[0];
    const uint8_t* entries = p + (static_cast<size_t>(v.row_blocks) + 1) * 4;
    uint32_t end = min_u(load_u32(p + 4 * (rb + 1)), v.term->entries);
    for (uint32_t i = load_u32(p + 4 * rb); i < end; i++) {
      const uint8_t* e = entries + static_cast<size_t>(i) * 12;
      uint32_t column = load_u32(e), row = load_u32(e + 4);
      if (column < v.columns && row < 16) each(column, row, float_of(load_u32(e + 8)));
    }
  }

  static void product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride, uint32_t rb0,
                      uint32_t rb1) {
    for (uint32_t rb = rb0; rb < rb1; rb++)
      each_entry(v, rb, [&](uint32_t column, uint32_t row, float value) {
        for (uint32_t t = 0; t < a.tokens; t++)
          y[t * y_stride + 16 * rb + row] += value * a.x[static_cast<size_t>(t) * a.stride + column];
      });
  }

  static void row(const TermView& v, uint32_t number, float* out) {
    each_entry(v, number / 16, [&](uint32_t column, uint32_t r, float value) {
      if (r == number % 16) out[column] += value;
    });
  }

  template <class P>
  static constexpr Kind kernels() {
    return {Need::kNothing, Need::kNothing, product, product, product, row, nullptr, nullptr};
  }
};
#endif
