// Speed of the kernels of the native runtime: weights per second and bytes per second of every kind of term, next to
// plain reading, from memory that no cache holds. One thread; its CPU time counts, so other work on the machine does
// not.
//
//   native_kernels [isa] [MB of weights] [rounds]
//
// Prints one line of JSON: {"isa", "read_gb_s", "kinds": {name: {"bits", "one", "one_gb_s", "one_of_read", "many"}}};
// `one` and `many` are 1e9 weights per second for one token and for 32 at once.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../runtime/src/kernels/kernels.h"

using namespace qd;
using namespace qd::format;

namespace {

constexpr uint32_t kMatrixRows = 2048, kMatrixColumns = 4096, kGroup = 128, kManyTokens = 32;

struct Case {
  const char* name;
  uint16_t kind;
  uint32_t planes, bits8;  // bits8: bits per eight weights, without scales
};

constexpr Case kCases[] = {
    {"nibbles", kNibbles, 1, 32}, {"pairs", kPairs, 1, 16},      {"bytes", kBytes, 1, 64},
    {"planes1", kPlanes, 1, 8},   {"planes2", kPlanes, 2, 16},   {"planes3", kPlanes, 3, 24},
    {"planes4", kPlanes, 4, 32},  {"planes8", kPlanes, 8, 64},   {"table4", kTable4, 1, 32},
    {"table3", kTable3, 1, 24},   {"floats16", kFloats, 1, 128}, {"bitstack", kBitstack, 1, 8},
};

double seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class Run>
double median_of(int rounds, Run run) {
  std::vector<double> taken;
  for (int i = 0; i < rounds; i++) {
    double start = seconds();
    run();
    taken.push_back(seconds() - start);
  }
  std::nth_element(taken.begin(), taken.begin() + rounds / 2, taken.end());
  return taken[static_cast<size_t>(rounds / 2)];
}

// Activations of `tokens` tokens in every form.
struct Input {
  std::vector<float> x, scale, fsum, table_scale;
  std::vector<int32_t> sum;
  std::vector<int8_t> q, tables;
  Activations a;

  Input(const Kernels& k, uint32_t tokens, uint32_t group) {
    uint32_t groups = kMatrixColumns / group, n = kMatrixColumns;
    x.resize(size_t{tokens} * n), q.resize(x.size()), tables.resize(size_t{n} * 4);
    scale.resize(size_t{tokens} * groups), fsum.resize(scale.size()), sum.resize(scale.size()),
        table_scale.resize(groups);
    for (size_t i = 0; i < x.size(); i++) x[i] = static_cast<float>(static_cast<int>(i * 7919 % 2001) - 1000) * 1e-3f;
    for (size_t t = 0; t < tokens; t++)
      k.quantize(&x[t * n], n, group, tokens, &q[t * group], &scale[t], &sum[t], &fsum[t]);
    if (tokens == 1) k.make_tables(x.data(), n, group, tables.data(), table_scale.data(), fsum.data());
    a = {tokens,     n,           group,         groups,
         n,          x.data(),    q.data(),      scale.data(),
         sum.data(), fsum.data(), tables.data(), table_scale.data()};
  }
};

// As many matrices of one kind as fill the memory given.
struct Weights {
  Term term = {};
  std::vector<uint8_t> bytes;
  std::vector<TermView> views;
  std::vector<float> table;
  std::vector<int8_t> itable;

  Weights(const Case& c, size_t memory) {
    term.kind = c.kind, term.planes = static_cast<uint8_t>(c.planes), term.element = kF16;
    term.group = c.kind == kBitstack || c.kind == kFloats ? 0 : kGroup,
    term.groups = term.group ? kMatrixColumns / kGroup : 1;
    term.tables = 1, term.rank = 16, term.table_unit = 0.01f, term.zero_for_all = 8;
    size_t scales = size_t{kMatrixRows} * term.groups * 2, codes = size_t{kMatrixRows} * kMatrixColumns * c.bits8 / 64;
    if (c.kind == kBitstack) codes += size_t{16} * 2 * (kMatrixRows + kMatrixColumns), scales = 0;
    term.scale.kind = scales ? kF16 : kNo, term.codes_at = (scales + 63) / 64 * 64;
    size_t one = term.codes_at + codes, count = std::max<size_t>(1, memory / one);
    bytes.resize(count * one + 64), table.assign(16, 0.1f), itable.assign(16, 7);
    for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<uint8_t>((i * 2654435761u) >> 24);
    for (size_t m = 0; m < count; m++) add(bytes.data() + m * one, c, scales, codes);
  }

