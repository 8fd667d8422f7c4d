// What one step computes in: planned once for a number of tokens, so that a step allocates nothing.
#pragma once
#include <cstdint>

#include "platform.h"

struct qd_model;

namespace qd {

constexpr uint32_t kGroupings = 4;         // of activations: 16, 32, 64, 128
constexpr uint32_t kLinearTokens = 64;     // a matrix takes at most so many at once

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
  float* y;               // [kLinearTokens][rows] of matrices whose rows are not a multiple of 16, and the logits
  float* row;             // [threads][columns] of an embedding
  float* cos;             // [tokens][half of the widest rotation]
  float* sin;
  float* head;            // [threads][2][widest head]
  float* norm;            // [threads][widest value]
  const int32_t** ids;    // per value
};

// False: no memory.
bool make_workspace(const qd_model& model, uint32_t tokens, Workspace* out);
uint64_t workspace_bytes(const qd_model& model, uint32_t tokens);

}  // namespace qd
