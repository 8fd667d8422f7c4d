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
  qd::Sequence sequence;    // its blocks lie one behind the other
  int32_t* ids = nullptr;   // encoders: [inputs][context]; decoders: none, the caller's are used
  uint8_t* candidates = nullptr;  // of qd_sample: 8 bytes per token of the vocabulary
  qd::Workspace own;        // encoders
};

namespace qd {

// qd_sample, in room of 8 bytes per token of the vocabulary. `mask`: see qd_sequence_sample.
qd_status choose(uint8_t* room, size_t vocab, const qd_sampling* sampling, const float* logits, const int32_t* tokens, size_t n,
                 const uint32_t* mask, int32_t* out, qd_error* err);
// Whether ids index the rows of every matrix that embeds them; `where`: the first that does not.
bool tokens_fit(const File& file, const int32_t* tokens, size_t n, size_t* where);
// Whether the file has states of fixed size, which do not go back.
bool is_recurrent(const File& file);

}  // namespace qd
