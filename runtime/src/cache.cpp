#include "cache.h"

#include <cstring>

#include "platform.h"

namespace qd {

using namespace format;

namespace {

constexpr uint64_t kLine = 64;

uint64_t number_size(qd_kv_dtype dtype) { return dtype == QD_KV_INT8 ? 1 : dtype == QD_KV_F32 ? 4 : 2; }

Checked fixed_bytes(const State& s) {
  return (Checked(s.heads) * s.head_dim * (s.kind == kRecurrent ? value_dim(s) : 1) * 4).rounded_up(kLine);
}

template <class T>
void put_key(const uint8_t* from, const CacheShape& shape, uint8_t* keys, uint32_t place) {
  const T* x = reinterpret_cast<const T*>(from);
  T* to = reinterpret_cast<T*>(keys) + place;
  for (uint32_t d = 0; d < shape.head_dim; ++d) to[uint64_t{d} * kBlockTokens] = x[d];
}

void put_int8(const int8_t* key, const int8_t* value, const CacheShape& shape, const HeadBlock& block, uint32_t place) {
  int8_t *keys = reinterpret_cast<int8_t*>(block.keys) + 2 * place,
         *values = reinterpret_cast<int8_t*>(block.values) + uint64_t{place / 2} * 2 * shape.value_stride + place % 2;
  for (uint32_t d = 0; d < shape.head_dim; ++d) keys[uint64_t{d / 2} * 2 * kBlockTokens + d % 2] = key[d];
  for (uint32_t d = 0; d < shape.value_dim; ++d) values[uint64_t{2} * d] = value[d];
}

}  // namespace

CacheShape cache_shape(qd_kv_dtype dtype, uint32_t head_dim, uint32_t value_dim) {
  uint64_t size = number_size(dtype), scales = dtype == QD_KV_INT8 ? kBlockTokens * sizeof(float) : 0;
  CacheShape s{dtype, head_dim, value_dim, head_dim, static_cast<uint32_t>(round_up(value_dim, 16)), 0, 0, 0, 0};
  if (dtype == QD_KV_INT8) s.key_depth = static_cast<uint32_t>(round_up(head_dim, 2));
  s.key_scales = kBlockTokens * size * s.key_depth;
  s.values = s.key_scales + scales;
  s.value_scales = s.values + kBlockTokens * size * s.value_stride;
  s.bytes = s.value_scales + scales;
  return s;
}

void store_token(const Kernels& k, const CacheShape& shape, const HeadBlock& block, uint32_t place, const float* key,
                 const float* value, uint8_t* room) {
  uint64_t row = uint64_t{place} * shape.value_stride;
  if (shape.dtype == QD_KV_F32) {
    put_key<float>(reinterpret_cast<const uint8_t*>(key), shape, block.keys, place);
    std::memcpy(reinterpret_cast<float*>(block.values) + row, value, shape.value_dim * sizeof(float));
  } else if (shape.dtype == QD_KV_F16) {
    k.store_f16(key, shape.head_dim, reinterpret_cast<uint16_t*>(room));
    put_key<uint16_t>(room, shape, block.keys, place);
    k.store_f16(value, shape.value_dim, reinterpret_cast<uint16_t*>(block.values) + row);
  } else {
    int8_t *rounded_key = reinterpret_cast<int8_t*>(room), *rounded_value = rounded_key + shape.head_dim;
    k.store_int8(key, shape.head_dim, rounded_key, block.key_scales + place);
    k.store_int8(value, shape.value_dim, rounded_value, block.value_scales + place);
    put_int8(rounded_key, rounded_value, shape, block, place);
  }
}

bool plan_cache(const File& f, qd_kv_dtype dtype, CachePlan* plan) {
  Checked block, fixed;
  for (uint32_t i = 0; i < f.count(kStates); ++i) {
    const State& s = f.states[i];
    Checked& sum = s.kind == kCache ? block : fixed;
    plan->at[i] = sum.value();
    sum += s.kind == kCache ? Checked(cache_shape(dtype, s.head_dim, value_dim(s)).bytes) * s.heads : fixed_bytes(s);
  }
  plan->block_bytes = block.value();
  plan->fixed_bytes = fixed.value();
  return block.good() && fixed.good();
}

}  // namespace qd
