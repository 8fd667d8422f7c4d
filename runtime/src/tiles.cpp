#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace qd {

namespace {

constexpr float kMasked = -3.0e38f;
constexpr uint32_t kDirectRows = 4;       // so few read a tile as it is stored
constexpr uint32_t kExactDepth = 512;     // 32767 * 127 * 512 is the greatest sum below 2^31
constexpr float kLevels = 32767.0f;

struct Rows {  // of the queries that see something of a tile
  uint32_t begin, end;
};

Rows rows_of_tile(const Queries& q, uint32_t first) {
  Rows r{0, q.rows};
  while (r.begin < r.end && q.visible[r.begin].end <= first) ++r.begin;
  while (r.begin < r.end && q.visible[r.end - 1].begin >= first + kBlockTokens) --r.end;
  return r;
}

Visible part_of_tile(const Visible& v, uint32_t first) {
  return {v.begin > first ? v.begin - first : 0, std::min(v.end - first, kBlockTokens)};
}

struct Tile {
  const void *keys, *values;
  const float *key_scales, *value_scales;
  bool wide;  // converted
};

Tile tile_at(const Queries& q, const TileRoom& room, uint32_t first, uint32_t rows) {
  const CacheShape& c = q.shape;
  HeadBlock b = head_block(c, q.blocks[first / kBlockTokens] + q.first_head, q.head);
  Tile t{b.keys, b.values, b.key_scales, b.value_scales, false};
  if (rows <= kDirectRows || c.dtype == QD_KV_F32) return t;
  uint32_t keys = c.key_depth * kBlockTokens, values = c.value_stride * kBlockTokens;
  if (c.dtype == QD_KV_F16) {
    q.kernels.widen_f16(reinterpret_cast<uint16_t*>(b.keys), keys, static_cast<float*>(room.keys));
    q.kernels.widen_f16(reinterpret_cast<uint16_t*>(b.values), values, static_cast<float*>(room.values));
  } else {
    q.kernels.widen_int8(reinterpret_cast<int8_t*>(b.keys), keys, static_cast<int16_t*>(room.keys));
    q.kernels.widen_int8(reinterpret_cast<int8_t*>(b.values), values, static_cast<int16_t*>(room.values));
  }
  t.keys = room.keys;
  t.values = room.values;
  t.wide = true;
  return t;
}

void product(const Queries& q, const Tile& t, const TileProduct& p) {
  const Kernels& k = q.kernels;
  if (q.shape.dtype == QD_KV_INT8) return t.wide ? k.product_int16(p) : k.product_int8(p);
  if (q.shape.dtype == QD_KV_F16 && !t.wide) return k.product_f16(p);
  k.product_f32(p);
}

void limit(const Queries& q, float* scores) {
  if (q.softcap <= 0) return;
  for (uint32_t i = 0; i < kBlockTokens; ++i) scores[i] /= q.softcap;
  q.kernels.activate(format::kTanh, scores, kBlockTokens, scores);
  for (uint32_t i = 0; i < kBlockTokens; ++i) scores[i] *= q.softcap;
}

void score(const Queries& q, const TileRoom& room, const float* factors, const Tile& t, const Rows& r) {
  const CacheShape& c = q.shape;
  uint32_t rows = r.end - r.begin;
  bool ints = c.dtype == QD_KV_INT8;
  float* scores = room.scores + uint64_t{r.begin} * kBlockTokens;
  const void* a = ints ? static_cast<const void*>(room.rounded + uint64_t{r.begin} * c.key_depth)
                       : room.queries + uint64_t{r.begin} * c.key_depth;
  void* out = ints ? static_cast<void*>(room.sums) : scores;
  product(q, t, {a, c.key_depth, t.keys, kBlockTokens, rows, c.key_depth, kBlockTokens, nullptr, out, kBlockTokens});
  for (uint32_t i = 0; i < rows; ++i) {
    float* row = scores + uint64_t{i} * kBlockTokens;
    if (ints) q.kernels.float_scores(room.sums + uint64_t{i} * kBlockTokens, t.key_scales, factors[r.begin + i], row);
    else q.kernels.scale_scores(row, q.scale);
  }
}

// Scores to shares; keep[i]: what is left of row i's earlier tiles.
void share(const Queries& q, const TileRoom& room, uint32_t first, const Rows& r, const Shares& out, float* keep) {
  for (uint32_t i = r.begin; i < r.end; ++i) {
    float* scores = room.scores + uint64_t{i} * kBlockTokens;
    Visible v = part_of_tile(q.visible[i], first);
    limit(q, scores);
    for (uint32_t p = v.begin; q.mask && p < v.end; ++p)
      if (q.mask[first + p] == 0) scores[p] = kMasked;
    keep[i] = q.kernels.tile_shares(scores, v.begin, v.end, out.most + i, out.total + i);
  }
}

// Rows that see the same positions are one product; positions that are not seen are not read.
void mix_floats(const Queries& q, const TileRoom& room, const Tile& t, uint32_t first, const Rows& r, const Shares& out,
                const float* keep) {
  const CacheShape& c = q.shape;
  uint64_t size = c.dtype == QD_KV_F16 && !t.wide ? sizeof(uint16_t) : sizeof(float);
  for (uint32_t i = r.begin, next; i < r.end; i = next) {
    Visible v = part_of_tile(q.visible[i], first);
    for (next = i + 1; next < r.end; ++next) {
      Visible w = part_of_tile(q.visible[next], first);
      if (w.begin != v.begin || w.end != v.end) break;
    }
    const uint8_t* values = static_cast<const uint8_t*>(t.values) + uint64_t{v.begin} * c.value_stride * size;
    product(q, t, {room.scores + uint64_t{i} * kBlockTokens + v.begin, kBlockTokens, values, c.value_stride, next - i,
                   v.end - v.begin, c.value_stride, keep + i, out.values + uint64_t{i} * c.value_stride, c.value_stride});
  }
}

void mix_ints(const Queries& q, const TileRoom& room, const Tile& t, uint32_t first, const Rows& r, const Shares& out,
              const float* keep) {
  const CacheShape& c = q.shape;
  float factors[kQueryRows];
  for (uint32_t i = r.begin; i < r.end; ++i) {
    float* shares = room.scores + uint64_t{i} * kBlockTokens;
    Visible v = part_of_tile(q.visible[i], first);
    q.kernels.multiply(shares + v.begin, t.value_scales + v.begin, v.end - v.begin, shares + v.begin);
    factors[i] = q.kernels.round_int16(shares, kBlockTokens, kLevels, room.weights + uint64_t{i} * kBlockTokens);
  }
  product(q, t, {room.weights + uint64_t{r.begin} * kBlockTokens, kBlockTokens, t.values, c.value_stride, r.end - r.begin,
                 kBlockTokens, c.value_stride, nullptr, room.sums, c.value_stride});
  for (uint32_t i = r.begin; i < r.end; ++i)
    q.kernels.add_ints(out.values + uint64_t{i} * c.value_stride, keep[i],
                       room.sums + uint64_t{i - r.begin} * c.value_stride, factors[i], c.value_stride);
}

}  // namespace

