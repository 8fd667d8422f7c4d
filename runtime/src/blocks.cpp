#include "blocks.h"

#include <cstring>
#include <new>

#include "model.h"

namespace qd {
namespace {

uint32_t bucket_of(uint64_t parent, const int32_t* tokens, uint32_t rung) {
  uint64_t hash = 1469598103934665603u ^ parent ^ (uint64_t{rung} << 32);
  for (uint32_t i = 0; i < kBlockTokens; ++i) hash = (hash ^ static_cast<uint32_t>(tokens[i])) * 1099511628211u;
  return static_cast<uint32_t>(hash >> 32) % BlockPool::kBuckets;
}

void leave_cache(BlockPool& pool, KvBlock* b) {
  (b->older ? b->older->newer : pool.oldest) = b->newer;
  (b->newer ? b->newer->older : pool.newest) = b->older;
  b->older = b->newer = nullptr;
  --pool.cached;
}

void enter_cache(BlockPool& pool, KvBlock* b) {
  b->older = pool.newest;
  (pool.newest ? pool.newest->newer : pool.oldest) = b;
  pool.newest = b;
  ++pool.cached;
}

void forget_key(BlockPool& pool, KvBlock* b) {
  KvBlock** at = &pool.buckets[bucket_of(b->parent, b->tokens, b->rung)];
  while (*at != b) at = &(*at)->in_bucket;
  *at = b->in_bucket;
}

void remove(qd_model& m, KvBlock* b) {
  m.budget.lost += b->memory.reset();
  delete b;
}

KvBlock* look_up(const BlockPool& pool, uint64_t parent, const int32_t* tokens, uint32_t rung) {
  for (KvBlock* b = pool.buckets[bucket_of(parent, tokens, rung)]; b; b = b->in_bucket)
    if (b->parent == parent && b->rung == rung && std::memcmp(b->tokens, tokens, sizeof b->tokens) == 0) return b;
  return nullptr;
}

void count_locked(qd_model& m, uint64_t more, uint64_t fewer) {
  m.blocks.count += more - fewer;
  m.budget.caches += (more - fewer) * block_held(m);
}

}  // namespace

uint64_t block_held(const qd_model& m) {
  return round_up(m.cache.block_bytes ? m.cache.block_bytes : 1, page_sizes().small) + sizeof(KvBlock);
}

uint64_t prompt_cache_bytes(const qd_model& m) { return m.blocks.cached * block_held(m); }

qd_status promise_locked(qd_model& m, uint64_t count, qd_error* err) {
  Checked bytes = Checked(count) * block_held(m), least = Checked(floor_locked(m)) + bytes;
  if (!(Checked(m.blocks.count) * block_held(m) + bytes).at_most(m.blocks.most))
    return fail(err, QD_NO_MEMORY, "blocks: found %llu more of 64 tokens, allowed %llu in all, of which %llu are held",
                static_cast<unsigned long long>(count), static_cast<unsigned long long>(m.blocks.most / block_held(m)),
                static_cast<unsigned long long>(m.blocks.count));
  if (!least.at_most(m.budget.bytes)) return fail_floor(err, m.budget.bytes, least.value());
  if (!least.at_most(machine_bytes()))
    return fail(err, QD_NO_MEMORY, "blocks: with %llu more the model needs %llu bytes, and the machine has %llu",
                static_cast<unsigned long long>(count), static_cast<unsigned long long>(least.value()),
                static_cast<unsigned long long>(machine_bytes()));
  count_locked(m, count, 0);
  replan_locked(m);
  return QD_OK;
}

void promise_again_locked(qd_model& m, uint64_t count) {
  count_locked(m, count, 0);
  replan_locked(m);
}

void forgive_locked(qd_model& m, uint64_t count) {
  count_locked(m, 0, count);
  replan_locked(m);
}

KvBlock* make_block(const qd_model& m) {
  KvBlock* b = new (std::nothrow) KvBlock;
  if (b && b->memory.make(m.cache.block_bytes ? m.cache.block_bytes : 1)) return b;
  delete b;
  return nullptr;
}

void release_locked(qd_model& m, KvBlock* b) {
  if (--b->references > 0) return;
  count_locked(m, 0, 1);
  if (b->keyed) enter_cache(m.blocks, b);
  else remove(m, b);
}

KvBlock* find_locked(qd_model& m, uint64_t parent, const int32_t* tokens, uint32_t rung) {
  KvBlock* b = look_up(m.blocks, parent, tokens, rung);
  if (b && b->references++ == 0) {
    leave_cache(m.blocks, b);
    count_locked(m, 1, 0);
  }
  return b;
}

KvBlock* key_locked(qd_model& m, KvBlock* b, uint64_t parent, const int32_t* tokens) {
  if (b->keyed) return b;
  if (KvBlock* other = find_locked(m, parent, tokens, b->rung)) {
    release_locked(m, b);
    return other;
  }
  b->keyed = true;
  b->serial = ++m.blocks.serial;
  b->parent = parent;
  std::memcpy(b->tokens, tokens, sizeof b->tokens);
  KvBlock*& bucket = m.blocks.buckets[bucket_of(parent, tokens, b->rung)];
  b->in_bucket = bucket;
  bucket = b;
  return b;
}

void trim_prompt_cache_locked(qd_model& m, uint64_t bytes) {
  while (m.blocks.oldest && prompt_cache_bytes(m) > bytes) {
    KvBlock* b = m.blocks.oldest;
    leave_cache(m.blocks, b);
    forget_key(m.blocks, b);
    remove(m, b);
  }
}

}  // namespace qd
