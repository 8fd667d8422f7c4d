// Faults that the runtime had once, by name, and the promises that they broke.
//
//   faults_test [NAME]   one of them, or all
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "../src/checked.h"
#include "../src/platform.h"
#include "check.h"
#include "tiny_model.h"

namespace {

qd_status open(const tiny::Bytes& file, qd_model** model, qd_error* err, uint32_t threads = 1, uint64_t budget = 0) {
  qd_options o;
  qd_options_init(&o);
  o.threads = threads;
  o.budget = budget;
  qd_source source = tiny::source(file);
  return qd_open_source(&source, &o, model, err);
}

qd_memory memory_of(const qd_model* model) {
  qd_memory m = QD_INIT(qd_memory);
  CHECK(qd_memory_now(model, &m) == QD_OK);
  return m;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void sums_and_products_that_do_not_fit_fit_nowhere() {
  using qd::Checked;
  Checked most = UINT64_MAX;
  CHECK((Checked(3) + 4).value() == 7 && (Checked(3) * 4).at_most(12) && !(Checked(3) * 4).at_most(11));
  CHECK(!(most + 1).good() && !(most * 2).at_most(UINT64_MAX) && (most + 1).value() == UINT64_MAX);
  CHECK(!((most + 1) * 0).good() && !(Checked::none() + 1).good());
  CHECK(Checked(65).rounded_up(64).value() == 128 && !most.rounded_up(64).good());
  CHECK(qd::is_size<uint32_t>(0xffffffffu) && !qd::is_size<uint32_t>((uint64_t{4} << 30) + 4096));
}

void ranges_that_no_address_space_has_are_refused() {
  CHECK(qd::reserve(UINT64_MAX, false) == nullptr && qd::reserve(UINT64_MAX - 4096, true) == nullptr);
  CHECK(qd::reserve((uint64_t{1} << 46) + 1, false) == nullptr);
  if (sizeof(size_t) == 4) CHECK(qd::reserve((uint64_t{4} << 30) + 4096, false) == nullptr);
}

// 2^14 caches of 2^50 bytes are 2^64: what is left of that is one small cache, and the others lie outside of it.
void caches_that_wrap_around_are_refused() {
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  CHECK(open(tiny::decoder({3, 1u << 24, 1u << 14}), &model, &err) == QD_BAD_FILE);
  CHECK(std::strstr(err.text, "caches") != nullptr && model == nullptr);
}

// Within the limit of all caches together: what they need is counted, and no machine has it.
void a_cache_that_is_too_large_is_an_error_of_the_session() {
  qd_model* model = nullptr;
  qd_session* session = nullptr;
  qd_error err = QD_INIT(qd_error);
  CHECK(open(tiny::decoder({3, 1u << 24, 2}), &model, &err) == QD_OK);
  CHECK(qd_session_open(model, 0, &session, &err) == QD_NO_MEMORY && session == nullptr);
  CHECK(memory_of(model).kv == 0);
  qd_status status = qd_session_open(model, 64, &session, &err);  // 8 GiB of addresses, of which a token takes a few pages
  CHECK(status == (sizeof(size_t) == 4 ? QD_NO_MEMORY : QD_OK));
  int32_t token = 1;
  if (session != nullptr) CHECK(qd_decode(session, &token, 1, nullptr, &err) == QD_OK);
  qd_session_close(session);
  CHECK(qd_close(model) == QD_OK);
}

void a_graph_of_many_nodes_opens_in_a_moment() {
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  tiny::Bytes many = tiny::decoder({3, 128, 0, 65000});
  auto start = std::chrono::steady_clock::now();
  CHECK(open(many, &model, &err) == QD_OK);
  CHECK(seconds_since(start) < 2.0);
  CHECK(qd_close(model) == QD_OK);
  CHECK(open(tiny::decoder({3, 128, 0, 65536}), &model, &err) == QD_BAD_FILE && std::strstr(err.text, "allowed 65536"));
}

void pressure_is_switched_by_many_threads() {
  tiny::Bytes file = tiny::decoder();
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  setenv("QDEPLOY_CGROUP", "/nowhere", 1);
  CHECK(open(file, &model, &err) == QD_OK);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&] {
      qd_error own = QD_INIT(qd_error);
      for (int n = 0; n < 300; ++n)
        CHECK(qd_follow_pressure(model, 1, &own) == QD_OK && qd_follow_pressure(model, 0, &own) == QD_OK);
    });
  for (std::thread& t : threads) t.join();
  CHECK(qd_follow_pressure(model, 1, &err) == QD_OK && qd_close(model) == QD_OK);
}