Checked make_tile_room(const CacheShape& c, uint8_t* base, TileRoom* room) {
  Layout at(base);
  Checked rows = kQueryRows, wide = c.dtype == QD_KV_F32 ? 0 : c.dtype == QD_KV_F16 ? 4 : 2;
  bool ints = c.dtype == QD_KV_INT8;
  at.take(&room->queries, rows * c.key_depth);
  at.take(&room->rounded, ints ? rows * c.key_depth : 0);
  at.take(&room->scores, rows * kBlockTokens);
  at.take(&room->weights, ints ? rows * kBlockTokens : 0);
  at.take(&room->sums, ints ? rows * std::max(kBlockTokens, c.value_stride) : 0);
  uint8_t *keys = nullptr, *values = nullptr;
  at.take(&keys, wide * kBlockTokens * c.key_depth);
  at.take(&values, wide * kBlockTokens * c.value_stride);
  room->keys = keys;
  room->values = values;
  for (Shares* s : {&room->segment, &room->whole}) {
    at.take(&s->most, rows);
    at.take(&s->total, rows);
    at.take(&s->values, rows * c.value_stride);
  }
  at.take(&room->token, (Checked(c.head_dim) + c.value_dim) * sizeof(float));
  return at.taken();
}

void round_queries(const Queries& q, TileRoom& room, float* factors) {
  uint32_t depth = q.shape.key_depth;
  float levels = depth <= kExactDepth ? kLevels : std::floor(kLevels * kExactDepth / static_cast<float>(depth));
  for (uint32_t i = 0; i < q.rows; ++i)
    factors[i] = q.scale * q.kernels.round_int16(room.queries + uint64_t{i} * depth, depth, levels,
                                                 room.rounded + uint64_t{i} * depth);
}

void clear(const Shares& s, uint32_t rows, uint32_t value_stride) {
  for (uint32_t i = 0; i < rows; ++i) s.most[i] = -INFINITY;
  std::memset(s.total, 0, rows * sizeof(float));
  std::memset(s.values, 0, uint64_t{rows} * value_stride * sizeof(float));
}

void attend_segment(const Queries& q, const TileRoom& room, const float* factors, uint32_t segment, const Shares& out) {
  clear(out, q.rows, q.shape.value_stride);
  uint32_t begin = std::max(q.visible[0].begin, segment * kSegmentTokens) / kBlockTokens * kBlockTokens;
  uint64_t end = std::min<uint64_t>(q.visible[q.rows - 1].end, (uint64_t{segment} + 1) * kSegmentTokens);
  float keep[kQueryRows];
  for (uint32_t first = begin; first < end; first += kBlockTokens) {
    Rows r = rows_of_tile(q, first);
    if (r.begin >= r.end) continue;
    Tile t = tile_at(q, room, first, r.end - r.begin);
    score(q, room, factors, t, r);
    share(q, room, first, r, out, keep);
    if (q.shape.dtype == QD_KV_INT8) mix_ints(q, room, t, first, r, out, keep);
    else mix_floats(q, room, t, first, r, out, keep);
  }
}

void join(const Queries& q, const Shares& earlier, const Shares& later) {
  uint32_t stride = q.shape.value_stride;
  for (uint32_t i = 0; i < q.rows; ++i)
    q.kernels.join_shares(earlier.values + uint64_t{i} * stride, earlier.most + i, earlier.total + i,
                          later.values + uint64_t{i} * stride, later.most[i], later.total[i], stride);
}

}  // namespace qd
