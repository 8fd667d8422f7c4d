// Products of terms with floats: the exact ones of every kind.

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

template <class T>
inline void float_rows(const TermView& v, const Activations& a, float* y, size_t y_stride, uint32_t rb,
                       uint32_t first) {
  alignas(64) float w[kFloatColumns][16], acc[kMostTokens][16];
  uint32_t tokens = min_u(kMostTokens, a.tokens - first);
  for (uint32_t t = 0; t < tokens; t++) memcpy(acc[t], y + (first + t) * y_stride + 16 * rb, 64);
  for (uint32_t j = 0; j < v.columns; j += kFloatColumns) {
    uint32_t columns = min_u(kFloatColumns, v.columns - j);
    for (uint32_t i = 0; i < columns; i += 16) T::weights16(v, rb, (j + i) / 16, w + i);
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

template <class T>
inline void exact_product(const TermView& v, const Activations& a, const uint8_t*, float* y, size_t y_stride,
                          uint32_t rb0, uint32_t rb1) {
  for (uint32_t first = 0; first < a.tokens; first += kMostTokens)
    for (uint32_t rb = rb0; rb < rb1; rb++) float_rows<T>(v, a, y, y_stride, rb, first);
}

template <class T>
inline void decode_row(const TermView& v, uint32_t row, float* out) {
  float w[16][16];
  for (uint32_t u = 0; u < v.columns / 16; u++) {
    T::weights16(v, row / 16, u, w);
    for (int j = 0; j < 16; j++) out[16 * u + j] += w[j][row % 16];
  }
}

template <class P, class T>
constexpr Kind integer_kernels() {
  return {Need::kInt8,         Need::kInt8, one_int_product<P, T>, int_product<P, T>, exact_product<T>,
          decode_row<T>, nullptr,     nullptr};
}

// The row of a kind whose products are those of floats; `one` is that of one token.
template <class T>
constexpr Kind float_kernels(MatVec one) {
  return {Need::kNothing, Need::kNothing, one, exact_product<T>, exact_product<T>, decode_row<T>, nullptr, nullptr};
}
