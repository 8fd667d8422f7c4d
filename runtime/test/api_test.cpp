// The C surface on a model in memory: what it promises, and what damaged files must not do.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "../src/platform.h"
#include "check.h"
#include "tiny_model.h"

namespace {

struct Opened {
  qd_model* model = nullptr;
  qd_session* session = nullptr;
  qd_error err = QD_INIT(qd_error);
  explicit Opened(const tiny::Bytes& file, uint64_t budget = 0, uint32_t chunk = 0, uint32_t threads = 2,
                  qd_kv_dtype kv = QD_KV_F16, qd_activations activations = QD_ACTIVATIONS_INT8) {
    qd_options o;
    qd_options_init(&o);
    o.budget = budget;
    o.max_chunk = chunk;
    o.threads = threads;
    o.kv_dtype = kv;
    o.activations = activations;
    qd_source s = tiny::source(file);
    if (qd_open_source(&s, &o, &model, &err) == QD_OK) qd_session_open(model, 64, &session, &err);
  }
  ~Opened() {
    qd_session_close(session);
    CHECK(qd_close(model) == QD_OK);
  }
  qd_memory memory() {
    qd_memory m = QD_INIT(qd_memory);
    qd_memory_now(model, &m);
    return m;
  }
};

using Logits = std::vector<float>;

Logits decode(Opened& o, std::vector<int32_t> tokens) {
  Logits logits(32);
  qd_status s = qd_decode(o.session, tokens.data(), tokens.size(), logits.data(), &o.err);
  if (s != QD_OK) std::printf("%s\n", o.err.text);
  CHECK(s == QD_OK);
  return logits;
}

std::vector<int32_t> prompt(size_t n) {
  std::vector<int32_t> t(n);
  for (size_t i = 0; i < n; ++i) t[i] = static_cast<int32_t>(i * 7 % 32);
  return t;
}

float distance(const Logits& a, const Logits& b) {
  float most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(a[i] - b[i]));
  return most;
}

void decodes_the_same_each_time(const tiny::Bytes& file) {
  Opened a(file), one_thread(file, 0, 0, 1), exact(file, 0, 0, 2, QD_KV_F16, QD_ACTIVATIONS_EXACT);
  Opened int8(file, 0, 0, 2, QD_KV_INT8), chunks(file, 0, 5);
  if (!a.session) std::printf("%s\n", a.err.text);
  CHECK(a.session && one_thread.session && exact.session && int8.session && chunks.session);
  if (!a.session) return;
  Logits first = decode(a, prompt(20));
  CHECK(first == decode(one_thread, prompt(20)));
  CHECK(qd_session_length(a.session) == 20);
  CHECK(qd_session_trim(a.session, 0, &a.err) == QD_OK);
  CHECK(first == decode(a, prompt(20)));
  float size = distance(first, Logits(32)), off[3] = {distance(first, decode(exact, prompt(20))),
      distance(first, decode(int8, prompt(20))), distance(first, decode(chunks, prompt(20)))};
  std::printf("largest logit %g; exact %g, int8 cache %g, chunks %g away\n", size, off[0], off[1], off[2]);
  CHECK(size > 0.01f && off[0] < 0.05f * size && off[1] < 0.05f * size && off[2] < 0.02f * size);
  int32_t bad = 32, token = -1;
  CHECK(qd_decode(a.session, &bad, 1, nullptr, &a.err) == QD_BAD_ARGUMENT);
  CHECK(qd_decode(a.session, prompt(60).data(), 60, nullptr, &a.err) == QD_CONTEXT_FULL);
  CHECK(qd_sample(a.session, nullptr, first.data(), nullptr, 0, &token, &a.err) == QD_OK);
  CHECK(token == std::max_element(first.begin(), first.end()) - first.begin());
  qd_sampling s;
  qd_sampling_init(&s);
  s.temperature = 0.8f, s.top_k = 5, s.top_p = 0.9f, s.seed = 3;
  CHECK(qd_sample(a.session, &s, first.data(), prompt(20).data(), 20, &token, &a.err) == QD_OK && token >= 0 &&
        token < 32);
}