void a_fifo_is_refused_at_once() {
  std::string folder = "/tmp/qd-faults-XXXXXX";
  CHECK(mkdtemp(folder.data()) != nullptr);
  std::string path = folder + "/fifo";
  CHECK(mkfifo(path.c_str(), 0600) == 0);
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  auto start = std::chrono::steady_clock::now();
  CHECK(qd_open(path.c_str(), nullptr, &model, &err) == QD_IO && std::strstr(err.text, "regular"));
  CHECK(qd_open(folder.c_str(), nullptr, &model, &err) == QD_IO);
  CHECK(seconds_since(start) < 1.0);
  unlink(path.c_str());
  rmdir(folder.c_str());
}

void a_feature_that_is_not_known_is_refused_by_its_name() {
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  uint64_t bits = uint64_t{1} << 41 | uint64_t{1} << 63;
  CHECK(open(tiny::decoder({3, 128, 0, 0, bits, "63 later\n41 tiles\n"}), &model, &err) == QD_UNSUPPORTED);
  CHECK(std::strstr(err.text, "feature 41 (tiles)") != nullptr);
  CHECK(open(tiny::decoder({3, 128, 0, 0, bits, ""}), &model, &err) == QD_UNSUPPORTED);
  CHECK(std::strstr(err.text, "feature 41 (that the file does not name)") != nullptr);
  CHECK(open(tiny::decoder({3, 128, 0, 0, bits, "41 a\033b\n"}), &model, &err) == QD_UNSUPPORTED);
  CHECK(std::strstr(err.text, "(a?b)") != nullptr);
  CHECK(open(tiny::decoder({3, 128, 0, 0, 0, "41 tiles\n"}), &model, &err) == QD_OK && qd_close(model) == QD_OK);
}

// ---- steps

qd_session* session_of(qd_model* model) {
  qd_error err = QD_INIT(qd_error);
  qd_session* session = nullptr;
  CHECK(qd_session_open(model, 64, &session, &err) == QD_OK);
  return session;
}

std::vector<std::vector<float>> decode(qd_session* session, int32_t first, int steps) {
  qd_error err = QD_INIT(qd_error);
  std::vector<std::vector<float>> all;
  CHECK(qd_session_trim(session, 0, &err) == QD_OK);
  for (int i = 0; i < steps; ++i) {
    int32_t tokens[3] = {(first + i) % 32, (first + 2 * i) % 32, 7};
    std::vector<float> logits(32);
    if (qd_session_length(session) > 60) CHECK(qd_session_trim(session, 0, &err) == QD_OK);
    CHECK(qd_decode(session, tokens, i % 3 ? 1 : 3, logits.data(), &err) == QD_OK);
    all.push_back(logits);
  }
  return all;
}

