// Rotary positions of a step's tokens.
#pragma once
#include "walker.h"

namespace qd {

constexpr uint32_t kMostRotated = 4096;  // elements of a head

struct Rotation {
  uint32_t rotary_dim, interleaved;
};

// Makes cosines and sines of all tokens, once per step for all that share the frequencies: tensor [rotary_dim / 2].
Rotation rotation_of(Step& s, uint32_t frequencies, uint32_t rotary_dim, uint32_t interleaved, float factor);
// The same for attention, whose long sequences may have frequencies of their own.
Rotation rotation_of(Step& s, const format::Node& node, const Attention& attention);

inline void turn(const Step& s, const Rotation& r, uint32_t token, float* head) {
  if (r.rotary_dim == 0) return;
  s.model.settings.kernels->rotate(head, s.w.cos + token * s.w.half, s.w.sin + token * s.w.half, r.rotary_dim,
                                   static_cast<int>(r.interleaved));
}

}  // namespace qd
