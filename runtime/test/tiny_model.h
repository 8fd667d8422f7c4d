// A decoder of one layer, written into memory: 32 tokens, width 32, two heads of 16 that share one key/value head.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../include/qdeploy.h"
#include "../src/crc32c.h"
#include "../src/format.h"

namespace tiny {

using namespace qd::format;
using Bytes = std::vector<uint8_t>;

struct Writer {
  std::vector<Matrix> matrices;
  std::vector<Term> terms;
  std::vector<Block> blocks;
  std::vector<RungRecord> rungs;
  std::vector<Tensor> tensors;
  std::vector<Value> values;
  std::vector<Node> nodes;
  std::vector<State> states;
  std::vector<uint32_t> attributes;
  Bytes metadata, resident, stack;
  uint32_t seed = 1;

  float random() {
    seed = seed * 1664525u + 1013904223u;
    return static_cast<float>(seed >> 8) / (1 << 23) - 1.0f;
  }
  uint32_t tensor(std::vector<float> v) {
    resident.resize((resident.size() + 63) / 64 * 64);
    tensors.push_back({resident.size(), v.size() * 4, 0, static_cast<uint32_t>(v.size()), 0});
    resident.resize(resident.size() + v.size() * 4);
    std::memcpy(resident.data() + tensors.back().at, v.data(), v.size() * 4);
    return static_cast<uint32_t>(tensors.size() - 1);
  }
  // A term as one block, on a page of its own where `apart`.
  void term(uint16_t kind, uint32_t rows, uint32_t columns, bool apart) {
    size_t align = apart ? kPage : 64, start = (stack.size() + align - 1) / align * align;
    Term t{};
    t.kind = kind;
    t.planes = 1;
    t.first_block = static_cast<uint32_t>(blocks.size());
    t.table_tensor = t.itable_tensor = kNone;
    Bytes b;
    if (kind == kFloats) {
      t.element = kF32;
      b.resize(rows * columns * 4);
      for (size_t i = 0; i < rows * columns; ++i) {
        float x = random() / 4;
        std::memcpy(b.data() + 4 * i, &x, 4);
      }
    } else {
      t.group = 32;
      t.groups = columns / 32;
      t.zero_for_all = 8;
      b.resize(rows * columns / 2 + rows * t.groups * 4);
      for (size_t i = 0; i < rows * columns / 2; ++i) b[i] = static_cast<uint8_t>(random() * 127 + 128);
      t.scale.at = rows * columns / 2;
      t.scale.kind = kF32;
      float scale = apart ? 0.01f : 0.05f;
      for (size_t i = 0; i < rows * t.groups; ++i) std::memcpy(b.data() + t.scale.at + 4 * i, &scale, 4);
    }
    terms.push_back(t);
    stack.resize(start);
    stack.insert(stack.end(), b.begin(), b.end());
    blocks.push_back({start, b.size(), static_cast<uint32_t>(terms.size() - 1), 0, {}});
    rungs.push_back({stack.size(), 1.0 / static_cast<double>(blocks.size())});
  }
  uint32_t matrix(uint16_t kind, uint32_t rows, uint32_t columns, uint32_t extra = 0) {
    Matrix m{rows, columns, columns, static_cast<uint32_t>(terms.size()), 1 + extra, kNone, kNone, kNone, {}};
    term(kind, rows, columns, false);
    for (uint32_t i = 0; i < extra; ++i) term(kNibbles, rows, columns, true);
    matrices.push_back(m);
    return static_cast<uint32_t>(matrices.size() - 1);
  }
  void node(uint16_t op, std::vector<uint32_t> in, uint32_t out, uint32_t matrix, uint32_t tensor, uint32_t state,
            std::vector<uint32_t> attr) {
    Node n{};
    n.op = op;
    for (uint32_t i = 0; i < 4; ++i) n.inputs[i] = i < in.size() ? in[i] : kNone;
    n.outputs[0] = out;
    n.outputs[1] = kNone;
    n.matrix = matrix;
    n.tensors[0] = tensor;
    n.tensors[1] = kNone;
    n.state = state;
    n.attr = static_cast<uint32_t>(attributes.size());
    n.attrs = static_cast<uint32_t>(attr.size());
    attributes.insert(attributes.end(), attr.begin(), attr.end());
    nodes.push_back(n);
  }
};

inline uint32_t word(float x) {
  uint32_t w;
  std::memcpy(&w, &x, 4);
  return w;
}

inline void fix_crcs(Bytes* file) {  // of the front and the header; pages as they are
  Header h;
  if (file->size() < sizeof h) return;
  std::memcpy(&h, file->data(), sizeof h);
  if (h.front_end >= sizeof h && h.front_end <= file->size())
    h.front_crc = qd::crc32c(0, file->data() + sizeof h, h.front_end - sizeof h);
  h.header_crc = qd::crc32c(0, &h, 508);
  std::memcpy(file->data(), &h, sizeof h);
}

inline Bytes assemble(const Writer& w, Header h) {
  Bytes front(sizeof h);
  auto section = [&](uint32_t id, const void* data, size_t count, size_t bytes) {
    front.resize((front.size() + 63) / 64 * 64);
    h.sections[id] = {front.size(), count};
    const uint8_t* p = static_cast<const uint8_t*>(data);
    if (count) front.insert(front.end(), p, p + count * bytes);
  };
  section(kMatrices, w.matrices.data(), w.matrices.size(), sizeof(Matrix));
  section(kTerms, w.terms.data(), w.terms.size(), sizeof(Term));
  section(kBlocks, w.blocks.data(), w.blocks.size(), sizeof(Block));
  section(kRungs, w.rungs.data(), w.rungs.size(), sizeof(RungRecord));
  section(kTensors, w.tensors.data(), w.tensors.size(), sizeof(Tensor));
  section(kValues, w.values.data(), w.values.size(), sizeof(Value));
  section(kNodes, w.nodes.data(), w.nodes.size(), sizeof(Node));
  section(kStates, w.states.data(), w.states.size(), sizeof(State));
  section(kAttributes, w.attributes.data(), w.attributes.size(), 4);
  section(kMetadata, w.metadata.data(), w.metadata.size(), 1);
  Bytes body = w.resident;
  body.resize((body.size() + kPage - 1) / kPage * kPage);
  size_t resident = body.size();
  body.insert(body.end(), w.stack.begin(), w.stack.end());
  std::vector<uint32_t> pages;
  for (size_t i = 0; i < body.size(); i += kPage)
    pages.push_back(qd::crc32c(0, body.data() + i, std::min<size_t>(kPage, body.size() - i)));
  section(kPages, pages.data(), pages.size(), 4);
  std::memcpy(h.magic, kMagic, 8);
  h.version = kVersion;
  h.front_end = front.size();
  h.resident_at = (front.size() + kPage - 1) / kPage * kPage;
  h.resident_bytes = w.resident.size();
  h.stack_at = h.resident_at + resident;
  h.stack_bytes = w.stack.size();
  h.file_bytes = h.stack_at + h.stack_bytes;
  std::memcpy(front.data(), &h, sizeof h);
  front.resize(h.resident_at);
  front.insert(front.end(), body.begin(), body.end());
  fix_crcs(&front);
  return front;
}

struct Shape {
  uint32_t extra = 3;        // terms of the head that are on a page of their own each
  uint32_t context = 128;
  uint32_t wide_states = 0;  // caches of the greatest width that no node uses, half of them before the one that is used
  uint32_t chain = 0;        // nodes that add a value to itself, one after the other
  uint64_t features = 0;
  std::string feature_names = {};
  std::string meta = {};     // what the graph says of itself, as JSON
};

// Names of values from 4 on, or behind the entries.
inline void put_metadata(Writer& w, const std::vector<std::pair<std::string, std::string>>& entries) {
  Bytes table(4), body;
  table[0] = static_cast<uint8_t>(entries.size());
  size_t head = 4 + entries.size() * sizeof(MetaEntry);
  for (const auto& [key, value] : entries) {
    size_t at = head + body.size();
    MetaEntry entry{static_cast<uint32_t>(at), static_cast<uint32_t>(key.size()), at + key.size(), value.size()};
    table.resize(table.size() + sizeof entry);
    std::memcpy(table.data() + table.size() - sizeof entry, &entry, sizeof entry);
    for (const std::string& s : {key, value}) body.insert(body.end(), s.begin(), s.end());
  }
  w.metadata = table;
  w.metadata.insert(w.metadata.end(), body.begin(), body.end());
  for (const char* s : {"input_ids", "logits"}) w.metadata.insert(w.metadata.end(), s, s + std::strlen(s) + 1);
}

inline Bytes decoder(const Shape& shape = {}) {
  Writer w;
  std::vector<std::pair<std::string, std::string>> entries;
  if (!shape.feature_names.empty()) entries.push_back({"features", shape.feature_names});
  if (!shape.meta.empty()) entries.push_back({"meta", shape.meta});
  put_metadata(w, entries);
  uint32_t names = static_cast<uint32_t>(w.metadata.size() - 17);
  uint32_t embed = w.matrix(kFloats, 32, 32), q = w.matrix(kNibbles, 32, 32), k = w.matrix(kNibbles, 16, 32);
  uint32_t v = w.matrix(kFloats, 16, 32), o = w.matrix(kNibbles, 32, 32), head = w.matrix(kFloats, 32, 32, shape.extra);
  uint32_t norm = w.tensor(std::vector<float>(32, 1.0f));
  std::vector<float> frequencies;
  for (int i = 0; i < 8; ++i) frequencies.push_back(1.0f / static_cast<float>(1 << i));
  uint32_t rope = w.tensor(frequencies);
  w.values.push_back({kIds, 0, 0, names, kInput, {}});
  uint32_t slot = 0;
  for (uint32_t width : {32u, 32u, 32u, 16u, 16u, 32u, 32u, 32u}) {
    w.values.push_back({kPerToken, width, slot, kNone, kInner, {}});
    slot += width;
  }
  w.values.push_back({kPerToken, 32, kNone, names + 10, kOutput, {}});
  for (uint32_t i = 0; i < shape.chain; ++i) w.values.push_back({kPerToken, 32, 0, kNone, kInner, {}});
  uint32_t state = shape.wide_states / 2;
  w.states.assign(shape.wide_states + 1, {4096, 4096, 0, 0});
  w.states[state] = {1, 16, 0, 0};
  w.node(kEmbed, {0}, 1, embed, kNone, kNone, {});
  w.node(kRmsNorm, {1}, 2, kNone, norm, kNone, {word(1e-5f), 0});
  w.node(kLinear, {2}, 3, q, kNone, kNone, {});
  w.node(kLinear, {2}, 4, k, kNone, kNone, {});
  w.node(kLinear, {2}, 5, v, kNone, kNone, {});
  w.node(kAttention, {3, 4, 5}, 6, kNone, rope, state, {2, 1, 16, word(0.25f), 1, 0, 16, 0, word(1.0f)});
  w.node(kLinear, {6}, 7, o, kNone, kNone, {});
  w.node(kAdd, {1, 7}, 8, kNone, kNone, kNone, {});
  for (uint32_t i = 0; i < shape.chain; ++i) w.node(kAdd, {8, 8}, 10 + i, kNone, kNone, kNone, {});
  w.node(kLinear, {8}, 9, head, kNone, kNone, {});
  Header h{};
  h.floor_rung = 6;
  h.kind = kDecoder;
  h.vocab = 32;
  h.context = shape.context;
  h.features = shape.features;
  h.slot_width = slot;
  h.logits_value = 9;
  return assemble(w, h);
}

inline int64_t read(void* ctx, uint64_t at, void* to, size_t n) {
  const Bytes& b = *static_cast<const Bytes*>(ctx);
  if (at > b.size()) return -1;
  n = std::min<size_t>(n, b.size() - at);
  if (n) std::memcpy(to, b.data() + at, n);
  return static_cast<int64_t>(n);
}

inline qd_source source(const Bytes& b) { return {const_cast<Bytes*>(&b), b.size(), read, nullptr}; }

}  // namespace tiny
