// Blocks of keys and values that sequences of engines share: counted, promised ahead, and kept as prompt cache when nobody
// holds them.
//
// A block of 64 tokens has a key once it is full: the block before it, its tokens, and the rung at which all of them were
// computed. A sequence that begins with the same tokens takes it instead of computing them, with the same bits. Blocks with
// a key that nobody holds are the prompt cache: they are dropped, the one of longest disuse first, before any weight is.
//
// Functions with `_locked` want the model's lock.
#pragma once
#include "cache.h"
#include "error.h"
#include "platform.h"

struct qd_model;

namespace qd {

struct KvBlock {
  Range memory;
  uint32_t references = 1;  // sequences
  uint32_t rung = format::kNone;
  bool keyed = false;
  uint64_t serial = 0, parent = 0;  // serial of the block before; 0: it is the first
  int32_t tokens[kBlockTokens];
  KvBlock *in_bucket = nullptr, *older = nullptr, *newer = nullptr;
};

struct BlockPool {
  static constexpr uint32_t kBuckets = 1024;
  KvBlock* buckets[kBuckets] = {};
  KvBlock *oldest = nullptr, *newest = nullptr;  // the prompt cache
  uint64_t serial = 0;
  uint64_t most = UINT64_MAX;                    // bytes of blocks, as the engine was told
  uint64_t count = 0, cached = 0;                // held or promised; in the prompt cache
};

uint64_t block_held(const qd_model& m);  // what one counts
uint64_t prompt_cache_bytes(const qd_model& m);
// Blocks that will be made: QD_BUDGET_UNDER_FLOOR or QD_NO_MEMORY where there is no room for them.
qd_status promise_locked(qd_model& m, uint64_t count, qd_error* err);
// In place of as many that were released.
void promise_again_locked(qd_model& m, uint64_t count);
void forgive_locked(qd_model& m, uint64_t count);
// One that was promised; null: the system has no memory.
KvBlock* make_block(const qd_model& m);
void release_locked(qd_model& m, KvBlock* block);
// The block of 64 tokens behind `parent`, held once more; null: there is none.
KvBlock* find_locked(qd_model& m, uint64_t parent, const int32_t* tokens, uint32_t rung);
// A full block can be found from now on. Returns the one to hold in its place: itself, or where there is one of this key, that.
KvBlock* key_locked(qd_model& m, KvBlock* block, uint64_t parent, const int32_t* tokens);
// Drops of the prompt cache what is above so many bytes.
void trim_prompt_cache_locked(qd_model& m, uint64_t bytes);

}  // namespace qd
