// Floats as they are: [row block][columns][16] elements of `element`, times a scale per group where there is one.
QD_TERM(7, kFloats, Floats)

#if defined(QD_TERM_RULES)
struct Floats : AnyTerm {
  static Checked code_bytes(const TermShape& s) {
    if (!number_of(s.term.element).element) return Checked::none();
    return Checked(s.row_blocks) * s.columns * kRows * number_bytes(s.term.element);
  }
};

#elif defined(QD_TERM_KERNELS)
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

struct Floats {
  static void weights16(const TermView& v, uint32_t rb, uint32_t u, float (*w)[16]) {
    Lanes scale = load_param(v, v.term->scale, rb, group_of(v, u), 1.0f);
    for (uint32_t j = 0; j < 16; j++) {
      size_t at = (rb * static_cast<size_t>(v.columns) + 16 * u + j) * 16;
      store(load16(v.term->element, v.codes[0], at) * scale, w[j]);
    }
  }

  static void one_product(const TermView& v, const Activations& a, const uint8_t* scratch, float* y, size_t y_stride,
                          uint32_t rb0, uint32_t rb1) {
    switch (v.term->element) {
      case format::kF16: one_floats_of(v, a, y, rb0, rb1, 2, [](const uint8_t* p) { return from_half16(p); }); break;
      case format::kBF16:
        one_floats_of(v, a, y, rb0, rb1, 2, [](const uint8_t* p) { return from_bfloat16(p); });
        break;
      case format::kF32:
        one_floats_of(v, a, y, rb0, rb1, 4,
                      [](const uint8_t* p) { return lanes_at(reinterpret_cast<const float*>(p)); });
        break;
      default: exact_product<Floats>(v, a, scratch, y, y_stride, rb0, rb1);
    }
  }

  template <class P>
  static constexpr Kind kernels() {
    return float_kernels<Floats>(one_product);
  }
};
#endif
