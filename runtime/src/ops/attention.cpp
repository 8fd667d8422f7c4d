// Attention: the new keys and values go to the blocks of their sequence (an encoder's last for one node), then the queries
// of each KV head look at what they may see, in ranges that the threads take one after the other.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "../ops.h"
#include "../rotation.h"
#include "../terms.h"
#include "../tiles.h"

namespace qd {

using namespace format;

namespace {

struct Job {  // attention of one node
  Step& s;
  const Node& n;
  Attention a;
  AttentionKind kind;
  CacheShape shape;
  Rotation rotation;
  uint32_t group;        // query heads of a KV head
  uint64_t first_head;   // of a block
  const int32_t* mask;   // per row of the step

  Job(Step& step, const Node& node) : s(step), n(node), kind(attention_kind(step.model.file, node)) {
    const File& f = s.model.file;
    std::memcpy(&a, f.attributes + n.attr, sizeof a);
    bool cached = n.state != kNone;
    shape = cached ? cache_shape(s.model.settings.cache, a.head_dim, value_dim(f.states[n.state]))
                   : cache_shape(QD_KV_F32, a.head_dim, a.head_dim);
    rotation = rotation_of(s, n, a);
    group = a.heads / a.kv_heads;
    first_head = cached ? s.model.cache.at[n.state] : 0;
    mask = n.inputs[3] == kNone ? nullptr : s.w.ids[n.inputs[3]];
    if (mask && std::find(mask, mask + s.tokens, 0) == mask + s.tokens) mask = nullptr;
  }
  uint32_t queries(const Span& span) const { return span.tokens * group; }
  uint32_t ranges(const Span& span) const { return (queries(span) + kQueryRows - 1) / kQueryRows; }
};

TileRoom room_of(const Job& j, uint32_t thread) {
  TileRoom room;
  make_tile_room(j.shape, j.s.w.tiles + thread * j.s.w.tile_stride, &room);
  return room;
}

void store_key(const Job& j, const Span& span, uint32_t head, uint32_t token, const TileRoom& room, float* key) {
  const Step& s = j.s;
  uint32_t row = span.first + token, at = span.past + token;
  std::memcpy(key, value_at(s, j.n.inputs[1], row) + head * j.a.head_dim, j.a.head_dim * sizeof(float));
  turn(s, j.rotation, row, key);
  HeadBlock block = head_block(j.shape, span.sequence->blocks[at / kBlockTokens] + j.first_head, head);
  store_token(*s.model.settings.kernels, j.shape, block, at % kBlockTokens, key,
              value_at(s, j.n.inputs[2], row) + head * j.shape.value_dim, room.token);
}

void store_keys(const Job& j) {
  Step& s = j.s;
  auto heads = [&](uint32_t thread, uint64_t begin, uint64_t end) {
    TileRoom room = room_of(j, thread);
    for (uint64_t i = begin; i < end; ++i) {  // heads outside: a thread stays with its block
      uint32_t head = static_cast<uint32_t>(i / s.tokens), row = static_cast<uint32_t>(i % s.tokens);
      const Span& span = s.span_of(row);
      store_key(j, span, head, row - span.first, room, s.w.head + thread * s.w.head_stride);
    }
  };
  s.model.pool.parallel_for(uint64_t{s.tokens} * j.a.kv_heads, heads);
}

// Queries times a factor of their position.
void scale_by_position(const Job& j, uint32_t position, float* q) {
  if (j.kind.beta == 0) return;
  double place = (static_cast<double>(position) + j.kind.offset) / j.kind.length;
  float factor = static_cast<float>(1.0 + j.kind.beta * std::log1p(std::floor(place)));
  for (uint32_t i = 0; i < j.a.head_dim; ++i) q[i] *= factor;
}

// A window of w means at most w - 1 tokens before, and in both directions where there is no causality.
Visible visible_at(const Job& j, const Span& span, uint32_t position) {
  uint32_t all = span.past + span.tokens, end = j.a.causal ? position + 1 : all, window = j.a.window, begin = 0;
  if (window > 0 && position + 1 > window) begin = position + 1 - window;
  if (window > 0 && !j.a.causal) end = static_cast<uint32_t>(std::min<uint64_t>(end, uint64_t{position} + window));
  if (j.kind.chunk > 0) begin = std::max(begin, position / j.kind.chunk * j.kind.chunk);
  return {begin, end};
}

struct Range {  // queries of one KV head
  const Span* span;
  uint32_t head, first, rows;
};

Range range_at(const Job& j, uint64_t index) {
  const Span* span = j.s.spans;
  for (uint64_t count; index >= (count = uint64_t{j.a.kv_heads} * j.ranges(*span)); ++span) index -= count;
  uint32_t first = static_cast<uint32_t>(index % j.ranges(*span)) * kQueryRows;
  return {span, static_cast<uint32_t>(index / j.ranges(*span)), first, std::min(kQueryRows, j.queries(*span) - first)};
}

uint64_t range_count(const Job& j) {
  uint64_t count = 0;
  for (uint32_t i = 0; i < j.s.span_count; ++i) count += uint64_t{j.a.kv_heads} * j.ranges(j.s.spans[i]);
  return count;
}

// The queries of a range in the room of a thread.
class Ready {
 public:
  Ready(const Job& job, const Range& of, uint32_t thread)
      : room(room_of(job, thread)), j_(job), r_(of),
        q_{*job.s.model.settings.kernels, job.shape, job.a.scale, job.kind.softcap, visible_, of.rows,
           of.span->sequence->blocks, job.first_head, of.head, job.mask ? job.mask + of.span->first : nullptr} {
    for (uint32_t i = 0; i < r_.rows; ++i) take(i);
    if (j_.shape.dtype == QD_KV_INT8) round_queries(q_, room, factors_);
  }
  uint32_t first_segment() const { return visible_[0].begin / kSegmentTokens; }
  uint32_t end_segment() const { return (visible_[r_.rows - 1].end - 1) / kSegmentTokens + 1; }
  void attend(uint32_t segment, const Shares& out) const { attend_segment(q_, room, factors_, segment, out); }
  void join(const Shares& earlier, const Shares& later) const { qd::join(q_, earlier, later); }

