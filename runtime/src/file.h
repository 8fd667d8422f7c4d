// The front of a model file as typed tables. validate() has seen every number in it, so whoever reads it afterwards
// trusts.
#pragma once
#include <cstring>

#include "error.h"
#include "format.h"

namespace qd {

struct File {
  format::Header header;
  const uint8_t* front = nullptr;  // bytes [0, front_end) of the file
  const format::Matrix* matrices = nullptr;
  const format::Term* terms = nullptr;
  const format::Block* blocks = nullptr;
  const format::RungRecord* rungs = nullptr;
  const format::Tensor* tensors = nullptr;
  const format::Value* values = nullptr;
  const format::Node* nodes = nullptr;
  const format::State* states = nullptr;
  const uint32_t* attributes = nullptr;
  const char* metadata = nullptr;
  const uint32_t* pages = nullptr;
  // Made by validate(), in room that its caller gives.
  uint32_t* order = nullptr;     // [blocks] ids of the blocks as they lie in the stack
  uint32_t* position = nullptr;  // [terms][kMaxPlanes] where in that order a plane is
  uint32_t* maker = nullptr;     // [values] the node that makes it; kNone: an input, or none
  int32_t* most = nullptr;       // [tensors] of int32 ones the greatest entry (-1: none is positive)

  uint64_t strings_end = 0;      // behind the last zero of the metadata: a string that begins before it ends

  uint32_t count(format::SectionId id) const { return static_cast<uint32_t>(header.sections[id].count); }
  const char* name(uint32_t at) const { return metadata + at; }
};

// Whether ids must be rows of a node's table; otherwise one beyond them takes row 0.
inline bool limits_ids(const format::Node& n) { return n.op == format::kEmbed && n.attrs == 0; }

struct Attention {  // the attributes of kAttention
  uint32_t heads, kv_heads, head_dim;
  float scale;
  uint32_t causal, window, rotary_dim, interleaved;
  float factor;
};
static_assert(sizeof(Attention) == 36, "nine words");

struct AttentionKind {  // what may stand behind them: the feature "attention"
  float softcap;                // 0: none
  uint32_t chunk;               // a query sees the keys of its own run of so many positions; 0: all
  float beta, length, offset;   // queries times 1 + beta log(1 + floor((position + offset) / length)); beta 0: none
  uint32_t sinks;               // tensor [heads], or kNone
  uint32_t beyond;              // sequences of more tokens than that have frequencies of their own; 0: none have
  uint32_t long_frequencies;    // tensor [rotary_dim / 2]; kNone: made of theta and factor for each length (dynamic NTK)
  float theta, factor;
};
static_assert(sizeof(AttentionKind) == 40, "ten words");

inline AttentionKind attention_kind(const File& f, const format::Node& n) {
  AttentionKind kind{0, 0, 0, 1, 0, format::kNone, 0, format::kNone, 0, 0};
  if (n.attrs >= (sizeof(Attention) + sizeof kind) / 4)
    std::memcpy(&kind, f.attributes + n.attr + sizeof(Attention) / 4, sizeof kind);
  return kind;
}

inline uint32_t value_dim(const format::State& s) { return s.value_dim ? s.value_dim : s.head_dim; }

// The header alone: magic, version, CRC, and that all ranges lie within `size` bytes. Before anything is allocated.
qd_status validate_header(const format::Header& header, uint64_t size, qd_error* err);
// Everything else; header, front and the room for what it makes are set, the tables are set here.
qd_status validate(File* file, qd_error* err);
// validate_graph.cpp: values, nodes, states.
qd_status validate_graph(const File& file, qd_error* err);

bool find_metadata(const File& file, const char* key, format::MetaEntry* out);
inline bool string_ends(const File& file, uint32_t at) { return at < file.strings_end; }

// What only the bytes of the weights can say: codes that index a table, rows and columns of sparse entries.
bool block_is_sound(const File& file, uint32_t block, const uint8_t* bytes);
bool tensors_are_sound(const File& file, const uint8_t* resident);

inline uint32_t row_blocks(const format::Matrix& m) { return (m.rows + 15) / 16; }
bool node_reads_logits_row(const File& file, const format::Node& node);

}  // namespace qd
