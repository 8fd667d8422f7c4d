// Many sequences of one model in one step: what an engine and a sequence hold. See qdeploy.h.
#pragma once
#include "model.h"
#include "walker.h"

struct qd_engine {
  qd_model* model = nullptr;
  uint32_t most = 0, rows = 0;  // sequences; tokens of a step
  uint32_t least_beyond = 0;    // sequences of more tokens have keys that their length changes; 0: none have
  bool recurrent = false;
  qd_sequence* sequences[qd::kMostSpans] = {};  // in the order in which they came
  uint32_t count = 0, turn = 0;                 // turn: who decodes first where there are more than rows
  uint64_t prompt_tokens = 0, reused_tokens = 0, steps = 0;
  qd_step last{};

  qd::Range memory;
  uint64_t charged = 0;
  int32_t* ids = nullptr;         // [rows]
  float* logits = nullptr;        // room for some rows of logits
  uint64_t logits_floats = 0;
  uint8_t* candidates = nullptr;  // of sampling
};

struct qd_sequence {
  qd_engine* engine = nullptr;
  uint32_t context = 0, needs = 0;        // tokens; blocks for all of them
  uint32_t given = 0, length = 0;         // tokens; of which the blocks have keys and values
  uint32_t total = 0;                     // given, when tokens were last pushed
  uint32_t held = 0, promised = 0;        // blocks; those that will be made
  uint32_t reused = 0;
  bool ready = false;                     // logits are those behind `given`
  qd::Sequence kv;                        // [needs] addresses of blocks

  qd::Range memory;
  uint64_t charged = 0;
  qd::KvBlock** blocks = nullptr;         // [needs]
  int32_t* tokens = nullptr;              // [context]
  float* logits = nullptr;                // [vocab]
};

namespace qd {

// A sequence of no tokens; `promised` blocks are promised, where QD_OK.
qd_status make_sequence(qd_engine& engine, uint32_t context, qd_sequence** out, qd_error* err);
qd_status promise_rest(qd_sequence& sequence, qd_error* err);
// A block behind the last that it holds; false: the system has no memory.
bool add_block(qd_sequence& sequence);
void destroy_sequence(qd_sequence* sequence);
// Of the block before: 0 where there is none, UINT64_MAX where it has no key.
inline uint64_t parent_serial(const qd_sequence& s, uint32_t block) {
  return block == 0 ? 0 : s.blocks[block - 1]->keyed ? s.blocks[block - 1]->serial : UINT64_MAX;
}

}  // namespace qd
