// Checks of the header, the stack and the matrices. Sums and products of numbers of the file are checked ones.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "crc32c.h"
#include "terms.h"

namespace qd {
using namespace format;
namespace {

constexpr uint64_t kRecordBytes[kSections] = {sizeof(Matrix), sizeof(Term),  sizeof(Block), sizeof(RungRecord),
                                              sizeof(Tensor), sizeof(Value), sizeof(Node),  sizeof(State),
                                              4,              1,             4};
constexpr uint32_t kMaxSide = 1u << 24;

bool within(uint64_t at, uint64_t bytes, uint64_t from, uint64_t to) {
  return at >= from && at <= to && bytes <= to - at;
}

qd_status bad(qd_error* err, const char* what, uint64_t index, const char* why) {
  return fail(err, QD_BAD_FILE, "%s %llu: %s; the file is damaged or its writer is wrong", what,
              static_cast<unsigned long long>(index), why);
}

qd_status check_metadata(File* file, qd_error* err) {
  const File& f = *file;
  uint64_t bytes = f.header.sections[kMetadata].count;
  uint32_t n = 0;
  if (bytes < 4) return bad(err, "metadata", 0, "shorter than its count");
  for (file->strings_end = bytes; file->strings_end > 0 && f.metadata[file->strings_end - 1] != 0;) --file->strings_end;
  std::memcpy(&n, f.metadata, 4);
  if (n > (bytes - 4) / sizeof(MetaEntry)) return bad(err, "metadata", n, "more entries than bytes");
  for (uint32_t i = 0; i < n; ++i) {
    MetaEntry e;
    std::memcpy(&e, f.metadata + 4 + i * sizeof e, sizeof e);
    if (!within(e.key_at, e.key_bytes, 0, bytes) || !within(e.value_at, e.value_bytes, 0, bytes))
      return bad(err, "metadata entry", i, "lies outside of its section");
  }
  return QD_OK;
}

// The line of a feature in the metadata's entry "features": "<bit> <name>".
void name_of_feature(const File& f, int bit, char* to, size_t capacity) {
  std::snprintf(to, capacity, "that the file does not name");
  MetaEntry e;
  if (!find_metadata(f, "features", &e)) return;
  char start[8];
  size_t length = static_cast<size_t>(std::snprintf(start, sizeof start, "%d ", bit));
  const char *at = f.metadata + e.value_at, *end = at + e.value_bytes;
  while (at < end) {
    const char* line = static_cast<const char*>(std::memchr(at, '\n', static_cast<size_t>(end - at)));
    if (line == nullptr) line = end;
    size_t bytes = static_cast<size_t>(line - at);
    if (bytes > length && std::memcmp(at, start, length) == 0) {
      size_t n = std::min(bytes - length, capacity - 1);
      for (size_t i = 0; i < n; ++i) to[i] = at[length + i] < ' ' || at[length + i] > '~' ? '?' : at[length + i];
      to[n] = 0;
      return;
    }
    at = line + 1;
  }
}

constexpr uint64_t kKnownFeatures = 0
#define QD_FEATURE(bit, constant, name) | uint64_t{1} << bit
#include "features.def"
    ;

qd_status check_features(const File& f, qd_error* err) {
  uint64_t unknown = f.header.features & ~kKnownFeatures;
  if (unknown == 0) return QD_OK;
  int bit = __builtin_ctzll(unknown);
  char name[64];
  name_of_feature(f, bit, name, sizeof name);
  return fail(err, QD_UNSUPPORTED, "features: the file needs feature %d (%s), which this version does not know; update it",
              bit, name);
}

qd_status check_tensors(const File& f, qd_error* err) {
  for (uint32_t i = 0; i < f.count(kTensors); ++i) {
    const Tensor& t = f.tensors[i];
    uint64_t element = t.kind == kInt8 ? 1 : 4;
    if (t.kind >= kTensorKinds || t.bytes != element * t.count || t.at % 64 || !within(t.at, t.bytes, 0, f.header.resident_bytes))
      return bad(err, "tensor", i, "kind, bytes or place");
  }
  return QD_OK;
}

qd_status check_stack(const File& f, qd_error* err) {
  const Header& h = f.header;
  uint32_t n = f.count(kBlocks);
  if (f.count(kRungs) != n || h.floor_rung > n || (n > 0 && h.floor_rung == 0))
    return bad(err, "stack", h.floor_rung, "the rungs do not fit the blocks");
  for (uint32_t i = 0; i < n; ++i) f.order[i] = i;
  std::sort(f.order, f.order + n, [&](uint32_t a, uint32_t b) { return f.blocks[a].at < f.blocks[b].at; });
  for (uint64_t i = 0; i < uint64_t{f.count(kTerms)} * kMaxPlanes; ++i) f.position[i] = kNone;
  uint64_t end = 0;
  for (uint32_t i = 0; i < n; ++i) {
    const Block& b = f.blocks[f.order[i]];
    if (b.at % 64 || !within(b.at, b.bytes, end, h.stack_bytes) || b.term >= f.count(kTerms) || b.plane >= kMaxPlanes ||
        b.plane >= f.terms[b.term].planes)
      return bad(err, "block", f.order[i], "place, overlap, term or plane");
    uint32_t* position = f.position + uint64_t{b.term} * kMaxPlanes;
    // A plane says nothing without those above it.
    if (position[b.plane] != kNone || (b.plane > 0 && position[b.plane - 1] == kNone))
      return bad(err, "block", f.order[i], "its plane is there twice, or before a higher one");
    position[b.plane] = i;
    end = b.at + b.bytes;
    if (f.rungs[i].bytes != end) return bad(err, "rung", i + 1, "does not end with its block");
  }
  return QD_OK;
}

bool param_fits(const TermShape& s, const Param& p, bool zero) {
  if (p.kind == kNo) return p.super_kind == kNo;
  const NumberRules& number = number_of(p.kind);
  if (!(zero ? number.zero : number.scale)) return false;
  if (!fits_block(s, p.at, Checked(s.row_blocks) * s.groups * kRows * number.bytes)) return false;
  if (p.super_kind == kNo) return true;
  const NumberRules& upper = number_of(p.super_kind);
  if (!upper.upper || p.super_span == 0) return false;
  uint64_t supers = (s.groups + p.super_span - 1) / p.super_span;
  return fits_block(s, p.super_at, Checked(s.row_blocks) * supers * kRows * upper.bytes);
}

bool groups_fit(const TermShape& s, const TermRules& rules) {
  const Term& t = s.term;
  if (t.group % 16) return false;
  bool params = t.scale.kind != kNo || t.zero.kind != kNo || t.offset.kind != kNo;
  if (!params && !rules.grouped) return t.groups <= s.columns;
  return t.group > 0 && t.groups == (s.columns + t.group - 1) / t.group;
}

bool bias_fits(const TermShape& s) {
  const Term& t = s.term;
  if (t.bias_kind == kNo) return true;
  if (t.bias_kind != kF16 && t.bias_kind != kF32) return false;
  return fits_block(s, t.bias_at, Checked(s.row_blocks) * kRows * number_bytes(t.bias_kind));
}

// Params and bias of the block that `s` is of.
bool params_fit(const TermShape& s) {
  const Term& t = s.term;
  return param_fits(s, t.scale, false) && param_fits(s, t.zero, true) && param_fits(s, t.offset, false) && bias_fits(s);
}

qd_status check_term(const File& f, const Matrix& m, uint32_t id, qd_error* err) {
  const Term& t = f.terms[id];
  const TermRules* rules = term_rules(t.kind);
  if (rules == nullptr) return fail(err, QD_UNSUPPORTED, "term %u: kind %u is not known", id, t.kind);
  if (t.planes == 0 || t.planes > kMaxPlanes || (!rules->in_planes && t.planes != 1))
    return bad(err, "term", id, "planes");
  const uint32_t* position = f.position + uint64_t{id} * kMaxPlanes;
  for (uint32_t p = 0; p < t.planes; ++p)
    if (position[p] == kNone) return bad(err, "term", id, "a plane has no block");
  TermShape s{t, row_blocks(m), m.padded_columns, t.groups, f.blocks[f.order[position[0]]].bytes};
  if (!groups_fit(s, *rules)) return bad(err, "term", id, "group");
  Checked codes = rules->code_bytes(s);
  if (!codes.good() || codes.value() == 0 || !fits_block(s, t.codes_at, codes))
    return bad(err, "term", id, "codes do not fit the block");
  if (!params_fit(s)) return bad(err, "term", id, "params do not fit the block");
  if (t.ladder > 1 || (t.ladder && (!rules->in_planes || t.codes_at != 0))) return bad(err, "term", id, "ladder");
  if (rules->tables_fit && !rules->tables_fit(f, s)) return bad(err, "term", id, "tables");
  for (uint32_t p = 1; p < t.planes; ++p) {
    TermShape own{t, s.row_blocks, s.columns, s.groups, f.blocks[f.order[position[p]]].bytes};
    if (!codes.at_most(own.bytes) || (t.ladder && !params_fit(own)))
      return bad(err, "term", id, "a plane does not fit its block");
  }
  return QD_OK;
}

qd_status check_matrices(const File& f, qd_error* err) {
  uint32_t next = 0;  // terms belong to one matrix each, in order: nothing is shared and nothing is left out
  for (uint32_t i = 0; i < f.count(kMatrices); ++i) {
    const Matrix& m = f.matrices[i];
    if (m.rows == 0 || m.columns == 0 || m.rows > kMaxSide || m.padded_columns > kMaxSide || m.padded_columns % 32 ||
        m.padded_columns == 0 || (m.map_tensor == kNone && m.columns > m.padded_columns))
      return bad(err, "matrix", i, "rows or columns");
    if (m.first_term != next || m.terms == 0 || m.terms > f.count(kTerms) - next) return bad(err, "matrix", i, "terms");
    if (m.map_tensor != kNone && !is_tensor(f, m.map_tensor, kInt32, m.padded_columns)) return bad(err, "matrix", i, "map");
    if (m.scale_tensor != kNone && !is_tensor(f, m.scale_tensor, kFloat32, m.rows)) return bad(err, "matrix", i, "scale");
    if (m.name_at != kNone && !string_ends(f, m.name_at)) return bad(err, "matrix", i, "name");
    for (; next < m.first_term + m.terms; ++next)
      if (qd_status s = check_term(f, m, next, err)) return s;
  }
  return next == f.count(kTerms) ? QD_OK : bad(err, "term", next, "belongs to no matrix");
}

void set_tables(File* f) {
  const Section* s = f->header.sections;
  const uint8_t* p = f->front;
  f->matrices = reinterpret_cast<const Matrix*>(p + s[kMatrices].at);
  f->terms = reinterpret_cast<const Term*>(p + s[kTerms].at);
  f->blocks = reinterpret_cast<const Block*>(p + s[kBlocks].at);
  f->rungs = reinterpret_cast<const RungRecord*>(p + s[kRungs].at);
  f->tensors = reinterpret_cast<const Tensor*>(p + s[kTensors].at);
  f->values = reinterpret_cast<const Value*>(p + s[kValues].at);
  f->nodes = reinterpret_cast<const Node*>(p + s[kNodes].at);
  f->states = reinterpret_cast<const State*>(p + s[kStates].at);
  f->attributes = reinterpret_cast<const uint32_t*>(p + s[kAttributes].at);
  f->metadata = reinterpret_cast<const char*>(p + s[kMetadata].at);
  f->pages = reinterpret_cast<const uint32_t*>(p + s[kPages].at);
}

}  // namespace

bool find_metadata(const File& f, const char* key, MetaEntry* out) {
  uint32_t n;
  size_t length = std::strlen(key);
  std::memcpy(&n, f.metadata, 4);
  for (uint32_t i = 0; i < n; ++i) {
    std::memcpy(out, f.metadata + 4 + i * sizeof *out, sizeof *out);
    if (out->key_bytes == length && std::memcmp(f.metadata + out->key_at, key, length) == 0) return true;
  }
  return false;
}

qd_status validate_header(const Header& h, uint64_t size, qd_error* err) {
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0) return bad(err, "header", 0, "this is not a qdeploy model");
  if (crc32c(0, &h, 508) != h.header_crc)
    return fail(err, QD_CHECKSUM, "header: its checksum does not match; fetch it again");
  if (h.version != kVersion) return fail(err, QD_UNSUPPORTED, "header: found version %u, allowed 1", h.version);
  if (h.file_bytes != size)
    return bad(err, "header: file bytes", h.file_bytes, "not the size of this file; is it cut short?");
  if (h.front_end < sizeof h || h.front_end > h.resident_at || h.front_end > 0x7fffffffu)
    return bad(err, "header: front end", h.front_end, "out of range");
  if (h.resident_at % kPage || h.stack_at % kPage || !within(h.resident_at, h.resident_bytes, 0, h.stack_at) ||
      !within(h.stack_at, h.stack_bytes, 0, size) || h.stack_at + h.stack_bytes != size)
    return bad(err, "header: stack", h.stack_at, "place or bytes");
  for (uint32_t i = 0; i < kSections; ++i) {
    const Section& s = h.sections[i];
    if (s.count > h.front_end / kRecordBytes[i] || s.at % 64 ||
        !within(s.at, s.count * kRecordBytes[i], 512, h.front_end))
      return bad(err, "section", i, "lies outside of the front");
    for (uint32_t j = 0; j < i; ++j) {
      const Section& o = h.sections[j];
      if (s.count && o.count && s.at < o.at + o.count * kRecordBytes[j] && o.at < s.at + s.count * kRecordBytes[i])
        return bad(err, "section", i, "overlaps another");
    }
  }
  if (h.kind > kEncoder || h.context == 0 || h.context > kMaxSide || h.vocab > kMaxSide || h.slot_width > kMaxSide)
    return bad(err, "header: kind", h.kind, "kind, context, vocabulary or slots out of range");
  uint64_t paged = size - h.resident_at;
  if (h.sections[kPages].count != paged / kPage + (paged % kPage != 0))
    return bad(err, "header: checksums", h.sections[kPages].count, "not one for each page");
  return QD_OK;
}

qd_status validate(File* f, qd_error* err) {
  const Header& h = f->header;
  if (crc32c(0, f->front + sizeof h, h.front_end - sizeof h) != h.front_crc)
    return fail(err, QD_CHECKSUM, "front: its checksum does not match; fetch the file again");
  set_tables(f);
  if (qd_status s = check_metadata(f, err)) return s;
  if (qd_status s = check_features(*f, err)) return s;
  if (qd_status s = check_tensors(*f, err)) return s;
  if (qd_status s = check_stack(*f, err)) return s;
  if (qd_status s = check_matrices(*f, err)) return s;
  return validate_graph(*f, err);
}

}  // namespace qd
