// Texts end for a reason; sessions that no machine can hold are refused, whatever context a file declares.
//
//   generate_test
#include <algorithm>
#include <string>

#include "../src/platform.h"
#include "check.h"
#include "tiny_model.h"

namespace {

using Ids = std::vector<int32_t>;

struct Opened {
  qd_model* model = nullptr;
  qd_session* session = nullptr;
  qd_error err = QD_INIT(qd_error);
  qd_status opened = QD_OK;
  Opened(const tiny::Bytes& file, uint32_t context) {
    qd_options o;
    qd_options_init(&o);
    o.threads = 1;
    qd_source source = tiny::source(file);
    CHECK(qd_open_source(&source, &o, &model, &err) == QD_OK);
    opened = qd_session_open(model, context, &session, &err);
  }
  ~Opened() {
    qd_session_close(session);
    CHECK(qd_close(model) == QD_OK);
  }
};

struct Said {
  Ids tokens;
  qd_finish finish;
};

// What follows on three tokens, at most `capacity` in all.
Said generate(const tiny::Bytes& file, uint32_t context, size_t capacity, qd_generation how = QD_INIT(qd_generation)) {
  Opened o(file, context);
  Ids tokens(capacity);
  for (size_t i = 0; i < 3; ++i) tokens[i] = static_cast<int32_t>(5 * i + 1);
  size_t n = 3;
  std::vector<float> logits(32);
  qd_finish finish = QD_FINISH_NONE;
  CHECK(qd_generate(o.session, tokens.data(), &n, capacity, logits.data(), &how, &finish, &o.err) == QD_OK);
  tokens.resize(n);
  return {tokens, finish};
}

tiny::Bytes model(const std::string& meta) {
  tiny::Shape shape;
  shape.meta = meta;
  return tiny::decoder(shape);
}

Ids stops(const std::string& meta) {
  tiny::Bytes file = model(meta);
  Opened o(file, 8);
  Ids ids(8, -1);
  ids.resize(std::min(qd_stop_tokens(o.model, ids.data(), ids.size()), ids.size()));
  return ids;
}

void a_text_ends_for_a_reason() {
  Said free = generate(model("{}"), 64, 10);
  CHECK(free.tokens.size() == 10 && free.finish == QD_FINISH_LENGTH);
  qd_generation two = QD_INIT(qd_generation);
  two.tokens = 2;
  Said brief = generate(model("{}"), 64, 10, two);
  CHECK(brief.tokens == Ids(free.tokens.begin(), free.tokens.begin() + 5) && brief.finish == QD_FINISH_LENGTH);
  Said full = generate(model("{}"), 6, 40);
  CHECK(full.tokens.size() == 7 && full.finish == QD_FINISH_CONTEXT);
  CHECK(std::equal(full.tokens.begin(), full.tokens.end(), free.tokens.begin()));
  int32_t last = free.tokens[6];
  size_t first = static_cast<size_t>(std::find(free.tokens.begin() + 3, free.tokens.end(), last) - free.tokens.begin());
  Said ended = generate(model("{\"eos_token_id\":[31,31," + std::to_string(last) + "]}"), 64, 10);
  bool stopped_before = std::find(free.tokens.begin() + 3, free.tokens.begin() + static_cast<long>(first), 31) !=
                        free.tokens.begin() + static_cast<long>(first);
  CHECK(ended.finish == QD_FINISH_STOP && (stopped_before || ended.tokens.size() == first));
  CHECK(std::find(ended.tokens.begin() + 3, ended.tokens.end(), last) == ended.tokens.end());
}

void the_caller_is_told_of_each_token_and_may_end_the_text() {
  struct Heard {
    Ids tokens;
    static int token(void* ctx, int32_t token) {
      Heard& heard = *static_cast<Heard*>(ctx);
      heard.tokens.push_back(token);
      return heard.tokens.size() == 4;
    }
  } heard;
  qd_generation how = QD_INIT(qd_generation);
  how.token = Heard::token;
  how.ctx = &heard;
  Said said = generate(model("{}"), 64, 20, how);
  CHECK(said.finish == QD_FINISH_STOP && said.tokens.size() == 7);
  CHECK(heard.tokens == Ids(said.tokens.begin() + 3, said.tokens.end()));
}

void stop_tokens_are_those_of_the_metadata() {
  CHECK(stops("{\"eos_token_id\":2}") == Ids({2}) && stops("{ \"eos_token_id\" : [ 2 , 14 ] }") == Ids({2, 14}));
  CHECK(stops("{\"a\":{\"eos_token_id\":5},\"eos_token_id\":[7],\"z\":1}") == Ids({7}));  // of the top level alone
  CHECK(stops("{\"a\":\"eos_token_id\",\"b\":\"\\\"eos_token_id\\\":3\"}").empty());
  CHECK(stops("{\"eos_token_id\":[-1,null,3,99999999999999999999,4.5]}") == Ids({3, 4}));
  for (const char* broken : {"{\"eos_token_id\":", "{\"eos_token_id\":[", "{\"eos_token_id", "\"\\", "}}}}", "[[[[", "{"})
    CHECK(stops(broken).empty());
  tiny::Bytes none = tiny::decoder();
  Opened o(none, 8);
  CHECK(qd_stop_tokens(o.model, nullptr, 0) == 0);
}

void a_struct_of_an_older_program_is_taken() {
  qd_generation old = QD_INIT(qd_generation);
  old.size = 8;  // up to `tokens`
  old.tokens = 1;
  old.token = [](void*, int32_t) { return 1; };
  Said said = generate(model("{}"), 64, 10, old);
  CHECK(said.tokens.size() == 4 && said.finish == QD_FINISH_LENGTH);
}

void what_cannot_be_is_refused() {
  tiny::Bytes file = model("{}");
  Opened o(file, 8);
  Ids tokens(20, 1);
  std::vector<float> logits(32);
  size_t n = 0;
  qd_finish finish = QD_FINISH_STOP;
  CHECK(qd_generate(o.session, tokens.data(), &n, 20, logits.data(), nullptr, &finish, &o.err) == QD_BAD_ARGUMENT);
  CHECK(finish == QD_FINISH_NONE);
  n = 12;  // more than the session holds
  CHECK(qd_generate(o.session, tokens.data(), &n, 20, logits.data(), nullptr, &finish, &o.err) == QD_CONTEXT_FULL);
  qd_cancel(o.session);
  n = 3;
  CHECK(qd_generate(o.session, tokens.data(), &n, 20, logits.data(), nullptr, &finish, &o.err) == QD_CANCELLED);
  CHECK(finish == QD_FINISH_NONE && n == 3);
}

// Addresses are free: without a limit, a cache of terabytes would be given, and written to until the machine is full.
void a_context_that_no_machine_holds_is_refused_and_a_shorter_one_is_not() {
  tiny::Shape shape;
  shape.context = 1u << 24;
  shape.wide_states = 2;  // 2^50 bytes each
  tiny::Bytes file = tiny::decoder(shape);
  Opened declared(file, 0);
  CHECK(declared.opened == QD_NO_MEMORY && declared.session == nullptr);
  bool named = std::strstr(declared.err.text, "16777216") != nullptr || std::strstr(declared.err.text, "16,777") != nullptr;
  CHECK(named);
  qd_memory now = QD_INIT(qd_memory);
  CHECK(qd_memory_now(declared.model, &now) == QD_OK && now.kv == 0);
  Opened shorter(file, 4);
  CHECK(shorter.opened == QD_OK);
}

// Caches of one model count together: what the machine has is shared by its sessions.
void sessions_are_refused_when_their_sum_is_more_than_the_machine_has() {
  tiny::Shape shape;
  shape.context = 1u << 24;
  shape.wide_states = 1;
  tiny::Bytes file = tiny::decoder(shape);
  Opened probe(file, 1);
  qd_memory one = QD_INIT(qd_memory);
  CHECK(qd_memory_now(probe.model, &one) == QD_OK);
  // a cache is made of blocks of 64 tokens
  uint64_t per_token = one.kv / 64, machine = qd::machine_bytes();
  if (machine == UINT64_MAX || machine / 5 * 2 / per_token >= 1u << 24) return;  // no machine that would refuse
  uint32_t context = static_cast<uint32_t>(machine / 5 * 2 / per_token);
  std::vector<qd_session*> sessions(4);
  size_t held = 0;
  for (qd_session*& s : sessions) held += qd_session_open(probe.model, context, &s, &probe.err) == QD_OK;
  CHECK(held <= 2 && probe.err.status == QD_NO_MEMORY);
  for (qd_session* s : sessions) qd_session_close(s);
}

}  // namespace

int main() {
  a_text_ends_for_a_reason();
  the_caller_is_told_of_each_token_and_may_end_the_text();
  stop_tokens_are_those_of_the_metadata();
  a_struct_of_an_older_program_is_taken();
  what_cannot_be_is_refused();
  a_context_that_no_machine_holds_is_refused_and_a_shorter_one_is_not();
  sessions_are_refused_when_their_sum_is_more_than_the_machine_has();
  return report();
}
