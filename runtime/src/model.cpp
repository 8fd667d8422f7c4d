// Opening and closing, and what a model says about itself.
#include "model.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "crc32c.h"
#include "terms.h"

namespace qd {

using namespace format;

namespace {

// Stacks of at least so many huge pages lie in them (64 MiB where these have 2 MiB; outlining.py knows, too).
constexpr uint64_t kHugeFrom = 32;

qd_status no_memory(qd_error* err, const char* what) {
  return fail(err, QD_NO_MEMORY, "%s: the system gives no memory for it", what);
}

// Room for what is made of the file's records.
bool make_directory(qd_model& m) {
  File& f = m.file;
  auto lay_out = [&](uint8_t* base) {
    Layout room(base);
    room.take(&m.stack.views, f.count(kTerms));
    room.take(&f.position, Checked(f.count(kTerms)) * kMaxPlanes);
    room.take(&f.order, f.count(kBlocks));
    room.take(&f.maker, f.count(kValues));
    room.take(&f.most, f.count(kTensors));
    room.take(&m.cache.at, f.count(kStates));
    return room.used();
  };
  Checked bytes = lay_out(nullptr);
  if (!bytes.good() || !m.directory.make(bytes.value())) return false;
  lay_out(m.directory.data);
  return true;
}

qd_status read_front(qd_model& m, qd_error* err) {
  File& f = m.file;
  if (m.source.size < sizeof f.header) return fail(err, QD_BAD_FILE, "file: shorter than a header; is it cut short?");
  if (qd_status s = read_fully(m.source, 0, &f.header, sizeof f.header, err)) return s;
  if (qd_status s = validate_header(f.header, m.source.size, err)) return s;
  if (!m.front.make(f.header.front_end)) return no_memory(err, "front");
  if (qd_status s = read_fully(m.source, 0, m.front.data, f.header.front_end, err)) return s;
  f.front = m.front.data;
  if (!make_directory(m)) return no_memory(err, "directory");
  return validate(&f, err);
}

// Pages of the resident part are read into one range; the last may be shared with nothing, as the stack begins on a
// page.
qd_status read_resident(qd_model& m, qd_error* err) {
  const Header& h = m.file.header;
  uint64_t bytes = std::min(Checked(h.resident_bytes).rounded_up(kPage).value(), h.stack_at - h.resident_at);
  if (!m.resident.make(bytes)) return no_memory(err, "resident part");
  if (qd_status s = read_pages(m, h.resident_at, m.resident.data, bytes, err)) return s;
  if (!tensors_are_sound(m.file, m.resident.data))
    return fail(err, QD_BAD_FILE, "a column map points outside of its matrix");
  return QD_OK;
}

void make_view(const qd_model& m, const Matrix& matrix, uint32_t term) {
  const File& f = m.file;
  TermView& v = m.stack.views[term];
  v.term = f.terms + term;
  for (uint32_t p = 0; p < v.term->planes; ++p)
    v.codes[p] = m.stack.memory.data + f.blocks[f.order[f.position[uint64_t{term} * kMaxPlanes + p]]].at;
  v.base = v.codes[0];
  v.codes[0] += v.term->codes_at;
  v.row_blocks = row_blocks(matrix);
  v.columns = matrix.padded_columns;
  Tables tables = term_rules(v.term->kind)->tables;
  if (tables != Tables::kNone) v.table = m.floats(v.term->table_tensor);
  if (tables == Tables::kFloatAndInt8) v.itable = reinterpret_cast<const int8_t*>(m.floats(v.term->itable_tensor));
}

void make_views(const qd_model& m) {
  for (uint32_t i = 0; i < m.file.count(kMatrices); ++i) {
    const Matrix& matrix = m.file.matrices[i];
    for (uint32_t t = 0; t < matrix.terms; ++t) make_view(m, matrix, matrix.first_term + t);
  }
}

qd_status check_kernels(const qd_model& m, qd_error* err) {
  for (uint32_t i = 0; i < m.file.count(kTerms); ++i) {
    uint16_t kind = m.file.terms[i].kind;
    const Kind& k = m.settings.kernels->kinds[kind];
    if (!k.exact || (!m.settings.exact && (!k.one || !k.many)))
      return fail(err, QD_UNSUPPORTED, "term %u: no %s kernel for %s", i, m.settings.kernels->name,
                  term_rules(kind)->name);
  }
  return QD_OK;
}

qd_status take_options(const qd_options& o, Settings* settings, qd_error* err) {
  settings->verify = !(o.flags & QD_NO_VERIFY);
  settings->grow = !(o.flags & QD_NO_GROW);
  settings->exact = o.activations == QD_ACTIVATIONS_EXACT;
  settings->cache = o.kv_dtype;
  if (o.kv_dtype != QD_KV_F16 && o.kv_dtype != QD_KV_INT8 && o.kv_dtype != QD_KV_F32)
    return fail(err, QD_BAD_ARGUMENT, "kv_dtype: found %d, allowed 0 to 2", static_cast<int>(o.kv_dtype));
  settings->max_chunk = o.max_chunk == 0 ? 64 : std::min(o.max_chunk, 4096u);
  settings->kernels = select_kernels(o.isa);
  if (settings->kernels == nullptr)
    return fail(err, QD_UNSUPPORTED, "isa: %.64s is not here", o.isa ? o.isa : "(none)");
  return QD_OK;
}

bool make_stack(qd_model& m, uint32_t flags) {
  const PageSizes& pages = page_sizes();
  uint64_t bytes = m.file.header.stack_bytes;
  bool huge = flags & QD_HUGE_PAGES || (bytes / kHugeFrom >= pages.huge && !(flags & QD_SMALL_PAGES));
  m.stack.granule = huge ? pages.huge : pages.small;
  if (!m.stack.memory.make(bytes, huge)) return false;
  make_views(m);
  return true;
}

qd_status open_model(qd_model& m, const qd_options& o, qd_error* err) {
  if (qd_status s = take_options(o, &m.settings, err)) return s;
  if (qd_status s = read_front(m, err)) return s;
  if (!plan_cache(m.file, m.settings.cache, &m.cache)) return no_memory(err, "cache of one token");
  if (qd_status s = check_kernels(m, err)) return s;
  if (qd_status s = read_resident(m, err)) return s;
  if (!m.pool.start(o.threads ? o.threads : core_count())) return no_memory(err, "threads");
  if (!make_stack(m, o.flags)) return no_memory(err, "stack");
  m.settings.max_chunk = std::min(m.settings.max_chunk, m.file.header.context);
  if (m.file.header.kind == kDecoder && !make_steps(m)) return no_memory(err, "scratch");
  m.budget.bytes = o.budget ? o.budget : UINT64_MAX;
  if (m.budget.bytes < floor_locked(m)) return fail_floor(err, m.budget.bytes, floor_locked(m));
  m.budget.want = affordable(m, base_locked(m), m.budget.bytes);
  if (qd_status s = load_now(m, err)) return s;
  if (m.settings.grow && !start_loader(m)) return no_memory(err, "loader");
  return QD_OK;
}

void destroy(qd_model* m) {
  stop_pressure(*m);
  stop_loader(*m);
  m->pool.stop();
  {
    std::lock_guard<std::mutex> lock(m->state);
    drop_idle_locked(*m);
    trim_prompt_cache_locked(*m, 0);
  }
  if (m->source.close) m->source.close(m->source.ctx);
  delete m;
}

void (*log_sink)(void*, int, const char*) = nullptr;
void* log_ctx = nullptr;

}  // namespace

void log_line(int level, const char* line) {
  if (log_sink) log_sink(log_ctx, level, line);
}

}  // namespace qd

