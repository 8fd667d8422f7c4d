// Random terms of every kind through every table of kernels that runs here: all must give the bits of `scalar`, whose
// exact product must be the one of double precision and whose rounded ones close to it. Prints a hash of all outputs,
// which is the same on every machine.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../src/kernels/kernels.h"

using namespace qd;
using namespace qd::format;

namespace {

int failures = 0;
uint64_t state = 1, hash = 1469598103934665603ull;

uint32_t random_bits() {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<uint32_t>(state >> 33);
}
float random_float() { return static_cast<float>(static_cast<int>(random_bits() % 20001) - 10000) * 1e-4f; }

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

// The numbers of format.h, decoded in the plainest way.
double number(NumberKind kind, const uint8_t* p, size_t i) {
  uint16_t h = 0;
  float f = 0;
  if (kind == kF16 || kind == kBF16) memcpy(&h, p + 2 * i, 2);
  uint32_t exponent = 0, fraction = 0, bias = 0, digits = 0, sign = 0;
  switch (kind) {
    case kF32: memcpy(&f, p + 4 * i, 4); return f;
    case kU8: return p[i];
    case kI8: return static_cast<int8_t>(p[i]);
    case kE8M0: return std::ldexp(1.0, p[i] - 127);
    case kF16: exponent = h >> 10 & 31, fraction = h & 1023, bias = 15, digits = 10, sign = h >> 15; break;
    case kBF16: exponent = h >> 7 & 255, fraction = h & 127, bias = 127, digits = 7, sign = h >> 15; break;
    case kE4M3: exponent = p[i] >> 3 & 15, fraction = p[i] & 7, bias = 7, digits = 3, sign = p[i] >> 7; break;
    case kE5M2: exponent = p[i] >> 2 & 31, fraction = p[i] & 3, bias = 15, digits = 2, sign = p[i] >> 7; break;
    default: return 0;
  }
  int e = static_cast<int>(exponent ? exponent : 1) - static_cast<int>(bias + digits);
  double v = std::ldexp(static_cast<double>(exponent ? fraction + (1u << digits) : fraction), e);
  return sign ? -v : v;
}

size_t size_of(NumberKind k) { return k == kF32 ? 4 : k == kF16 || k == kBF16 ? 2 : k == kNo ? 0 : 1; }

// A random number of a kind that is neither infinite nor huge, as a scale (positive) or as an element.
void put_random(NumberKind kind, bool positive, std::vector<uint8_t>& out) {
  uint8_t b[4] = {};
  float f = positive ? 0.01f + 0.02f * std::fabs(random_float()) : random_float();
  uint16_t h = static_cast<uint16_t>((random_bits() & 0x3ff) | (positive ? 0x2000 : random_bits() & 0xbc00));
  if (!positive && (h & 0x7c00) > 0x3c00) h &= 0x83ff;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  switch (kind) {
    case kF32: memcpy(b, &f, 4); break;
    case kF16: memcpy(b, &h, 2); break;
    case kBF16: h = static_cast<uint16_t>(bits >> 16), memcpy(b, &h, 2); break;
    case kE8M0: b[0] = static_cast<uint8_t>(118 + random_bits() % 6); break;
    case kU8: b[0] = static_cast<uint8_t>(random_bits() % 16); break;
    case kI8: b[0] = static_cast<uint8_t>(positive ? 1 + random_bits() % 20 : random_bits()); break;
    case kE4M3: b[0] = static_cast<uint8_t>(random_bits() % 0x40 | (positive ? 0 : random_bits() & 0x80)); break;
    case kE5M2: b[0] = static_cast<uint8_t>(random_bits() % 0x40 | (positive ? 0 : random_bits() & 0x80)); break;
    default: break;
  }
  out.insert(out.end(), b, b + size_of(kind));
}

void align(std::vector<uint8_t>& d) { d.resize((d.size() + 63) / 64 * 64); }

struct Case {
  Term term = {};
  TermView view = {};
  std::vector<uint8_t> data;
  std::vector<std::vector<uint8_t>> planes;
  std::vector<float> table;
  std::vector<int8_t> itable;
  char name[160];
};

void add_param(Case& c, Param& p, NumberKind kind, bool positive, uint32_t span) {
  p.kind = kind;
  if (kind == kNo) return;
  align(c.data);
  p.at = c.data.size();
  for (uint32_t i = 0; i < c.view.row_blocks * c.term.groups * 16; i++) put_random(kind, positive, c.data);
  if (!span) return;
  p.super_span = span;
  p.super_kind = span & 1 ? kF32 : kF16;
  align(c.data);
  p.super_at = c.data.size();
  uint32_t n = c.view.row_blocks * ((c.term.groups + span - 1) / span) * 16;
  for (uint32_t i = 0; i < n; i++) put_random(static_cast<NumberKind>(p.super_kind), true, c.data);
}

size_t code_bytes(const Case& c) {
  size_t n = static_cast<size_t>(c.view.row_blocks) * 16 * c.view.columns;
  const Term& t = c.term;
  switch (t.kind) {
    case kNibbles: case kTable4: return n / 2;
    case kPairs: return n / 4;
    case kBytes: return n;
    case kPlanes: return n / 8;
    case kTable3: return n / 32 * 12;
    case kFloats: return n * size_of(static_cast<NumberKind>(t.element));
    case kVector: return n / t.width * t.books * (t.levels > 256 ? 2 : 1);
    default: return 0;
  }
}

void add_codes(Case& c) {
  Term& t = c.term;
  align(c.data);
  t.codes_at = c.data.size();
  size_t bytes = code_bytes(c);
  if (t.kind == kFloats) {
    for (size_t i = 0; i < bytes / size_of(static_cast<NumberKind>(t.element)); i++)
      put_random(static_cast<NumberKind>(t.element), false, c.data);
  } else if (t.kind == kBitstack) {
    for (size_t i = 0; i < static_cast<size_t>(c.view.row_blocks) * t.rank * 16 + t.rank * c.view.columns; i++)
      put_random(kF16, false, c.data);
    for (size_t i = 0; i < static_cast<size_t>(c.view.row_blocks) * 2 * c.view.columns; i++)
      c.data.push_back(static_cast<uint8_t>(random_bits() >> 5));
  } else if (t.kind == kSparse) {
    std::vector<uint32_t> words(1, 0);
    std::vector<uint32_t> entries;
    for (uint32_t rb = 0; rb < c.view.row_blocks; rb++) {
      for (uint32_t column = 0; column < c.view.columns; column += 1 + random_bits() % 9) {
        float f = random_float();
        uint32_t b;
        memcpy(&b, &f, 4);
        entries.insert(entries.end(), {column, random_bits() % 16, b});
      }
      words.push_back(static_cast<uint32_t>(entries.size() / 3));
    }
    t.entries = static_cast<uint32_t>(entries.size() / 3);
    words.insert(words.end(), entries.begin(), entries.end());
    const uint8_t* p = reinterpret_cast<const uint8_t*>(words.data());
    c.data.insert(c.data.end(), p, p + words.size() * 4);
  } else {
    for (size_t i = 0; i < bytes; i++) {
      bool top = t.kind == kVector && t.levels > 256 && (i & 1);
      c.data.push_back(static_cast<uint8_t>(top ? random_bits() % (t.levels / 256) : random_bits() >> 5));
    }
    if (t.kind == kVector && t.levels < 256)
      for (size_t i = t.codes_at; i < c.data.size(); i++) c.data[i] = static_cast<uint8_t>(c.data[i] % t.levels);
    c.planes.resize(t.planes);
    for (uint32_t p = 1; p < t.planes; p++)
      for (size_t i = 0; i < bytes; i++) c.planes[p].push_back(static_cast<uint8_t>(random_bits() >> 5));
  }
}

void add_tables(Case& c) {
  Term& t = c.term;
  if (t.kind == kVector) {
    for (uint32_t i = 0; i < t.books * t.levels * t.width; i++) c.table.push_back(random_float());
  }
  if (t.kind != kTable4 && t.kind != kTable3) return;
  float most = 0;
  for (uint32_t i = 0; i < t.tables * (t.kind == kTable4 ? 16 : 8); i++) {
    c.table.push_back(random_float());
    most = std::fmax(most, std::fabs(c.table.back()));
  }
  t.table_unit = most / 127;
  for (float f : c.table) c.itable.push_back(static_cast<int8_t>(std::nearbyint(f / t.table_unit)));
  align(c.data);
  t.select_at = c.data.size();
  if (t.tables > 1)
    for (uint32_t i = 0; i < c.view.row_blocks * t.groups * 16; i++)
      c.data.push_back(static_cast<uint8_t>(random_bits() % t.tables));
}

struct Options {
  NumberKind scale = kF16, zero = kNo, offset = kNo;
  uint32_t span = 0;
};

void build(Case& c, uint32_t rows, uint32_t columns, uint32_t group, const Options& o, uint32_t resident) {
  c.view.row_blocks = rows / 16;
  c.view.columns = columns;
  c.term.group = group ? group : columns;
  c.term.groups = (columns + c.term.group - 1) / c.term.group;
  if (c.term.planes == 0) c.term.planes = 1;
  add_param(c, c.term.scale, o.scale, true, o.span);
  add_param(c, c.term.zero, o.zero, false, 0);
  add_param(c, c.term.offset, o.offset, false, 0);
  add_tables(c);
  add_codes(c);
  c.view.term = &c.term;
  c.view.base = c.data.data();
  c.view.planes = resident;
  c.view.codes[0] = c.data.data() + c.term.codes_at;
  for (uint32_t p = 1; p < resident; p++) c.view.codes[p] = c.planes[p].data();
  c.view.table = c.table.data();
  c.view.itable = c.itable.data();
  snprintf(c.name, sizeof c.name, "kind %d element %d planes %u/%d group %u columns %u zero %d scale %d tables %u",
           c.term.kind, c.term.element, resident, c.term.planes, c.term.group, columns, o.zero, o.scale,
           c.term.tables);
}

double param_of(const Case& c, const Param& p, size_t rb, size_t g, size_t r, double otherwise) {
  if (p.kind == kNo) return otherwise;
  double v = number(static_cast<NumberKind>(p.kind), c.view.base + p.at, (rb * c.term.groups + g) * 16 + r);
  if (p.super_kind == kNo) return v;
  size_t supers = (c.term.groups + p.super_span - 1) / p.super_span;
  return v * number(static_cast<NumberKind>(p.super_kind), c.view.base + p.super_at,
                    (rb * supers + g / p.super_span) * 16 + r);
}

// One weight, straight from the words of format.h.
double weight_of(const Case& c, size_t row, size_t k) {
  const Term& t = c.term;
  const TermView& v = c.view;
  size_t rb = row / 16, r = row % 16, n = v.columns, g = k / t.group;
  const uint8_t* p = v.codes[0];
  double scale = param_of(c, t.scale, rb, g, r, 1), zero = param_of(c, t.zero, rb, g, r, t.zero_for_all);
  double offset = param_of(c, t.offset, rb, g, r, 0), code = 0;
  size_t nibble = (rb * (n / 8) + k / 8) * 64 + 4 * r + k % 4, pair = (rb * (n / 16) + k / 16) * 64 + 4 * r + k % 4;
  uint32_t f = static_cast<uint32_t>(k % 16 / 4);
  size_t select = t.tables > 1 ? v.base[t.select_at + (rb * t.groups + g) * 16 + r] : 0;
  switch (t.kind) {
    case kNibbles: code = p[nibble] >> (k % 8 / 4 * 4) & 15; break;
    case kPairs: code = p[pair] >> (2 * f) & 3; break;
    case kBytes: code = p[(rb * (n / 4) + k / 4) * 64 + 4 * r + k % 4]; break;
    case kPlanes: {
      double s = 0;
      size_t at = (rb * (n / 32) + k / 32) * 64 + 16 * (k % 16 / 4) + r;
      for (uint32_t i = 0; i < v.planes; i++)
        s += std::ldexp(v.codes[i][at] >> (k % 32 / 16 * 4 + k % 4) & 1 ? 1 : -1, static_cast<int>(v.planes - 1 - i));
      code = (std::ldexp(s, static_cast<int>(t.planes - v.planes)) + (1 << t.planes) - 1) / 2;
      break;
    }
    case kTable4: return c.table[select * 16 + (p[nibble] >> (k % 8 / 4 * 4) & 15)] * scale;
    case kTable3: {
      const uint8_t* unit = p + (rb * (n / 32) + k / 32) * 192;
      uint32_t low = unit[k % 32 / 16 * 64 + 4 * r + k % 4] >> (2 * f) & 3;
      uint32_t high = unit[128 + 4 * r + k % 4] >> (k % 32 / 4) & 1;
      return c.table[select * 8 + low + 4 * high] * scale;
    }
    case kFloats: return number(static_cast<NumberKind>(t.element), p, (rb * n + k) * 16 + r) * scale;
    case kVector: {
      double s = 0;
      for (size_t b = 0; b < t.books; b++) {
        size_t i = ((rb * (n / t.width) + k / t.width) * t.books + b) * 16 + r;
        size_t e = t.levels > 256 ? p[2 * i] + 256u * p[2 * i + 1] : p[i];
        s += c.table[(b * t.levels + e) * t.width + k % t.width];
      }
      return s * scale;
    }
    case kBitstack: {
      const uint8_t* right = p + v.row_blocks * t.rank * 32;
      const uint8_t* signs = right + t.rank * n * 2;
      size_t first = k / kTile * kTile, width = first + kTile < n ? kTile : n - first, j = k - first;
      double s = 0;
      for (size_t i = 0; i < t.rank; i++) s += number(kF16, p, (rb * t.rank + i) * 16 + r) * number(kF16, right, i * n + k);
      uint8_t b = signs[v.row_blocks * (first / 32) * 64 + (rb * (width / 32) + j / 32) * 64 + 16 * (j % 16 / 4) + r];
      return b >> (j % 32 / 16 * 4 + j % 4) & 1 ? s : -s;
    }
    case kSparse: {
      double s = 0;
      uint32_t bounds[2], e[2];
      memcpy(bounds, p + 4 * rb, 8);
      for (uint32_t i = bounds[0]; i < bounds[1]; i++) {
        const uint8_t* at = p + (v.row_blocks + 1) * 4 + 12 * static_cast<size_t>(i);
        memcpy(e, at, 8);
        if (e[0] == k && e[1] == r) s += number(kF32, at + 8, 0);
      }
      return s;
    }
    default: return 0;
  }
  return (code - zero) * scale + offset;
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
    k.quantize(&in.x[static_cast<size_t>(t) * a.stride], columns, a.group, tokens, &in.q[static_cast<size_t>(t) * a.group],
               &in.scale[t], &in.sum[t], &in.fsum[t]);
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
    scalar.decode_row[c.term.kind](c.view, r, row.data());
    for (size_t k = 0; k < n; k++)
      check(std::fabs(row[k] - w[r * n + k]) <= 1e-5 * (1 + std::fabs(w[r * n + k])), c.name, "decode_row", row[k]);
    for (const Kernels* const* k = kAllKernels; *k; k++) {
      std::vector<float> other(n, 0.0f);
      if (!runs_here(**k)) continue;
      (*k)->decode_row[c.term.kind](c.view, r, other.data());
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
  const uint32_t positions = 5;
  std::vector<uint16_t> half(n * positions);
  std::vector<int8_t> bytes(n * positions);
  std::vector<float> scales(positions), keys(n * positions), scores(positions);
  for (uint32_t i = 0; i < n * positions; i++) keys[i] = x[i % n] * w[(i + i / n) % n];
  for (uint32_t p = 0; p < positions; p++) {
    k.store_f16(&keys[p * n], n, &half[p * n]);
    k.store_int8(&keys[p * n], n, &bytes[p * n], &scales[p]);
  }
  for (uint16_t h : half) all.push_back(h);
  for (int8_t b : bytes) all.push_back(b);
  auto keep_scores = [&] { all.insert(all.end(), scores.begin(), scores.end()); };
  k.scores_f16(x.data(), half.data(), n, positions, 0.3f, scores.data()), keep_scores();
  k.scores_int8(x.data(), bytes.data(), scales.data(), n, positions, 0.3f, scores.data()), keep_scores();
  k.scores_f32(x.data(), keys.data(), n, n, positions, 0.3f, scores.data()), keep_scores();
  k.mix_f16(w.data(), half.data(), n, positions, out.data()), keep();
  k.mix_int8(w.data(), bytes.data(), scales.data(), n, positions, out.data()), keep();
  k.mix_f32(w.data(), keys.data(), n, n, positions, out.data()), keep();
  return all;
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
      check(std::fabs(y[i] - want) <= 1e-6 * std::fabs(want) * (1 + std::fabs(v)) * 4 + 1e-12, "activation", "value", v);
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
  for (const Kernels* const* k = kAllKernels; *k; k++) printf("%s%s\n", (*k)->name, runs_here(**k) ? "" : " (not here)");
  run_vectors();
  run_kinds();
  printf("hash %016llx\n", static_cast<unsigned long long>(hash));
  printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