  // Before the first segment: nothing is known, or the sink, which takes part and has no value.
  void begin(const Shares& to) const {
    clear(to, r_.rows, j_.shape.value_stride);
    for (uint32_t i = 0; j_.kind.sinks != kNone && i < r_.rows; ++i) {
      to.most[i] = j_.s.model.floats(j_.kind.sinks)[query_head(i)];
      to.total[i] = 1;
    }
  }
  void finish(const Shares& from) const {
    for (uint32_t i = 0; i < r_.rows; ++i) {
      float inverse = from.total[i] > 0 ? 1.0f / from.total[i] : 0.0f;
      const float* x = from.values + uint64_t{i} * j_.shape.value_stride;
      float* out = value_at(j_.s, j_.n.outputs[0], row(i)) + query_head(i) * j_.shape.value_dim;
      for (uint32_t d = 0; d < j_.shape.value_dim; ++d) out[d] = x[d] * inverse;
    }
  }

  TileRoom room;

 private:
  uint32_t row(uint32_t i) const { return r_.span->first + (r_.first + i) / j_.group; }
  uint32_t query_head(uint32_t i) const { return r_.head * j_.group + (r_.first + i) % j_.group; }
  void take(uint32_t i) {
    uint32_t depth = j_.shape.key_depth, width = j_.a.head_dim, position = r_.span->past + row(i) - r_.span->first;
    float* q = room.queries + uint64_t{i} * depth;
    std::memcpy(q, value_at(j_.s, j_.n.inputs[0], row(i)) + query_head(i) * width, width * sizeof(float));
    if (depth > width) q[width] = 0;
    turn(j_.s, j_.rotation, row(i), q);
    scale_by_position(j_, position, q);
    visible_[i] = visible_at(j_, *r_.span, position);
  }

