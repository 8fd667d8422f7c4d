// Opens what the fuzzer makes of a model file, decodes with it, and moves its budget. All checksums are mended first,
// so that what they guard is what is tried: records, weights, tables. run.sh builds and runs it, on the golden files of
// the tests.
#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "../include/qdeploy.h"
#include "../src/crc32c.h"
#include "../src/format.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

namespace {

using namespace qd::format;
using Bytes = std::vector<uint8_t>;
using Random = std::minstd_rand;

constexpr uint64_t kRecordBytes[kSections] = {sizeof(Matrix), sizeof(Term),  sizeof(Block), sizeof(RungRecord),
                                              sizeof(Tensor), sizeof(Value), sizeof(Node),  sizeof(State),
                                              4,              1,             4};
constexpr uint32_t kMostLogits = 1u << 20, kTokens = 9;

bool header_of(const uint8_t* data, size_t n, Header* h) {
  if (n < sizeof *h) return false;
  std::memcpy(h, data, sizeof *h);
  return true;
}

void mend_pages(uint8_t* data, size_t n, const Header& h) {
  const Section& pages = h.sections[kPages];
  if (h.resident_at > n || pages.at < sizeof h || pages.at > n || pages.count > (n - pages.at) / 4) return;
  for (uint64_t i = 0, at = h.resident_at; i < pages.count && at < n; ++i, at += kPage) {
    uint32_t sum = qd::crc32c(0, data + at, std::min<uint64_t>(kPage, n - at));
    std::memcpy(data + pages.at + 4 * i, &sum, 4);
  }
}

void mend(uint8_t* data, size_t n) {
  Header h;
  if (!header_of(data, n, &h)) return;
  mend_pages(data, n, h);
  if (h.front_end >= sizeof h && h.front_end <= n)
    h.front_crc = qd::crc32c(0, data + sizeof h, h.front_end - sizeof h);
  h.header_crc = qd::crc32c(0, &h, sizeof h - 4);
  std::memcpy(data, &h, sizeof h);
}

// Where something is that means something: a word of the header, a field of a record, or a byte of what comes behind.
uint64_t place_of(Random& random, const Header& h, size_t n) {
  uint32_t kind = random() % 16;
  if (kind == 0) return 8 + random() % 500;
  if (kind == 1 && h.resident_at < n) return h.resident_at + random() % (n - h.resident_at);
  uint32_t id = random() % kPages;  // their checksums are mended anyway
  const Section& s = h.sections[id];
  if (s.count == 0 || s.at > n || s.count > n) return n;
  return s.at + random() % s.count * kRecordBytes[id] + random() % kRecordBytes[id];
}

uint64_t changed(Random& random, uint64_t value, uint32_t width) {
  uint32_t power = random() % (8 * width), how = random() % 6;
  uint64_t bit = uint64_t{1} << power;
  if (how == 0) return value + 1;
  if (how == 1) return value - 1;
  if (how == 2) return value ^ bit;
  if (how == 3) return bit;
  if (how == 4) return bit - 1;
  return random();
}

void mutate(Random& random, uint8_t* data, size_t n) {
  Header h;
  for (uint32_t left = 1 + random() % 3; left > 0 && header_of(data, n, &h); --left) {
    uint32_t width = 1u << random() % 4;
    uint64_t at = place_of(random, h, n) & ~uint64_t{width - 1}, value = 0;
    if (at + width > n) continue;
    std::memcpy(&value, data + at, width);
    value = changed(random, value, width);
    std::memcpy(data + at, &value, width);
  }
}

int64_t read(void* ctx, uint64_t at, void* to, size_t n) {
  const Bytes& b = *static_cast<const Bytes*>(ctx);
  if (at > b.size()) return -1;
  n = std::min<size_t>(n, b.size() - at);
  if (n) std::memcpy(to, b.data() + at, n);
  return static_cast<int64_t>(n);
}

constexpr uint64_t kMostMemory = 512u << 20;

// Steps at every size of budget, and draws from what they give.
void decode(qd_model* model, qd_session* session, const qd_info& info, uint32_t seed) {
  qd_error err = QD_INIT(qd_error);
  qd_memory memory = QD_INIT(qd_memory);
  std::vector<float> logits(info.vocab);
  int32_t tokens[kTokens], drawn;
  for (uint32_t i = 0; i < kTokens; ++i) tokens[i] = static_cast<int32_t>((seed >> i) % std::max(1u, info.vocab));
  qd_decode(session, tokens, 1, logits.data(), &err);
  qd_decode(session, tokens, kTokens, logits.data(), &err);
  qd_memory_now(model, &memory);
  qd_set_budget(model, memory.floor, &err);
  qd_decode(session, tokens, 2, logits.data(), &err);
  qd_set_budget(model, kMostMemory, &err);
  qd_wait_budget(model, 100, &err);
  if (qd_decode(session, tokens, 1, logits.data(), &err) != QD_OK) return;
  qd_sampling sampling;
  qd_sampling_init(&sampling);
  sampling.temperature = 0.9f, sampling.top_p = 0.9f, sampling.top_k = 5, sampling.repetition_penalty = 1.1f;
  qd_sample(session, &sampling, logits.data(), tokens, kTokens, &drawn, &err);
  qd_session_trim(session, 0, &err);
  qd_generation how = QD_INIT(qd_generation);
  how.sampling = &sampling;
  qd_finish finish;
  size_t given = 2;
  qd_generate(session, tokens, &given, kTokens, logits.data(), &how, &finish, &err);
}

void run(const qd_model* model, qd_session* session, uint32_t context) {
  qd_error err = QD_INIT(qd_error);
  int32_t ids[kTokens] = {1, 2, 3, 1, 0, 5, 2};
  int64_t tokens = std::min(kTokens, context);
  qd_tensor in{"input_ids", QD_I32, 2, {1, tokens, 0, 0}, ids, sizeof ids};
  std::vector<Bytes> room;
  for (uint32_t i = 0; i < 4; ++i) {
    qd_tensor out{};
    if (qd_io(model, 1, i, &out) != QD_OK || out.shape[out.rank - 1] > kMostLogits) return;
    room.emplace_back(static_cast<size_t>(out.shape[out.rank - 1]) * 4 * kTokens);
    out.data = room.back().data();
    out.bytes = room.back().size();
    qd_run(session, &in, 1, &out, 1, &err);
  }
}

void use(qd_model* model, uint32_t seed) {
  qd_error err = QD_INIT(qd_error);
  qd_info info = QD_INIT(qd_info);
  qd_model_info(model, &info);
  if (info.vocab > kMostLogits) return;
  uint32_t context = seed & 1 ? info.context : std::min(info.context, 2 * kTokens);
  qd_session* session = nullptr;
  if (qd_session_open(model, context, &session, &err) == QD_OK) {
    if (info.encoder) run(model, session, context);
    else decode(model, session, info, seed);
  }
  qd_session_close(session);
  char text[64];
  size_t needed;
  qd_metadata(model, "meta", text, sizeof text, &needed);
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t n, size_t most, unsigned seed) {
  Random random(seed + 1);
  if (random() % 16 == 0) n = LLVMFuzzerMutate(data, n, most);
  else mutate(random, data, n);
  mend(data, n);
  return n;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n) {
  Bytes file(data, data + n);
  mend(file.data(), file.size());
  uint32_t seed = qd::crc32c(0, data, n);
  qd_source source{&file, file.size(), read, nullptr};
  qd_options o;
  qd_options_init(&o);
  o.threads = 1 + (seed % 8 == 0);
  o.budget = kMostMemory;  // a context that a file declares may ask for more: it is refused, and that is what is tried
  o.flags = seed >> 3 & 1 ? QD_NO_GROW : 0;
  o.activations = seed >> 4 & 3 ? QD_ACTIVATIONS_INT8 : QD_ACTIVATIONS_EXACT;
  o.kv_dtype = static_cast<qd_kv_dtype>((seed >> 6) % 3);
  o.max_chunk = seed >> 9 & 1 ? 5 : 0;
  o.isa = seed >> 10 & 1 ? "scalar" : nullptr;
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  if (qd_open_source(&source, &o, &model, &err) != QD_OK) return 0;
  use(model, seed >> 11);
  qd_close(model);
  return 0;
}
