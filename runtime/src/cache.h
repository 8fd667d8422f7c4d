// Keys and values of a sequence's tokens, in blocks of 64 tokens: the tiles of attention.
//
// A block holds 64 tokens of all caches of a model, cache after cache, head after head. A head's keys lie
// [head_dim][64 tokens], its values [64 tokens][value_stride], so that both products of attention read rows of 16; int8 ones
// lie in pairs, [head_dim / 2][64][2] and [32][value_stride][2], and have a scale per token behind them.
#pragma once
#include "checked.h"
#include "file.h"
#include "kernels/kernels.h"

struct qd_model;

namespace qd {

constexpr uint32_t kBlockTokens = 64;

struct CacheShape {  // of one head
  qd_kv_dtype dtype;
  uint32_t head_dim, value_dim;
  uint32_t key_depth;     // head_dim, even where integers go in pairs
  uint32_t value_stride;  // value_dim, rounded up to 16
  uint64_t key_scales, values, value_scales, bytes;  // where they begin; bytes of all
};
CacheShape cache_shape(qd_kv_dtype dtype, uint32_t head_dim, uint32_t value_dim);

struct HeadBlock {  // one head's part of a block
  uint8_t *keys, *values;
  float *key_scales, *value_scales;  // int8
};
inline HeadBlock head_block(const CacheShape& shape, uint8_t* first_head, uint32_t head) {
  uint8_t* at = first_head + uint64_t{head} * shape.bytes;
  return {at, at + shape.values, reinterpret_cast<float*>(at + shape.key_scales),
          reinterpret_cast<float*>(at + shape.value_scales)};
}

// Writes a token's key and value at a place below 64. `room`: scratch of as many bytes as the wider of both has floats.
void store_token(const Kernels& kernels, const CacheShape& shape, const HeadBlock& block, uint32_t place, const float* key,
                 const float* value, uint8_t* room);

// What a sequence has: a block per 64 tokens, and the states of fixed size. It owns nothing.
struct Sequence {
  uint8_t** blocks = nullptr;
  uint8_t* fixed = nullptr;
};

struct CachePlan {  // of a model: where its states lie
  uint64_t* at = nullptr;  // per state: in a block (kCache), or in the states of fixed size
  uint64_t block_bytes = 0, fixed_bytes = 0;
};
// False: there are more bytes than there are numbers.
bool plan_cache(const File& file, qd_kv_dtype dtype, CachePlan* plan);

inline float* state_of(const CachePlan& plan, const Sequence& sequence, uint32_t state) {
  return reinterpret_cast<float*>(sequence.fixed + plan.at[state]);
}

}  // namespace qd