void keeps_to_the_budget(const tiny::Bytes& file) {
  Opened o(file);
  if (!o.session) return;
  qd_memory all = o.memory();
  CHECK(all.rung == 9 && all.rungs == 9 && all.total <= all.ceiling && all.floor < all.total);
  Logits full = decode(o, prompt(9));
  CHECK(qd_set_budget(o.model, all.floor, &o.err) == QD_OK);
  CHECK(o.memory().rung >= 6 && o.memory().rung < 9 && o.memory().total <= all.floor);
  qd_session_trim(o.session, 0, &o.err);
  CHECK(decode(o, prompt(9)) != full);
  CHECK(qd_set_budget(o.model, all.floor - 1, &o.err) == QD_BUDGET_UNDER_FLOOR && o.err.floor_bytes == all.floor);
  qd_rung rung = QD_INIT(qd_rung);
  CHECK(qd_plan(o.model, all.ceiling, &rung, &o.err) == QD_OK && rung.index == 9);
  qd_set_budget(o.model, all.ceiling, &o.err);
  CHECK(qd_wait_budget(o.model, 5000, &o.err) == QD_OK && o.memory().rung == 9);
  qd_session_trim(o.session, 0, &o.err);
  CHECK(decode(o, prompt(9)) == full);
  CHECK(qd_set_rung(o.model, 7, &o.err) == QD_OK && o.memory().rung == 7);
  CHECK(qd_set_rung(o.model, 0, &o.err) == QD_OK && o.memory().rung == 9);
  CHECK(qd_verify(o.model, nullptr, nullptr, &o.err) == QD_OK);
  Opened small(file, all.floor);
  CHECK(small.session && small.memory().rung < 9);
}

// The logits are a function of the tokens and the rung of their steps, whoever moves the budget meanwhile.
void budget_moves_while_it_decodes(const tiny::Bytes& file) {
  Opened o(file), replay(file);
  if (!o.session) return;
  qd_memory all = o.memory();
  std::atomic<bool> stop{false};
  std::thread mover([&] {
    qd_error err = QD_INIT(qd_error);
    for (uint64_t i = 0; !stop; ++i) {
      qd_set_budget(o.model, all.floor + i * 40000 % (all.ceiling - all.floor + 1), &err);
      if (i % 3 == 0) qd_wait_budget(o.model, 1, &err);
      qd_memory m = QD_INIT(qd_memory);
      qd_memory_now(o.model, &m);
    }
  });
  for (int32_t i = 0; i < 400; ++i) {
    if (i % 50 == 0) qd_session_trim(o.session, 0, &o.err), qd_session_trim(replay.session, 0, &o.err);
    Logits now = decode(o, {i % 32});
    qd_step step = QD_INIT(qd_step);
    qd_step_info(o.session, &step);
    CHECK(qd_set_rung(replay.model, step.rung, &replay.err) == QD_OK);
    CHECK(decode(replay, {i % 32}) == now);
  }
  stop = true;
  mover.join();
}

// Any flipped byte of header and front, with and without mended checksums: an error, or a model that runs.
void damaged_files_do_no_harm(const tiny::Bytes& file, int stride) {
  qd::format::Header h;
  std::memcpy(&h, file.data(), sizeof h);
  size_t opened = 0, all = 0;
  for (size_t at = 0; at < h.front_end; at += static_cast<size_t>(stride))
    for (uint8_t flip : {0x01, 0x80, 0xff}) {
      tiny::Bytes damaged = file;
      damaged[at] ^= flip;
      CHECK(!Opened(damaged).model || at >= 508);
      tiny::fix_crcs(&damaged);
      Opened o(damaged, 0, 0, 1);
      ++all;
      if (!o.session) continue;
      ++opened;
      std::vector<int32_t> tokens = prompt(3);
      Logits logits(std::max(h.vocab, 1u << 17));
      qd_info info = QD_INIT(qd_info);
      qd_model_info(o.model, &info);
      if (info.vocab <= logits.size()) qd_decode(o.session, tokens.data(), tokens.size(), logits.data(), &o.err);
    }
  std::printf("%zu of %zu damaged files could be opened\n", opened, all);
  for (size_t n : {size_t{0}, size_t{100}, size_t{511}, size_t{512}, file.size() / 2, file.size() - 1}) {
    tiny::Bytes cut(file.begin(), file.begin() + static_cast<long>(n));
    CHECK(!Opened(cut).model);
  }
  tiny::Bytes damaged = file;
  damaged[h.stack_at] ^= 1;
  Opened o(damaged);
  CHECK(!o.model && o.err.status == QD_CHECKSUM);
}

}  // namespace

// Bit by bit, as the definition has it.
uint32_t plain_crc32c(const uint8_t* p, size_t n) {
  uint32_t c = ~0u;
  for (size_t i = 0; i < n; ++i) {
    c ^= p[i];
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ ((c & 1) ? 0x82f63b78u : 0u);
  }
  return ~c;
}

