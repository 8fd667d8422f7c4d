// Random terms of every kind through every table of kernels that runs here: all must give the bits of `scalar`, whose
// exact product must be the one of double precision and whose rounded ones close to it. Prints a hash of all outputs,
// which is the same on every machine.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernel_cases.h"

using namespace qd;
using namespace cases;
using namespace qd::format;

namespace {

int failures = 0;
uint64_t hash = 1469598103934665603ull;

void check(bool good, const char* what, const char* detail, double value = 0) {
  if (good) return;
  if (failures++ < 40) printf("FAIL %s: %s (%g)\n", what, detail, value);
}

template <class T>
void mix_hash(const std::vector<T>& data) {
  const unsigned char* p = reinterpret_cast<const unsigned char*>(data.data());
  for (size_t i = 0; i < data.size() * sizeof(T); i++) hash = (hash ^ p[i]) * 1099511628211ull;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

uint32_t gcd(uint32_t a, uint32_t b) { return b ? gcd(b, a % b) : a; }

struct Input {
  Activations a = {};
  std::vector<float> x, scale, fsum, table_scale, table_fsum;
  std::vector<int8_t> q, tables;
  std::vector<int32_t> sum;
};

void prepare_input(const Kernels& k, Input& in, uint32_t tokens, uint32_t columns, uint32_t group) {
  Activations& a = in.a;
  a.tokens = tokens, a.columns = columns, a.group = gcd(group, 128), a.stride = (columns + 127) / 128 * 128;
  a.groups = (columns + a.group - 1) / a.group;
  in.q.assign(static_cast<size_t>(tokens) * a.stride, 77);
  in.scale.resize(tokens * a.groups), in.fsum.resize(tokens * a.groups), in.sum.resize(tokens * a.groups);
  in.table_scale.resize(a.groups), in.table_fsum.resize(a.groups), in.tables.resize(columns * 4);
  for (uint32_t t = 0; t < tokens; t++)
    k.quantize(&in.x[static_cast<size_t>(t) * a.stride], columns, a.group, tokens,
               &in.q[static_cast<size_t>(t) * a.group], &in.scale[t], &in.sum[t], &in.fsum[t]);
  k.make_tables(in.x.data(), columns, a.group, in.tables.data(), in.table_scale.data(), in.table_fsum.data());
  a.x = in.x.data(), a.q = in.q.data(), a.scale = in.scale.data(), a.sum = in.sum.data(), a.fsum = in.fsum.data();
  a.tables = in.tables.data(), a.table_scale = in.table_scale.data();
}

enum Way { kOne, kMany, kExact };

std::vector<float> product(const Kernels& k, const Case& c, const Input& in, Way way) {
  const Kind& kind = k.kinds[c.term.kind];
  std::vector<float> y(static_cast<size_t>(in.a.tokens) * c.view.row_blocks * 16, 0.0f);
  std::vector<float> scratch;
  if (kind.scratch) scratch.resize((kind.scratch(c.term, c.view.columns, in.a.tokens) + 3) / 4);
  uint8_t* s = reinterpret_cast<uint8_t*>(scratch.data());
  if (kind.prepare && way != kExact) kind.prepare(c.view, in.a, s);
  MatVec f = way == kOne ? kind.one : way == kMany ? kind.many : kind.exact;
  uint32_t half = c.view.row_blocks / 2;
  f(c.view, in.a, s, y.data(), c.view.row_blocks * 16, 0, half);
  f(c.view, in.a, s, y.data(), c.view.row_blocks * 16, half, c.view.row_blocks);
  return y;
}

void compare(const Case& c, const Input& in, const std::vector<double>& w, const std::vector<float>& y,
             double tolerance, const char* what) {
  size_t rows = c.view.row_blocks * 16, n = c.view.columns;
  double error = 0, total = 0;
  for (size_t t = 0; t < in.a.tokens; t++)
    for (size_t r = 0; r < rows; r++) {
      double s = 0;
      for (size_t k = 0; k < n; k++) s += w[r * n + k] * static_cast<double>(in.x[t * in.a.stride + k]);
      error += (s - static_cast<double>(y[t * rows + r])) * (s - static_cast<double>(y[t * rows + r]));
      total += s * s;
    }
  double relative = std::sqrt(error / (total + 1e-30));
  check(relative <= tolerance, c.name, what, relative);
}

void run_case(const Case& c) {
  const Kernels& scalar = *select_kernels("scalar");
  size_t rows = c.view.row_blocks * 16, n = c.view.columns;
  std::vector<double> w(rows * n);
  for (size_t r = 0; r < rows; r++)
    for (size_t k = 0; k < n; k++) w[r * n + k] = weight_of(c, r, k);
  for (uint32_t r : {0u, static_cast<uint32_t>(rows - 3)}) {
    std::vector<float> row(n, 0.0f);
    scalar.kinds[c.term.kind].decode_row(c.view, r, row.data());
    for (size_t k = 0; k < n; k++)
      check(std::fabs(row[k] - w[r * n + k]) <= 1e-5 * (1 + std::fabs(w[r * n + k])), c.name, "decode_row", row[k]);
    for (const Kernels* const* k = kAllKernels; *k; k++) {
      std::vector<float> other(n, 0.0f);
      if (!runs_here(**k)) continue;
      (*k)->kinds[c.term.kind].decode_row(c.view, r, other.data());
      check(same(row, other), c.name, "decode_row differs");
    }
  }
  for (uint32_t tokens : {1u, 7u, 66u}) {
    if (tokens > 64 && (n != 160 || c.term.group != 32)) continue;  // more than share one reading of the codes: once
    Input in;
    uint32_t stride = (c.view.columns + 127) / 128 * 128;
    in.x.assign(static_cast<size_t>(tokens) * stride, 0.0f);
    for (uint32_t t = 0; t < tokens; t++)
      for (uint32_t k = 0; k < n; k++) in.x[static_cast<size_t>(t) * stride + k] = random_float();
    prepare_input(scalar, in, tokens, c.view.columns, c.term.group);
    for (int way = tokens == 1 ? kOne : kMany; way <= kExact; way++) {
      static const char* const names[] = {"one", "many", "exact"};
      std::vector<float> y = product(scalar, c, in, static_cast<Way>(way));
      mix_hash(y);
      compare(c, in, w, y, way == kExact ? 2e-6 : 0.03, names[way]);
      for (const Kernels* const* k = kAllKernels; *k; k++) {
        if (!runs_here(**k) || *k == &scalar) continue;
        Input other;
        other.x = in.x;
        prepare_input(**k, other, tokens, c.view.columns, c.term.group);
        check(same(in.q, other.q) && same(in.scale, other.scale) && same(in.sum, other.sum) &&
                  same(in.fsum, other.fsum) && same(in.tables, other.tables) &&
                  same(in.table_scale, other.table_scale) && same(in.table_fsum, other.table_fsum),
              c.name, "activations differ");
        check(same(y, product(**k, c, other, static_cast<Way>(way))), c.name, names[way], -1);
      }
    }
  }
}

void run_kinds() {
  const uint32_t groups[] = {16, 32, 48, 64, 128, 192, 0}, widths[] = {256, 160, 608};
  const NumberKind scales[] = {kF16, kF32, kBF16, kE8M0, kU8, kI8, kE4M3, kE5M2, kNo};
  const NumberKind zeros[] = {kNo, kU8, kF16, kF32};
  int turn = 0;
  for (uint32_t group : groups)
    for (uint32_t columns : widths)
      for (int kind = kNibbles; kind <= kFloats; kind++)
        for (int repeat = 0; repeat < (kind == kPlanes ? 6 : 2); repeat++, turn++) {
          Case c;
          Options o;
          o.scale = scales[turn % 9];
          if (kind <= kPlanes) o.zero = zeros[turn / 2 % 4], o.offset = turn % 5 == 0 ? kF16 : kNo;
          if (o.scale == kU8 || o.scale == kI8 || o.scale == kE4M3) o.span = 1 + turn % 4;
          c.term.kind = static_cast<uint16_t>(kind);
          c.term.zero_for_all = kind == kBytes ? 128 : kind == kPairs ? 1 : 7.5f;
          uint32_t resident = 1;
          if (kind == kPlanes) {
            c.term.planes = static_cast<uint8_t>(1 + turn % 8);
            resident = 1 + static_cast<uint32_t>(repeat) * 2 % c.term.planes;
            if (repeat & 1) resident = c.term.planes;
            c.term.zero_for_all = 0.5f * static_cast<float>((1 << c.term.planes) - 1);
          }
          if (kind == kTable4 || kind == kTable3) c.term.tables = repeat ? 5 : 1;
          if (kind == kFloats) c.term.element = scales[turn / 3 % 8];
          build(c, 48, columns, group, o, resident);
          run_case(c);
        }
  for (uint32_t columns : {256u, 1056u})
    for (int i = 0; i < 6; i++) {
      Case v, b, s;
      Options plain;
      v.term.kind = kVector, v.term.width = i % 2 ? 8 : 4, v.term.books = 1 + static_cast<uint32_t>(i) % 2;
      v.term.levels = i < 2 ? 256 : i < 4 ? 1024 : 40;
      build(v, 48, columns, i % 3 ? 0 : 64, plain, 1);
      run_case(v);
      plain.scale = kNo;
      b.term.kind = kBitstack, b.term.rank = 4 + 4 * static_cast<uint32_t>(i);
      build(b, 48, columns, 0, plain, 1);
      run_case(b);
      s.term.kind = kSparse;
      build(s, 48, columns, 0, plain, 1);
      run_case(s);
    }
}

// ---- vectors: each returns all it wrote
std::vector<float> vectors(const Kernels& k, uint32_t n, const std::vector<float>& x, const std::vector<float>& w) {
  std::vector<float> out(n), all;
  auto keep = [&] { all.insert(all.end(), out.begin(), out.end()); };
  k.rms_norm(x.data(), w.data(), 1e-5f, n, out.data()), keep();
  k.layer_norm(x.data(), w.data(), x.data(), 1e-5f, n, out.data()), keep();
  k.add(x.data(), w.data(), n, out.data()), keep();
  k.multiply(x.data(), w.data(), n, out.data()), keep();
  for (uint32_t a = 0; a < kActivations; a++) {
    k.activate(a, x.data(), n, out.data()), keep();
    k.gate(a, x.data(), w.data(), n, out.data()), keep();
  }
  out = x, k.scale_rows(out.data(), w.data(), x.data(), n), keep();
  out = x, k.softmax(out.data(), n), keep();
  all.push_back(k.l2_norm(x.data(), n));
  out = x, k.rotate(out.data(), w.data(), x.data(), n / 2 * 2, 0), keep();
  out = x, k.rotate(out.data(), w.data(), x.data(), n / 2 * 2, 1), keep();
  std::vector<uint16_t> half((n + 15) / 16 * 16);
  std::vector<int8_t> bytes(n);
  std::vector<int16_t> wide(n);
  out.assign(half.size(), 0);
  k.store_f16(x.data(), n, half.data()), k.widen_f16(half.data(), static_cast<uint32_t>(half.size()), out.data()), keep();
  out.resize(n);
  float unit = 0;
  k.store_int8(x.data(), n, bytes.data(), &unit), all.push_back(unit);
  k.widen_int8(bytes.data(), n, wide.data());
  for (uint32_t i = 0; i < n; i++) all.push_back(wide[i]), check(wide[i] == bytes[i], k.name, "widen_int8");
  unit = k.round_int16(x.data(), n, 32767.0f, wide.data()), all.push_back(unit);
  for (uint32_t i = 0; i < n; i++)
    all.push_back(wide[i]), check(std::fabs(wide[i] * unit - x[i]) <= 0.51f * unit, k.name, "round_int16", x[i]);
  std::vector<int32_t> sums(wide.begin(), wide.end());
  out = x, k.add_ints(out.data(), 0.7f, sums.data(), unit, n), keep();
  float most = w[0], total = 1.5f;
  out = x, k.join_shares(out.data(), &most, &total, w.data(), x[0], 2.5f, n), keep();
  all.push_back(most), all.push_back(total);
  return all;
}

// ---- tiles of attention
struct TileCase {
  uint32_t rows, depth, columns;
  std::vector<float> a, b, keep;
  std::vector<uint16_t> half;
  std::vector<int16_t> ints, wide;
  std::vector<int8_t> bytes;

  TileCase(uint32_t r, uint32_t d, uint32_t c) : rows(r), depth(d), columns(c), a(r * d), b(d * c), keep(r), half(d * c),
                                                 ints(r * d), wide(d * c), bytes(d * c) {
    for (float& f : a) f = random_float();
    for (float& f : b) f = random_float();
    for (float& f : keep) f = random_float();
    for (int16_t& i : ints) i = static_cast<int16_t>(random_bits());
    for (size_t i = 0; i < b.size(); i++) wide[i] = bytes[i] = static_cast<int8_t>(random_bits());
    select_kernels("scalar")->store_f16(b.data(), d * c, half.data());
  }
  template <class T>
  std::vector<T> run(void (*product)(const TileProduct&), const void* left, const void* right, bool kept) const {
    std::vector<T> out(rows * columns, static_cast<T>(3));
    product({left, depth, right, columns, rows, depth, columns, kept ? keep.data() : nullptr, out.data(), columns});
    return out;
  }
};

void check_tile(const Kernels& k, const TileCase& c, const Kernels& scalar) {
  for (bool kept : {false, true}) {
    std::vector<float> y = c.run<float>(scalar.product_f32, c.a.data(), c.b.data(), kept);
    std::vector<float> h = c.run<float>(scalar.product_f16, c.a.data(), c.half.data(), kept);
    for (uint32_t r = 0; r < c.rows; r++)
      for (uint32_t j = 0; j < c.columns; j++) {
        double want = kept ? 3.0 * static_cast<double>(c.keep[r]) : 0;
        for (uint32_t d = 0; d < c.depth; d++)
          want += static_cast<double>(c.a[r * c.depth + d]) * static_cast<double>(c.b[d * c.columns + j]);
        check(std::fabs(y[r * c.columns + j] - want) < 1e-4, k.name, "product_f32", want);
        check(std::fabs(h[r * c.columns + j] - want) < 0.1, k.name, "product_f16", want);
      }
    if (&k == &scalar) mix_hash(y), mix_hash(h);
    check(same(y, c.run<float>(k.product_f32, c.a.data(), c.b.data(), kept)), k.name, "product_f32 differs");
    check(same(h, c.run<float>(k.product_f16, c.a.data(), c.half.data(), kept)), k.name, "product_f16 differs");
  }
  if (c.depth % 2) return;
  std::vector<int32_t> y = c.run<int32_t>(k.product_int8, c.ints.data(), c.bytes.data(), false);
  check(same(y, c.run<int32_t>(k.product_int16, c.ints.data(), c.wide.data(), false)), k.name, "product_int16 differs");
  for (uint32_t r = 0; r < c.rows; r++)
    for (uint32_t j = 0; j < c.columns; j++) {
      int64_t want = 0;
      for (uint32_t d = 0; d < c.depth; d++)
        want += int64_t{c.ints[r * c.depth + d]} * c.bytes[d / 2 * 2 * c.columns + 2 * j + d % 2];
      check(y[r * c.columns + j] == want, k.name, "product_int8", static_cast<double>(want));
    }
}

// Shares of one query over some tiles, in parts: with what is not visible, and before anything is.
std::vector<float> tile_shares(const Kernels& k, const std::vector<float>& x) {
  std::vector<float> all;
  float most = -INFINITY, total = 0;
  const uint32_t ranges[][2] = {{7, 7}, {0, 64}, {5, 23}, {63, 64}, {0, 1}, {16, 64}};
  for (size_t i = 0; i < 6; i++) {
    std::vector<float> scores(x.begin() + static_cast<long>(i) * 64, x.begin() + static_cast<long>(i + 1) * 64);
    std::vector<float> before = scores;
    k.scale_scores(scores.data(), 0.5f);
    float keep = k.tile_shares(scores.data(), ranges[i][0], ranges[i][1], &most, &total);
    for (uint32_t p = 0; p < 64; p++) {
      bool seen = p >= ranges[i][0] && p < ranges[i][1];
      double want = seen ? std::exp(0.5 * before[p] - most) : 0;
      check(std::fabs(scores[p] - want) <= 1e-6, k.name, "tile_shares", want);
    }
    all.insert(all.end(), scores.begin(), scores.end());
    all.push_back(keep), all.push_back(most), all.push_back(total);
  }
  return all;
}

void run_tiles() {
  const Kernels& scalar = *select_kernels("scalar");
  const uint32_t shapes[][3] = {{1, 64, 64}, {4, 64, 64}, {7, 63, 80}, {3, 2, 16}, {64, 576, 64}, {9, 1, 208}, {5, 80, 48}};
  for (const auto& shape : shapes) {
    TileCase c(shape[0], shape[1], shape[2]);
    for (const Kernels* const* k = kAllKernels; *k; k++)
      if (runs_here(**k) && *k != &scalar) check_tile(**k, c, scalar);
    check_tile(scalar, c, scalar);
  }
  std::vector<float> x(6 * 64), want;
  for (float& f : x) f = random_float() * 20;
  want = tile_shares(scalar, x);
  mix_hash(want);
  for (const Kernels* const* k = kAllKernels; *k; k++)
    if (runs_here(**k)) check(same(want, tile_shares(**k, x)), (*k)->name, "tile_shares differ");
}

void check_functions(const Kernels& k) {
  std::vector<float> x, y;
  for (int i = -3000; i <= 3000; i++) x.push_back(static_cast<float>(i) * 0.01f + 0.0007f);
  y.resize(x.size());
  for (uint32_t a = 0; a < kActivations; a++) {
    k.activate(a, x.data(), static_cast<uint32_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); i++) {
      double v = x[i], want = 0;
      if (a == kSilu) want = v / (1 + std::exp(-v));
      if (a == kGelu) want = v * 0.5 * std::erfc(-v / std::sqrt(2.0));
      if (a == kGeluTanh) want = v / (1 + std::exp(-2 * 0.7978845608028654 * (v + 0.044715 * v * v * v)));
      if (a == kRelu) want = v > 0 ? v : 0;
      if (a == kTanh) want = std::tanh(v);
      if (a == kSigmoid) want = 1 / (1 + std::exp(-v));
      check(std::fabs(y[i] - want) <= 1e-6 * std::fabs(want) * (1 + std::fabs(v)) * 4 + 1e-12, "activation", "value",
            v);
    }
  }
  for (uint32_t h = 0; h < 65536; h++) {  // every half through a store
    uint8_t b[2] = {static_cast<uint8_t>(h), static_cast<uint8_t>(h >> 8)};
    if ((h & 0x7c00) == 0x7c00) continue;
    float f = static_cast<float>(number(kF16, b, 0));
    uint16_t got;
    k.store_f16(&f, 1, &got);
    check(got == h, "store_f16", "value", f);
  }
}

void run_vectors() {
  const Kernels& scalar = *select_kernels("scalar");
  check_functions(scalar);
  for (uint32_t n : {5u, 16u, 64u, 80u, 100u, 300u, 1000u}) {
    std::vector<float> x(n), w(n);
    for (float& f : x) f = random_float() * (random_bits() % 7 == 0 ? 30.0f : 2.0f);
    for (float& f : w) f = random_float();
    std::vector<float> want = vectors(scalar, n, x, w);
    mix_hash(want);
    for (const Kernels* const* k = kAllKernels; *k; k++)
      if (runs_here(**k)) check(same(want, vectors(**k, n, x, w)), (*k)->name, "vectors differ", n);
  }
}

}  // namespace

int main() {
  for (const Kernels* const* k = kAllKernels; *k; k++)
    printf("%s%s\n", (*k)->name, runs_here(**k) ? "" : " (not here)");
  run_vectors();
  run_tiles();
  run_kinds();
  printf("hash %016llx\n", static_cast<unsigned long long>(hash));
  printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