// Sessions of several threads step at the same time, each in a workspace of its own, and get the bits that they get alone.
void sessions_step_at_the_same_time_and_get_their_own_bits() {
  tiny::Bytes file = tiny::decoder();
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  CHECK(open(file, &model, &err, 3) == QD_OK);
  std::vector<std::vector<std::vector<float>>> alone, together(4);
  for (int i = 0; i < 4; ++i) {
    qd_session* session = session_of(model);
    alone.push_back(decode(session, i, 60));
    qd_session_close(session);
  }
  uint64_t before = memory_of(model).total;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&, i] {
      qd_session* session = session_of(model);
      together[static_cast<size_t>(i)] = decode(session, i, 60);
      qd_session_close(session);
    });
  for (std::thread& t : threads) t.join();
  CHECK(alone == together);
  qd_memory after = memory_of(model);
  CHECK(after.total == before && after.peak >= after.total && after.unreturned == 0);
  CHECK(qd_close(model) == QD_OK);
}

// Where the budget has no room for a second workspace, steps take turns; where it moves, it is kept to.
void steps_keep_to_the_budget() {
  tiny::Bytes file = tiny::decoder();
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  CHECK(open(file, &model, &err, 2) == QD_OK);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  std::vector<qd_session*> sessions;
  for (int i = 0; i < 3; ++i) sessions.push_back(session_of(model));
  for (int i = 0; i < 3; ++i)
    threads.emplace_back([&, i] {
      while (!stop) decode(sessions[static_cast<size_t>(i)], i, 10);
    });
  for (uint64_t i = 0; i < 200; ++i) {
    qd_memory now = memory_of(model);
    CHECK(qd_set_budget(model, i % 2 ? now.floor + i * 12345 % 400000 : now.floor, &err) <= QD_PENDING);
    CHECK(qd_wait_budget(model, 5000, &err) == QD_OK);
    now = memory_of(model);
    CHECK(now.total <= now.budget);
    if (i % 2 == 0) CHECK(qd_set_budget(model, 0, &err) <= QD_PENDING);
  }
  stop = true;
  for (std::thread& t : threads) t.join();
  for (qd_session* session : sessions) qd_session_close(session);
  qd_memory now = memory_of(model);
  CHECK(qd_set_budget(model, now.floor, &err) <= QD_PENDING && qd_wait_budget(model, 1000, &err) == QD_OK);
  now = memory_of(model);
  CHECK(now.total <= now.floor && now.kv == 0);
  CHECK(qd_close(model) == QD_OK);
}

// A program that was built with an older header has a shorter struct; it gets what it knows.
void a_struct_of_an_older_program_is_filled() {
  tiny::Bytes file = tiny::decoder();
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  CHECK(open(file, &model, &err) == QD_OK);
  struct {
    qd_memory known;
    uint64_t behind;
  } old{};
  old.known.size = offsetof(qd_memory, unreturned);
  old.known.unreturned = 77;
  CHECK(qd_memory_now(model, &old.known) == QD_OK && old.known.total > 0 && old.known.unreturned == 77);
  CHECK(old.known.size == offsetof(qd_memory, unreturned));
  old.known.size = 8;
  CHECK(qd_memory_now(model, &old.known) == QD_BAD_ARGUMENT);
  CHECK(qd_close(model) == QD_OK);
}

struct Test {
  const char* name;
  void (*run)();
};
#define TEST(name) {#name, name}
constexpr Test kTests[] = {
    TEST(sums_and_products_that_do_not_fit_fit_nowhere),
    TEST(ranges_that_no_address_space_has_are_refused),
    TEST(caches_that_wrap_around_are_refused),
    TEST(a_cache_that_is_too_large_is_an_error_of_the_session),
    TEST(a_graph_of_many_nodes_opens_in_a_moment),
    TEST(pressure_is_switched_by_many_threads),
    TEST(a_fifo_is_refused_at_once),
    TEST(a_feature_that_is_not_known_is_refused_by_its_name),
    TEST(sessions_step_at_the_same_time_and_get_their_own_bits),
    TEST(steps_keep_to_the_budget),
    TEST(a_struct_of_an_older_program_is_filled),
};

}  // namespace

int main(int argc, char** argv) {
  for (const Test& test : kTests)
    if (argc < 2 || std::string(argv[1]) == test.name) test.run();
  return report();
}