  const Job& j_;
  Range r_;
  Visible visible_[kQueryRows];
  float factors_[kQueryRows];
  Queries q_;
};

// A range at a time, by whichever thread is free.
void run_ranges(const Job& j, uint64_t count) {
  std::atomic<uint64_t> next{0};
  auto body = [&](uint32_t thread, uint64_t, uint64_t) {
    for (uint64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      Ready ready(j, range_at(j, i), thread);
      ready.begin(ready.room.whole);
      for (uint32_t segment = ready.first_segment(); segment < ready.end_segment(); ++segment) {
        ready.attend(segment, ready.room.segment);
        ready.join(ready.room.whole, ready.room.segment);
      }
      ready.finish(ready.room.whole);
    }
  };
  j.s.model.pool.parallel_for(std::min<uint64_t>(count, j.s.model.pool.threads()), body);
}

// Shares of a segment of a range, or (at == kSegmentsAtOnce) of all before.
Shares partial(const Job& j, uint64_t range, uint32_t at) {
  uint64_t each = kQueryRows * (2 + uint64_t{j.shape.value_stride});
  float* base = j.s.w.partials + (range * (kSegmentsAtOnce + 1) + at) * each;
  return {base, base + kQueryRows, base + 2 * kQueryRows};
}

// Fewer ranges than threads: these share the segments out, some at a time, and then join them in their order.
void run_segments(const Job& j, uint64_t count) {
  uint32_t first = UINT32_MAX, end = 0;
  for (uint64_t i = 0; i < count; ++i) {
    Ready ready(j, range_at(j, i), 0);
    first = std::min(first, ready.first_segment());
    end = std::max(end, ready.end_segment());
    ready.begin(partial(j, i, kSegmentsAtOnce));
  }
  for (; first < end; first += kSegmentsAtOnce) {
    uint32_t segments = std::min(kSegmentsAtOnce, end - first);
    std::atomic<uint64_t> next{0};
    auto body = [&](uint32_t thread, uint64_t, uint64_t) {
      for (uint64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count * segments;) {
        uint32_t at = static_cast<uint32_t>(i % segments);
        Ready(j, range_at(j, i / segments), thread).attend(first + at, partial(j, i / segments, at));
      }
    };
    j.s.model.pool.parallel_for(std::min<uint64_t>(count * segments, j.s.model.pool.threads()), body);
    for (uint64_t i = 0; i < count; ++i)
      for (uint32_t at = 0; at < segments; ++at)
        Ready(j, range_at(j, i), 0).join(partial(j, i, kSegmentsAtOnce), partial(j, i, at));
  }
  for (uint64_t i = 0; i < count; ++i) Ready(j, range_at(j, i), 0).finish(partial(j, i, kSegmentsAtOnce));
}

bool kind_fits(const NodeCheck& g, const Attention& a) {
  AttentionKind kind = attention_kind(g.f, g.n);
  if (!(kind.softcap >= 0) || !(kind.length > 0) || !(kind.offset >= 0)) return false;
  bool plain = kind.softcap == 0 && kind.chunk == 0 && kind.beta == 0 && kind.sinks == kNone;
  if (g.f.header.kind == kEncoder) return plain && kind.beyond == 0;
  if (kind.beyond > 0 && kind.long_frequencies == kNone && (!(kind.theta > 0) || !(kind.factor >= 1) || a.rotary_dim < 4))
    return false;
  if (kind.beyond > 0 && kind.long_frequencies != kNone &&
      !is_tensor(g.f, kind.long_frequencies, kFloat32, a.rotary_dim / 2))
    return false;
  return kind.sinks == kNone || is_tensor(g.f, kind.sinks, kFloat32, a.heads);
}

}  // namespace

// In q, k, v, mask? -> out 0; state. Attributes: u heads, u kv_heads, u head_dim, f scale, u causal, u window, u rotary_dim
// (0: none), u interleaved, f factor, and perhaps an AttentionKind; tensor 0: inv_freq.
bool attention_fits(const NodeCheck& g) {
  constexpr uint32_t kMost = 4096;  // heads, and their width
  Attention a;
  std::memcpy(&a, g.attributes(), sizeof a);
  if (a.heads == 0 || a.kv_heads == 0 || a.heads % a.kv_heads || a.head_dim == 0 || a.head_dim > kMost ||
      a.heads > kMost)
    return false;
  bool cached = g.f.header.kind == kDecoder && g.n.state < g.f.count(kStates);
  uint32_t v = cached ? value_dim(g.f.states[g.n.state]) : a.head_dim;
  uint64_t widths[3] = {uint64_t{a.heads} * a.head_dim, uint64_t{a.kv_heads} * a.head_dim, uint64_t{a.kv_heads} * v};
  for (uint32_t i = 0; i < 3; ++i)
    if (g.in(i)->kind != kPerToken || g.in(i)->width != widths[i]) return false;
  if (g.out(0)->kind != kPerToken || g.out(0)->width != uint64_t{a.heads} * v) return false;
  if (!kind_fits(g, a)) return false;
  if (g.in(3) && !is_ids(g.in(3))) return false;
  if (a.rotary_dim > a.head_dim || a.rotary_dim % 2 || (a.rotary_dim && !g.tensor(0, a.rotary_dim / 2))) return false;
  if (g.f.header.kind == kEncoder) return g.n.state == kNone;
  if (g.n.state >= g.f.count(kStates) || g.in(3)) return false;
  const State& s = g.f.states[g.n.state];
  return s.kind == kCache && a.causal && s.heads == a.kv_heads && s.head_dim == a.head_dim;
}

void run_attention(Step& s, const Node& n) {
  Job j(s, n);
  store_keys(j);
  uint64_t count = range_count(j);
  if (count <= s.w.partial_ranges) run_segments(j, count);
  else run_ranges(j, count);
}

}  // namespace qd