// Reads of a few bytes each, some of which fail: as a slow connection would.
struct Choppy {
  const tiny::Bytes& file;
  uint64_t bad_from;
  std::atomic<uint32_t> reads{0};
  static int64_t read(void* ctx, uint64_t at, void* to, size_t n) {
    Choppy& c = *static_cast<Choppy*>(ctx);
    if (at >= c.bad_from) return -1;
    size_t most = 1000 + ++c.reads % 7 * 1000;
    n = std::min({n, most, static_cast<size_t>(c.file.size() - at), static_cast<size_t>(c.bad_from - at)});
    std::memcpy(to, c.file.data() + at, n);
    return static_cast<int64_t>(n);
  }
};

std::string error_of(const tiny::Bytes& file, uint64_t bad_from, uint32_t threads, qd_status* status) {
  Choppy choppy{file, bad_from};
  qd_source s{&choppy, file.size(), Choppy::read, nullptr};
  qd_options o;
  qd_options_init(&o);
  o.threads = threads;
  o.flags = QD_HUGE_PAGES;
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  *status = qd_open_source(&s, &o, &model, &err);
  CHECK(qd_close(model) == QD_OK);
  return err.text;
}

// Several turns, of which the later ones are bad, too: the first is named, whoever reads it.
void reads_by_all_threads_as_by_one() {
  tiny::Bytes file = tiny::decoder({100});
  qd::format::Header h;
  std::memcpy(&h, file.data(), sizeof h);
  CHECK(h.stack_bytes > 5u << 20);
  tiny::Bytes damaged = file;
  for (uint64_t at = h.stack_bytes / 3; at < h.stack_bytes; at += 70000) damaged[h.stack_at + at] ^= 1;
  qd_status one, many;
  for (int i = 0; i < 5; ++i) {
    CHECK(error_of(file, UINT64_MAX, 4, &many) == "" && many == QD_OK);
    CHECK(error_of(damaged, UINT64_MAX, 1, &one) == error_of(damaged, UINT64_MAX, 4, &many));
    CHECK(one == QD_CHECKSUM && many == QD_CHECKSUM);
    uint64_t end = h.stack_at + h.stack_bytes / 2;
    CHECK(error_of(file, end, 1, &one) == error_of(file, end, 4, &many));
    CHECK(one == QD_IO && many == QD_IO);
  }
}

void huge_pages_are_given_up_when_they_take_long() {
  constexpr uint64_t ms = 1000 * 1000;
  qd::HugePagePatience quick, hiccup, slow;
  for (int i = 0; i < 1000; ++i) CHECK(quick.lasts(ms / 5));
  for (int i = 0; i < 1000; ++i) CHECK(hiccup.lasts(i % 50 ? ms / 5 : 15 * ms));
  CHECK(slow.lasts(8 * ms) && slow.lasts(8 * ms) && !slow.lasts(8 * ms));
  qd::Range range;
  CHECK(range.make(3 * qd::page_sizes().huge, true));
  range.data[5] = 7;
  qd::use_pages(range.data + qd::page_sizes().huge, 2 * qd::page_sizes().huge, false);
  range.data[range.bytes - 1] = 8;
  qd::use_pages(range.data, range.bytes, true);
  CHECK(range.data[5] == 7 && range.data[qd::page_sizes().huge] == 0 && range.data[range.bytes - 1] == 8);
}

void checksums_are_crc32c() {
  CHECK(qd::crc32c(0, "123456789", 9) == 0xe3069283u);  // the check value
  std::vector<uint8_t> data(70001);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>((i * 2654435761u) >> 13);
  for (size_t n : {0u, 1u, 7u, 8u, 100u, 16383u, 16384u, 16385u, 65536u, 70000u})
    CHECK(qd::crc32c(0, data.data() + 1, n) == plain_crc32c(data.data() + 1, n));
  uint32_t first = qd::crc32c(0, data.data(), 33000);
  CHECK(qd::crc32c(first, data.data() + 33000, 30000) == plain_crc32c(data.data(), 63000));
}

int main(int argc, char** argv) {
  checksums_are_crc32c();
  tiny::Bytes file = tiny::decoder();
  reads_by_all_threads_as_by_one();
  huge_pages_are_given_up_when_they_take_long();
  decodes_the_same_each_time(file);
  keeps_to_the_budget(file);
  budget_moves_while_it_decodes(file);
  damaged_files_do_no_harm(file, argc > 1 ? std::atoi(argv[1]) : 1);
  return report();
}