using namespace qd;

extern "C" uint32_t qd_abi_version(void) { return 1; }
extern "C" const char* qd_version(void) { return "0.1.0"; }

extern "C" const char* qd_status_name(qd_status s) {
  static const char* const names[] = {"ok", "pending", "cancelled", "bad argument", "bad file", "unsupported",
                                      "budget under floor", "no memory", "io", "context full", "busy", "checksum"};
  return static_cast<uint32_t>(s) < 12 ? names[s] : "unknown";
}

extern "C" size_t qd_isas(const char** names, size_t capacity) {
  size_t n = 0;
  for (const Kernels* const* k = kAllKernels; *k; ++k) {
    if (!runs_here(**k)) continue;
    if (names && n < capacity) names[n] = (*k)->name;
    ++n;
  }
  return n;
}

extern "C" void qd_options_init(qd_options* o) {
  if (o == nullptr) return;
  std::memset(o, 0, sizeof *o);
  o->size = sizeof *o;
}

extern "C" void qd_set_log(void (*log)(void*, int, const char*), void* ctx) {
  log_sink = log;
  log_ctx = ctx;
}

extern "C" qd_status qd_open_source(const qd_source* source, const qd_options* options, qd_model** out, qd_error* err) {
  if (out) *out = nullptr;
  if (!source || !source->read || !out) return fail(err, QD_BAD_ARGUMENT, "qd_open_source: a null pointer");
  qd_options o;
  qd_options_init(&o);
  if (options) std::memcpy(&o, options, std::min<size_t>(options->size, sizeof o));
  qd_model* m = new (std::nothrow) qd_model;
  if (m == nullptr) return no_memory(err, "model");
  m->source = *source;
  if (qd_status s = open_model(*m, o, err)) {
    m->source.close = nullptr;  // still the caller's
    destroy(m);
    return s;
  }
  *out = m;
  return QD_OK;
}

