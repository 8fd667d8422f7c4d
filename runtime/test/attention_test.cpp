// Tiles of attention over some thousand random positions, with every kind of cache and every shape of what is visible:
// close to plain attention in double precision, the same bits for every instruction set and however queries are grouped.
// Prints a hash of all results.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernel_cases.h"
#include "tiles.h"

using namespace qd;
using cases::random_float;

namespace {

int failures = 0;
uint64_t hash = 1469598103934665603ull;

struct Shape {
  const char* name;
  uint32_t head_dim, value_dim, positions, window, chunk;
  float softcap;
  bool causal, masked;
};

struct Network {  // keys, values and queries of one head
  Shape shape;
  std::vector<float> keys, values, queries;
  std::vector<int32_t> mask;

  explicit Network(const Shape& s) : shape(s), keys(s.positions * s.head_dim), values(s.positions * s.value_dim),
                                     queries(s.positions * s.head_dim), mask(s.positions, 1) {
    for (float& f : keys) f = random_float();
    for (float& f : values) f = random_float();
    for (float& f : queries) f = 2 * random_float();
    for (uint32_t i = 0; s.masked && i < s.positions; ++i) mask[i] = cases::random_bits() % 3 > 0;
  }
  Visible visible(uint32_t position) const {
    Visible v{0, shape.causal ? position + 1 : shape.positions};
    if (shape.window > 0 && position + 1 > shape.window) v.begin = position + 1 - shape.window;
    if (shape.chunk > 0) v.begin = position / shape.chunk * shape.chunk;
    return v;
  }
};

struct Cache {
  CacheShape shape;
  std::vector<std::vector<uint8_t>> data;
  std::vector<uint8_t*> blocks;

