// Steps: each runs in a workspace of its own, so that sessions step at the same time from several threads.
//
// A decoder has one workspace from the start. A second step at the same time makes another one where the budget has room
// for it beyond the rung that it pays for, and otherwise waits for the first to end; so the rung does not depend on how many
// step at once. Workspaces beyond the first go back when the plan changes, or when there is one session.
//
// A step uses the blocks that there were when it began. A shrink is applied when no step runs; steps that would begin wait
// for it.
#pragma once
#include <cstdint>

#include "workspace.h"

struct qd_model;

namespace qd {

struct Steps {
  Workspace first;            // decoders; encoders have one per session, as large as its context
  Workspace* idle = nullptr;  // a list
  uint32_t running = 0;
  uint32_t extra = 0;         // workspaces beyond the first
  uint64_t bytes = 0;         // of each
};

struct Turn {  // of a step
  uint32_t rung;
  Workspace* workspace;
};

// `own`: the workspace of the session, or null for one of the model's.
Turn begin_step(qd_model& m, Workspace* own);
void end_step(qd_model& m, const Turn& turn, const Workspace* own);
bool make_steps(qd_model& m);
void drop_idle_locked(qd_model& m);

}  // namespace qd