extern "C" qd_status qd_open(const char* path, const qd_options* options, qd_model** out, qd_error* err) {
  if (!path || !out) return fail(err, QD_BAD_ARGUMENT, "qd_open: a null pointer");
  *out = nullptr;
  qd_source source;
  if (qd_status s = open_path(path, &source, err)) return s;
  qd_status s = qd_open_source(&source, options, out, err);
  if (s != QD_OK) source.close(source.ctx);
  return s;
}

extern "C" qd_status qd_close(qd_model* m) {
  if (m == nullptr) return QD_OK;
  {
    std::lock_guard<std::mutex> lock(m->state);
    if (m->budget.open_sessions > 0) return QD_BUSY;
  }
  destroy(m);
  return QD_OK;
}

extern "C" qd_status qd_model_info(const qd_model* m, qd_info* out) {
  if (!m || !out || out->size < sizeof *out) return QD_BAD_ARGUMENT;
  const Header& h = m->file.header;
  uint32_t outputs = 0, layers = 0;
  for (uint32_t i = 0; i < m->file.count(kValues); ++i) outputs += m->file.values[i].role == kOutput;
  for (uint32_t i = 0; i < m->file.count(kNodes); ++i) layers += m->file.nodes[i].op == kAttention;
  *out = {out->size, h.vocab, h.context, layers, outputs, h.kind == kEncoder, m->file.count(kMatrices),
          m->file.count(kRungs), h.parameters, h.file_bytes, h.stack_bytes, {}};
  std::memcpy(out->content_sha256, h.content_sha256, sizeof out->content_sha256);
  return QD_OK;
}

extern "C" qd_status qd_metadata(const qd_model* m, const char* key, char* to, size_t capacity, size_t* needed) {
  MetaEntry e;
  if (!m || !key || !find_metadata(m->file, key, &e)) return QD_BAD_ARGUMENT;
  if (needed) *needed = e.value_bytes + 1;
  if (to == nullptr || capacity == 0) return QD_OK;
  size_t n = std::min<size_t>(e.value_bytes, capacity - 1);
  std::memcpy(to, m->file.metadata + e.value_at, n);
  to[n] = 0;
  return n == e.value_bytes ? QD_OK : QD_BAD_ARGUMENT;
}

extern "C" qd_status qd_verify(qd_model* m, int (*progress)(void*, uint64_t, uint64_t), void* ctx, qd_error* err) {
  if (m == nullptr) return fail(err, QD_BAD_ARGUMENT, "qd_verify: no model");
  const Header& h = m->file.header;
  Range page;
  if (!page.make(kPage)) return no_memory(err, "a page");
  uint64_t all = h.file_bytes - h.resident_at;
  for (uint64_t at = 0; at < all; at += kPage) {
    uint64_t n = std::min<uint64_t>(kPage, all - at);
    if (qd_status s = read_fully(m->source, h.resident_at + at, page.data, n, err)) return s;
    if (crc32c(0, page.data, n) != m->file.pages[at / kPage])
      return fail(err, QD_CHECKSUM, "page %llu: its checksum does not match",
                  static_cast<unsigned long long>(at / kPage));
    if (progress && progress(ctx, at + n, all)) return QD_CANCELLED;
  }
  return QD_OK;
}

extern "C" const char* qd_isa(const qd_model* m) { return m ? m->settings.kernels->name : ""; }