  Cache(const Kernels& k, const Network& n, qd_kv_dtype dtype)
      : shape(cache_shape(dtype, n.shape.head_dim, n.shape.value_dim)) {
    std::vector<uint8_t> room((n.shape.head_dim + n.shape.value_dim) * sizeof(float));
    for (uint32_t p = 0; p < n.shape.positions; ++p) {
      if (p % kBlockTokens == 0) data.emplace_back(2 * shape.bytes, 0), blocks.push_back(data.back().data());
      store_token(k, shape, head_block(shape, blocks.back(), 1), p % kBlockTokens, &n.keys[p * n.shape.head_dim],
                  &n.values[p * n.shape.value_dim], room.data());
    }
  }
};

// The queries of [first, first + rows), `copies` heads of each.
std::vector<float> attend(const Kernels& k, const Network& n, const Cache& c, uint32_t first, uint32_t rows) {
  TileRoom room;
  std::vector<uint8_t> memory(make_tile_room(c.shape, nullptr, &room).value() + 64);
  uint64_t skew = (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  make_tile_room(c.shape, memory.data() + skew, &room);
  Visible visible[kQueryRows];
  float factors[kQueryRows];
  for (uint32_t i = 0; i < rows; ++i) {
    visible[i] = n.visible(first + i);
    std::memset(room.queries + i * c.shape.key_depth, 0, c.shape.key_depth * sizeof(float));
    std::memcpy(room.queries + i * c.shape.key_depth, &n.queries[(first + i) * n.shape.head_dim], n.shape.head_dim * sizeof(float));
  }
  Queries q{k, c.shape, 0.3f, n.shape.softcap, visible, rows, c.blocks.data(), 0, 1, n.shape.masked ? n.mask.data() : nullptr};
  if (c.shape.dtype == QD_KV_INT8) round_queries(q, room, factors);
  clear(room.whole, rows, c.shape.value_stride);
  uint32_t last = (visible[rows - 1].end - 1) / kSegmentTokens;
  for (uint32_t segment = visible[0].begin / kSegmentTokens; segment <= last; ++segment) {
    attend_segment(q, room, factors, segment, room.segment);
    join(q, room.whole, room.segment);
  }
  std::vector<float> out;
  for (uint32_t i = 0; i < rows; ++i)
    for (uint32_t d = 0; d < n.shape.value_dim; ++d)
      out.push_back(room.whole.values[i * c.shape.value_stride + d] / room.whole.total[i]);
  return out;
}

std::vector<double> plain(const Network& n, uint32_t position) {
  const Shape& s = n.shape;
  Visible v = n.visible(position);
  std::vector<double> scores, out(s.value_dim, 0.0);
  double most = -INFINITY, total = 0;
  for (uint32_t p = v.begin; p < v.end; ++p) {
    double x = 0;
    for (uint32_t d = 0; d < s.head_dim; ++d)
      x += static_cast<double>(n.queries[position * s.head_dim + d]) * static_cast<double>(n.keys[p * s.head_dim + d]);
    x *= 0.3;
    if (s.softcap > 0) x = std::tanh(x / static_cast<double>(s.softcap)) * static_cast<double>(s.softcap);
    if (s.masked && n.mask[p] == 0) x = -3e38;
    scores.push_back(x);
    most = std::fmax(most, x);
  }
  for (double& x : scores) total += x = std::exp(x - most);
  for (uint32_t p = v.begin; p < v.end; ++p)
    for (uint32_t d = 0; d < s.value_dim; ++d)
      out[d] += scores[p - v.begin] / total * static_cast<double>(n.values[p * s.value_dim + d]);
  return out;
}

void check(bool good, const Shape& s, const char* what, double value = 0) {
  if (!good && failures++ < 40) printf("FAIL %s: %s (%g)\n", s.name, what, value);
}

void run_queries(const Network& n, const Cache& c, const Kernels& k, uint32_t first, uint32_t rows) {
  const double tolerance[] = {2e-3, 3e-2, 1e-5};
  std::vector<float> all = attend(k, n, c, first, rows);
  for (uint32_t i = 0; i < rows; ++i) {
    std::vector<double> want = plain(n, first + i);
    for (uint32_t d = 0; d < n.shape.value_dim; ++d)
      check(std::fabs(all[i * n.shape.value_dim + d] - want[d]) < tolerance[c.shape.dtype], n.shape, "far", want[d]);
  }
  for (uint32_t part : {1u, 3u})
    for (uint32_t i = 0; i < rows; i += part) {
      std::vector<float> some = attend(k, n, c, first + i, part < rows - i ? part : rows - i);
      check(!std::memcmp(some.data(), &all[i * n.shape.value_dim], some.size() * sizeof(float)), n.shape, "groups differ", i);
    }
  for (float f : all) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    hash = (hash ^ bits) * 1099511628211ull;
  }
  for (const Kernels* const* other = kAllKernels; *other; ++other)
    if (runs_here(**other) && *other != &k)
      check(attend(**other, n, c, first, rows) == all, n.shape, (*other)->name);
}

}  // namespace

int main() {
  const Shape shapes[] = {{"causal", 64, 64, 2600, 0, 0, 0, true, false},   {"window", 64, 64, 2600, 700, 0, 0, true, false},
                          {"chunks", 80, 80, 1500, 0, 512, 0, true, false}, {"limited", 33, 33, 200, 0, 0, 3, true, false},
                          {"latent", 576, 512, 300, 0, 0, 0, true, false},  {"encoder", 32, 32, 150, 0, 0, 0, false, true}};
  for (const Shape& shape : shapes) {
    Network n(shape);
    for (qd_kv_dtype dtype : {QD_KV_F16, QD_KV_INT8, QD_KV_F32}) {
      const Kernels& scalar = *select_kernels("scalar");
      Cache c(scalar, n, dtype);
      for (uint32_t first : {0u, shape.positions / 2 - 5, shape.positions - 70})
        run_queries(n, c, scalar, first, first == 0 ? 5 : 64);
    }
  }
  printf("hash %016llx\n", static_cast<unsigned long long>(hash));
  printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
