// The rules of every kind of term, from its file.
#include "terms.h"

#include <cstring>

namespace qd {
using namespace format;

bool is_tensor(const File& f, uint32_t id, TensorKind kind, Checked count) {
  return id < f.count(kTensors) && f.tensors[id].kind == kind && count.good() && f.tensors[id].count == count.value();
}

bool fits_block(const TermShape& s, uint64_t at, Checked bytes) {
  return at % 4 == 0 && (Checked(at) + bytes).at_most(s.bytes);
}

namespace {

// What most kinds say; a kind's own type says the rest.
struct AnyTerm {
  static constexpr bool kInPlanes = false, kGrouped = false;
  static constexpr Tables kTables = Tables::kNone;
  static constexpr bool (*tables_fit)(const File&, const TermShape&) = nullptr;
  static constexpr bool (*is_sound)(const Matrix&, const Term&, const uint8_t*) = nullptr;
};

struct GroupedTerm : AnyTerm {
  static constexpr bool kGrouped = true;
};

bool codes_below(const uint8_t* codes, uint64_t n, uint32_t size, uint32_t levels) {
  if (levels == (size == 1 ? 256u : 65536u)) return true;
  for (uint64_t i = 0; i < n; ++i) {
    uint32_t code = size == 1 ? codes[i] : codes[2 * i] | static_cast<uint32_t>(codes[2 * i + 1]) << 8;
    if (code >= levels) return false;
  }
  return true;
}

// Codes that index tables of so many entries.
template <uint32_t kEntries>
struct TableTerm : GroupedTerm {
  static constexpr Tables kTables = Tables::kFloatAndInt8;
  static constexpr uint32_t kMaxTables = 256;

  static bool tables_fit(const File& f, const TermShape& s) {
    const Term& t = s.term;
    Checked entries = Checked(t.tables) * kEntries;
    if (t.tables == 0 || t.tables > kMaxTables || !is_tensor(f, t.table_tensor, kFloat32, entries)) return false;
    if (!is_tensor(f, t.itable_tensor, kInt8, entries)) return false;
    return t.tables == 1 || fits_block(s, t.select_at, Checked(s.row_blocks) * s.groups * kRows);
  }
  static bool is_sound(const Matrix& m, const Term& t, const uint8_t* block) {
    if (t.tables == 1) return true;
    return codes_below(block + t.select_at, uint64_t{row_blocks(m)} * t.groups * kRows, 1, t.tables);
  }
};

#define QD_TERM_RULES
#define QD_TERM(number, constant, Type)
#include "terms.def"
#undef QD_TERM_RULES

template <class T>
constexpr TermRules rules_of(const char* name) {
  return {name, T::kInPlanes, T::kGrouped, T::kTables, T::code_bytes, T::tables_fit, T::is_sound};
}

constexpr uint32_t kRowCount = 0
#define QD_TERM(number, constant, Type) +1
#include "terms.def"
    ;
static_assert(kRowCount + 1 == kTermKinds, "the rows of terms.def are numbered from 1 on, in order");

constexpr TermRules kRules[kTermKinds] = {
    {},
#define QD_TERM(number, constant, Type) rules_of<Type>(#Type),
#include "terms.def"
};

constexpr NumberRules kNumbers[kNumberKinds + 1] = {
#define QD_NUMBER(number, constant, bytes, scale, zero, element, upper) {bytes, scale, zero, element, upper},
#include "numbers.def"
    {}};

}  // namespace

const TermRules* term_rules(uint16_t kind) { return kind > 0 && kind < kTermKinds ? kRules + kind : nullptr; }

const NumberRules& number_of(uint8_t kind) { return kNumbers[kind < kNumberKinds ? kind : uint8_t{kNumberKinds}]; }

}  // namespace qd
