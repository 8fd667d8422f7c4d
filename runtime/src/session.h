#pragma once
#include <atomic>

#include "model.h"

struct qd_session {
  qd_model* model = nullptr;
  uint32_t context = 0;
  std::atomic<uint32_t> length{0};
  std::atomic<bool> cancel{false};
  qd_step last{};

  qd::Range memory;         // everything below but the encoder's workspace
  uint64_t charged_kv = 0, charged_scratch = 0;
  uint8_t* cache = nullptr; // state after state: keys, values [heads][context][head_dim], int8 ones with their scales
  uint64_t* state_at = nullptr;  // per state, in the cache
  float* scores = nullptr;  // [threads][score_stride]
  uint32_t score_stride = 0;
  int32_t* ids = nullptr;   // encoders: [inputs][context]; decoders: none, the caller's are used
  uint8_t* candidates = nullptr;  // of qd_sample: 8 bytes per token of the vocabulary
  qd::Workspace own;        // encoders
};

namespace qd {

struct CacheView {
  uint8_t *keys, *values;          // of one head
  float *key_scales, *value_scales;
};
CacheView cache_of(const qd_session& session, uint32_t state, uint32_t head);
float* state_of(const qd_session& session, uint32_t state);  // of fixed size

}  // namespace qd
