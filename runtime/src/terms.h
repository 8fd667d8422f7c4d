// What a file must hold for each kind of term: made of the rows of terms.def, whose files say it.
#pragma once
#include "checked.h"
#include "file.h"

namespace qd {

struct TermShape {
  const format::Term& term;
  uint64_t row_blocks, columns, groups, bytes;  // columns: padded; bytes: of plane 0
};

enum class Tables : uint8_t { kNone, kFloat, kFloatAndInt8 };  // resident tensors that a kind points to

struct TermRules {
  const char* name;
  bool in_planes;  // one block per plane
  bool grouped;    // has groups, whether or not it has params
  Tables tables;
  Checked (*code_bytes)(const TermShape&);               // of one plane; none() where a field is not allowed
  bool (*tables_fit)(const File&, const TermShape&);     // null: there are none
  bool (*is_sound)(const format::Matrix&, const format::Term&, const uint8_t* block);  // null: whatever the codes are
};

// The rules of a kind; null where there is no such kind.
const TermRules* term_rules(uint16_t kind);

struct NumberRules {
  uint64_t bytes;
  bool scale, zero, element, upper;
};
const NumberRules& number_of(uint8_t kind);  // of no use anywhere where there is no such kind
inline uint64_t number_bytes(uint8_t kind) { return number_of(kind).bytes; }

bool is_tensor(const File& file, uint32_t id, format::TensorKind kind, Checked count);
// Whether something that begins at `at` of plane 0 lies in it.
bool fits_block(const TermShape& shape, uint64_t at, Checked bytes);

}  // namespace qd
