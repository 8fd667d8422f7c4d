// Norms, activations and what is stored of a head, in portable code; see portable.inl. Sums go over 16 lanes, then reduce16.

inline float dot16(const float* a, const float* b, uint32_t n) {
  float s[16] = {};
  uint32_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (int r = 0; r < 16; r++) s[r] += a[j + r] * b[j + r];
  for (uint32_t r = 0; j + r < n; r++) s[r] += a[j + r] * b[j + r];
  return reduce16(s);
}

inline void rms_norm(const float* x, const float* weight, float epsilon, uint32_t n, float* out) {
  float s = 1.0f / __builtin_sqrtf(dot16(x, x, n) / static_cast<float>(n) + epsilon);
  if (weight) {
    for (uint32_t j = 0; j < n; j++) out[j] = (x[j] * s) * weight[j];
  } else {
    for (uint32_t j = 0; j < n; j++) out[j] = x[j] * s;
  }
}

inline void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, uint32_t n, float* out) {
  float s[16] = {}, d[16] = {};
  for (uint32_t j = 0; j < n; j += 16)
    for (uint32_t r = 0; r < min_u(16, n - j); r++) s[r] += x[j + r];
  float mean = reduce16(s) / static_cast<float>(n);
  for (uint32_t j = 0; j < n; j += 16)
    for (uint32_t r = 0; r < min_u(16, n - j); r++) d[r] += (x[j + r] - mean) * (x[j + r] - mean);
  float t = 1.0f / __builtin_sqrtf(reduce16(d) / static_cast<float>(n) + epsilon);
  for (uint32_t j = 0; j < n; j++) {
    float y = (x[j] - mean) * t;
    if (weight) y *= weight[j];
    out[j] = bias ? y + bias[j] : y;
  }
}

inline void add(const float* a, const float* b, uint32_t n, float* out) {
  for (uint32_t j = 0; j < n; j++) out[j] = a[j] + b[j];
}
inline void multiply(const float* a, const float* b, uint32_t n, float* out) {
  for (uint32_t j = 0; j < n; j++) out[j] = a[j] * b[j];
}

inline void activate(uint32_t activation, const float* x, uint32_t n, float* out) {
  switch (activation) {
    case format::kSilu:
      for (uint32_t j = 0; j < n; j++) out[j] = x[j] * sigmoid_f(x[j]);
      break;
    case format::kGelu:
      for (uint32_t j = 0; j < n; j++) out[j] = gelu_f(x[j]);
      break;
    case format::kGeluTanh:
      for (uint32_t j = 0; j < n; j++) out[j] = gelu_tanh_f(x[j]);
      break;
    case format::kRelu:
      for (uint32_t j = 0; j < n; j++) out[j] = x[j] < 0.0f ? 0.0f : x[j];
      break;
    case format::kTanh:
      for (uint32_t j = 0; j < n; j++) out[j] = tanh_f(x[j]);
      break;
    case format::kSigmoid:
      for (uint32_t j = 0; j < n; j++) out[j] = sigmoid_f(x[j]);
      break;
    default: break;
  }
}

// In pieces, so that `out` may be x or y.
inline void gate(uint32_t activation, const float* x, const float* y, uint32_t n, float* out) {
  float piece[256];
  for (uint32_t j = 0; j < n; j += 256) {
    uint32_t m = min_u(256, n - j);
    activate(activation, x + j, m, piece);
    for (uint32_t i = 0; i < m; i++) out[j + i] = piece[i] * y[j + i];
  }
}

inline void scale_rows(float* y, const float* scale, const float* bias, uint32_t n) {
  if (scale)
    for (uint32_t j = 0; j < n; j++) y[j] *= scale[j];
  if (bias)
    for (uint32_t j = 0; j < n; j++) y[j] += bias[j];
}

inline void add_numbers(uint32_t kind, const uint8_t* numbers, size_t first, uint32_t n, float* y) {
  for (uint32_t j = 0; j < n; j += 16) store(lanes_at(y + j) + load16(kind, numbers, first + j), y + j);
}

inline void softmax(float* x, uint32_t n) {
  float most = n ? x[0] : 0.0f, s[16] = {};
  for (uint32_t j = 1; j < n; j++) most = max_f(x[j], most);
  if (bits_of(most) == 0xff800000u) {  // all masked
    memset(x, 0, n * sizeof(float));
    return;
  }
  for (uint32_t j = 0; j < n; j++) x[j] = exp_f(x[j] - most);
  uint32_t j = 0;
  for (; j + 16 <= n; j += 16)
    for (int r = 0; r < 16; r++) s[r] += x[j + r];
  for (uint32_t r = 0; j + r < n; r++) s[r] += x[j + r];
  float inverse = 1.0f / reduce16(s);
  for (uint32_t i = 0; i < n; i++) x[i] *= inverse;
}

inline float l2_norm(const float* x, uint32_t n) { return __builtin_sqrtf(dot16(x, x, n)); }

inline void rotate(float* x, const float* cos, const float* sin, uint32_t rotary_dim, int interleaved) {
  uint32_t half = rotary_dim / 2;
  if (interleaved) {
    for (uint32_t i = 0; i < half; i++) {
      float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  } else {
    for (uint32_t i = 0; i < half; i++) {
      float a = x[i], b = x[half + i];
      x[i] = a * cos[i] - b * sin[i];
      x[half + i] = b * cos[i] + a * sin[i];
    }
  }
}

inline void store_f16(const float* x, uint32_t n, uint16_t* out) {
  uint32_t j = 0;
  for (; j + 16 <= n; j += 16) to_half16(x + j, out + j);
  for (; j < n; j++) out[j] = to_f16(x[j]);
}

inline void store_int8(const float* x, uint32_t n, int8_t* out, float* scale) {
  float most = 0.0f;
  for (uint32_t j = 0; j < n; j++) most = max_f(abs_f(x[j]), most);
  float inverse = most > kTiny ? 127.0f / most : 0.0f;
  *scale = most > kTiny ? most / 127.0f : 0.0f;
  for (uint32_t j = 0; j < n; j++) out[j] = static_cast<int8_t>(round_to_int(x[j] * inverse));
}