  void add(uint8_t* base, const Case& c, size_t scales, size_t codes) {
    uint16_t small = 0x1c00;  // 2^-8
    for (size_t i = 0; i < scales; i += 2) memcpy(base + i, &small, 2);
    if (c.kind == kFloats || c.kind == kBitstack)
      for (size_t i = 0; i < codes; i += 2) base[i + 1] &= 0x1f;
    TermView v = {&term, base, {}, c.planes, kMatrixRows / 16, kMatrixColumns, table.data(), itable.data()};
    for (uint32_t p = 0; p < c.planes; p++) v.codes[p] = base + term.codes_at + codes / c.planes * p;
    views.push_back(v);
  }
};

void run_all(const Kernels& k, const Weights& w, const Input& in, MatVec product, std::vector<float>& y) {
  const Kind& kind = k.kinds[w.term.kind];
  std::vector<uint8_t> scratch(kind.scratch ? kind.scratch(w.term, kMatrixColumns, in.a.tokens) + 64 : 64);
  for (const TermView& v : w.views) {
    if (kind.prepare) kind.prepare(v, in.a, scratch.data());
    product(v, in.a, scratch.data(), y.data(), kMatrixRows, 0, kMatrixRows / 16);
  }
}

volatile uint64_t sink;

double read_speed(size_t memory, int rounds) {
  std::vector<uint64_t> data(memory / 8, 1);
  double t = median_of(rounds, [&] {
    uint64_t a[16] = {};
    for (size_t i = 0; i + 16 <= data.size(); i += 16)
      for (size_t j = 0; j < 16; j++) a[j] |= data[i + j];
    for (uint64_t v : a) sink = sink + v;
  });
  return static_cast<double>(memory) / t / 1e9;
}

void measure(const Kernels& k, const Case& c, size_t memory, int rounds, double read) {
  Weights w(c, memory);
  Input one(k, 1, kGroup), many(k, kManyTokens, kGroup);
  std::vector<float> y(size_t{kMatrixRows} * kManyTokens);
  double weights = static_cast<double>(w.views.size()) * kMatrixRows * kMatrixColumns;
  double t1 = median_of(rounds, [&] { run_all(k, w, one, k.kinds[c.kind].one, y); });
  w.views.resize(1);
  double tn = median_of(rounds, [&] { run_all(k, w, many, k.kinds[c.kind].many, y); });
  double gb = static_cast<double>(w.bytes.size()) / t1 / 1e9;
  printf("\"%s\": {\"bits\": %.3f, \"one\": %.2f, \"one_gb_s\": %.2f, \"one_of_read\": %.3f, \"many\": %.2f}", c.name,
         8.0 * static_cast<double>(w.bytes.size()) / weights, weights / t1 / 1e9, gb, gb / read,
         static_cast<double>(kMatrixRows) * kMatrixColumns * kManyTokens / tn / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  const Kernels* k = select_kernels(argc > 1 && argv[1][0] ? argv[1] : nullptr);
  size_t memory = static_cast<size_t>(argc > 2 ? atoi(argv[2]) : 256) << 20;
  int rounds = argc > 3 ? atoi(argv[3]) : 5;
  const char* only = argc > 4 ? argv[4] : nullptr;
  if (k == nullptr) return fprintf(stderr, "no kernels of that name run here\n"), 2;
  double read = read_speed(memory, rounds);
  printf("{\"isa\": \"%s\", \"read_gb_s\": %.2f, \"kinds\": {", k->name, read);
  bool first = true;
  for (const Case& c : kCases) {
    if (only && strcmp(only, c.name) != 0) continue;
    printf("%s\n", first ? "" : ",");
    first = false;
    measure(*k, c, memory, rounds, read);
    fflush(stdout);
  }
  printf("\n}}\n");
}
