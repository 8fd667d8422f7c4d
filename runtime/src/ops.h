// The ops of nodes: what each wants of its operands, and what it does with them. The functions are those of the rows of
// ops.def.
#pragma once
#include <cstring>

#include "file.h"
#include "walker.h"

namespace qd {

// A node with the values, tensors and attributes that it names; all ids are in range.
struct NodeCheck {
  const File& f;
  const format::Node& n;
  const format::Value* in(uint32_t i) const { return value(n.inputs[i]); }
  const format::Value* out(uint32_t i) const { return value(n.outputs[i]); }
  const uint32_t* attributes() const { return f.attributes + n.attr; }
  const format::Matrix& matrix() const { return f.matrices[n.matrix]; }
  // Whether tensor i is one of so many floats.
  bool tensor(uint32_t i, uint64_t count) const {
    uint32_t t = n.tensors[i];
    return t < f.count(format::kTensors) && f.tensors[t].kind == format::kFloat32 && f.tensors[t].count == count;
  }

 private:
  const format::Value* value(uint32_t id) const { return id == format::kNone ? nullptr : f.values + id; }
};

inline bool same_shape(const format::Value* a, const format::Value* b) {
  return a->kind == b->kind && a->width == b->width;
}
inline bool is_ids(const format::Value* v) { return v->kind == format::kIds; }

inline float as_float(uint32_t word) {
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

#define QD_OP(number, constant, inputs, at_least, outputs, attributes, matrix, ids, fits, run) \
  bool fits(const NodeCheck&);                                                                 \
  void run(Step&, const format::Node&);
#include "ops.def"

}  // namespace qd
