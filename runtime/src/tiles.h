// Attention of some queries over the blocks of a sequence, tile by tile.
//
// The order of sums is the same for every chunk of a prompt, number of threads and instruction set: tiles of 64 keys in
// order within a segment of 1,024, each segment from nothing, and the segments in order. A segment is what threads share out
// where there are fewer heads than threads.
#pragma once
#include "cache.h"
#include "file.h"
#include "workspace.h"

namespace qd {

constexpr uint32_t kQueryRows = 64;                   // of queries that share the reading of a tile
constexpr uint32_t kSegmentTokens = 16 * kBlockTokens;
constexpr uint32_t kSegmentsAtOnce = 8;               // of one range of queries

struct Visible {  // positions that a query sees
  uint32_t begin, end;
};

// What is known of some queries after some keys: the greatest score, the sum of shares, and the sum of their values.
struct Shares {
  float *most, *total, *values;  // [rows], [rows], [rows][value_stride]
};

struct TileRoom {  // of one thread
  float* queries;       // [kQueryRows][key_depth]
  int16_t* rounded;     // the same of an int8 cache
  float* scores;        // [kQueryRows][kBlockTokens]
  int16_t* weights;     // the same: shares times scales of values
  int32_t* sums;        // [kQueryRows][the wider of kBlockTokens and value_stride]
  void *keys, *values;  // a tile that was converted
  Shares segment, whole;
  uint8_t* token;       // what is stored of one token
};

// Places everything at `base`; of null what it takes.
Checked make_tile_room(const CacheShape& shape, uint8_t* base, TileRoom* room);

struct Queries {  // rows of one KV head, in the order of their tokens
  const Kernels& kernels;
  const CacheShape& shape;
  float scale, softcap;
  const Visible* visible;  // [rows], neither begin nor end falls
  uint32_t rows;
  uint8_t* const* blocks;
  uint64_t first_head;     // where in a block the heads of this cache begin
  uint32_t head;
  const int32_t* mask;     // per position, or null: 0 is not looked at
};

// Rounds the queries of the room for an int8 cache; `factors` [rows] are what a product counts.
void round_queries(const Queries& q, TileRoom& room, float* factors);
// Tiles of a segment into `out`, from nothing.
void attend_segment(const Queries& q, const TileRoom& room, const float* factors, uint32_t segment, const Shares& out);
void clear(const Shares& shares, uint32_t rows, uint32_t value_stride);
// What a later segment has is added to what earlier ones have.
void join(const Queries& q, const Shares& earlier, const Shares& later);

}  // namespace qd
