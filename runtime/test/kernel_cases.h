// Random terms of every kind, and what each of their weights is, decoded from the words of format.h in the plainest
// way.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "../src/kernels/kernels.h"

namespace cases {

using namespace qd;
using namespace qd::format;

inline uint64_t state = 1;  // of the random numbers: the same ones on every machine

inline uint32_t random_bits() {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<uint32_t>(state >> 33);
}
inline float random_float() { return static_cast<float>(static_cast<int>(random_bits() % 20001) - 10000) * 1e-4f; }

// The numbers of format.h, decoded in the plainest way.
inline double number(NumberKind kind, const uint8_t* p, size_t i) {
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

inline size_t size_of(NumberKind k) { return k == kF32 ? 4 : k == kF16 || k == kBF16 ? 2 : k == kNo ? 0 : 1; }

// A random number of a kind that is neither infinite nor huge, as a scale (positive) or as an element.
inline void put_random(NumberKind kind, bool positive, std::vector<uint8_t>& out) {
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

inline void align(std::vector<uint8_t>& d) { d.resize((d.size() + 63) / 64 * 64); }

struct Case {
  Term term = {};
  TermView view = {};
  std::vector<uint8_t> data;
  std::vector<std::vector<uint8_t>> planes;
  std::vector<float> table;
  std::vector<int8_t> itable;
  char name[160];
};

inline void add_param(Case& c, Param& p, NumberKind kind, bool positive, uint32_t span) {
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

inline size_t code_bytes(const Case& c) {
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

inline void add_codes(Case& c) {
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

inline void add_tables(Case& c) {
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

inline void build(Case& c, uint32_t rows, uint32_t columns, uint32_t group, const Options& o, uint32_t resident) {
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

inline double param_of(const Case& c, const Param& p, size_t rb, size_t g, size_t r, double otherwise) {
  if (p.kind == kNo) return otherwise;
  double v = number(static_cast<NumberKind>(p.kind), c.view.base + p.at, (rb * c.term.groups + g) * 16 + r);
  if (p.super_kind == kNo) return v;
  size_t supers = (c.term.groups + p.super_span - 1) / p.super_span;
  return v * number(static_cast<NumberKind>(p.super_kind), c.view.base + p.super_at,
                    (rb * supers + g / p.super_span) * 16 + r);
}

// One weight, straight from the words of format.h.
inline double weight_of(const Case& c, size_t row, size_t k) {
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
      for (size_t i = 0; i < t.rank; i++)
        s += number(kF16, p, (rb * t.rank + i) * 16 + r) * number(kF16, right, i * n + k);
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

}  // namespace cases
