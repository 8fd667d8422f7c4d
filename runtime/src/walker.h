#pragma once
#include "file.h"
#include "workspace.h"

struct qd_session;

namespace qd {

// Runs the nodes for `tokens` tokens that follow the session's. ids[] of its workspace are set and in range. `logits`:
// [vocab] of the last token, or null. Called between begin_step and end_step.
void walk(qd_session& session, uint32_t tokens, uint32_t rung, float* logits);

uint32_t grouping_of(const format::Term& term);  // 0 .. 3: activations in groups of 16 << that
uint64_t term_scratch_bytes(const qd_model& model, const format::Term& term, uint32_t columns);

// linear.cpp. What a step shares between nodes: activations of one value, prepared once for q, k and v alike.
struct Step {
  qd_session& session;
  const qd_model& model;
  Workspace& w;
  uint32_t tokens, past;
  float* logits;
  uint64_t prepared = 0;       // of which value and tokens `mapped` is; 0: of none
  uint32_t prepared_columns = 0, prepared_map = format::kNone;
  uint32_t made = 0;           // bits: 2 g int8 of grouping g, 2 g + 1 tables
  uint32_t angles = format::kNone;  // which inv_freq cos and sin are of
  float angles_factor = 0;
};
void run_linear(Step& step, const format::Node& node);
void run_rows(Step& step, const format::Node& node);       // kEmbed, kPositions
void run_attention(Step& step, const format::Node& node);  // attention.cpp
float* value_at(const Step& step, uint32_t value, uint32_t token);
uint32_t value_tokens(const Step& step, uint32_t value);   // 1 for those of the sequence

}  // namespace qd
