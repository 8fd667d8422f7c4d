// What one step computes in: planned once for a number of tokens, so that a step allocates nothing. It belongs to the step
// that runs in it.
#pragma once
#include <cstdint>

#include "checked.h"
#include "file.h"
#include "guard.h"
#include "kernels/kernels.h"
#include "platform.h"

struct qd_model;

namespace qd {

constexpr uint32_t kGroupings = 4;         // of activations: 16, 32, 64, 128
constexpr uint32_t kLinearTokens = 64;     // a matrix takes at most so many at once

constexpr uint32_t kMostSpans = 64;        // sequences of a step

constexpr uint32_t kMostExperts = 4096;

struct ExpertScratch {  // of models that have experts
  uint32_t *starts, *order;  // [experts + 1], [tokens * top_k]
  float *up, *gate, *out;    // [tokens][inner, inner, hidden]
  float* scores;             // [threads][2][most]
  uint64_t inner = 0, hidden = 0, most = 0;
  uint32_t tokens = 0;       // an expert takes at most so many at once
};

struct Workspace {
  Range memory;
  uint32_t tokens = 0;
  uint64_t row_stride, head_stride, norm_stride, half;
  float* arena;  // [tokens][slot_width], and room for the padded rows of the last slot
  float* mapped; // [kLinearTokens][stride] activations in the padded columns' order
  int8_t* q[kGroupings];
  float* scale[kGroupings];
  int32_t* sum[kGroupings];
  float* fsum[kGroupings];
  int8_t* tables[kGroupings];
  float* table_scale[kGroupings];
  uint8_t* term_scratch;  // of all terms of one matrix
  float* y;               // [kLinearTokens][rows] of matrices whose rows are not a multiple of 16, and logits
  uint64_t y_floats;
  float* row;             // [threads][columns] of an embedding
  float* cos;             // [tokens][half of the widest rotation]
  float* sin;
  float* head;            // [threads][2][widest head]
  float* norm;            // [threads][widest value]
  uint8_t* tiles;         // [threads][tile_stride]: a TileRoom of each
  uint64_t tile_stride;
  float* partials;        // of attention whose ranges of queries are at most so many, fewer than the threads
  uint64_t partial_ranges;
  uint8_t** blocks;       // encoders: keys and values of one node, as those of a cache
  uint64_t block_bytes;
  ExpertScratch experts;
  const int32_t** ids;    // per value
  TermView* views;        // per term, with what the step's rung has of it
  uint32_t views_rung = format::kNone;
  Workspace* next = nullptr;  // in a list of idle ones
};

// What a workspace for so many tokens holds.
Checked workspace_bytes(const qd_model& model, uint32_t tokens);
// False: no memory.
bool make_workspace(const qd_model& model, uint32_t tokens, Workspace* out);

// Ranges one after the other, as far as a count; and where they are, once there is memory.
class Layout {
 public:
  explicit Layout(uint8_t* base) : base_(base) {}
  template <class T>
  void take(T** to, Checked count) {  // 64 more: a kernel may read a whole vector at the end
    uint64_t start = used_.value();
    if (base_) *to = reinterpret_cast<T*>(base_ + start);
    used_ = (used_ + count * sizeof(T) + 64).rounded_up(64);
    if (base_ && kGuard) allow(base_ + start, used_.value() - start), forbid(base_ + used_.value(), kGuard);
    used_ += kGuard;
  }
  void skip(Checked bytes) { used_ += bytes; }
  Checked taken() const { return used_; }
  Checked used() const { return used_.rounded_up(page_sizes().small); }

 private:
  uint8_t* base_;
  Checked used_;
};

}  // namespace qd
