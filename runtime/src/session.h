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
