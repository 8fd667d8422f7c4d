// Sampling of the next token. Penalty, then temperature, then top-k, top-p and min-p over the softmax, then one draw.
// A draw is a function of the seed and of how many tokens there are, so a replay gives the same text.
#include <cmath>
#include <cstring>

#include "session.h"

namespace {

struct Candidate {
  float logit;
  int32_t token;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

void sift(Candidate* heap, size_t at, size_t n) {  // the best on top
  for (;;) {
    size_t child = 2 * at + 1;
    if (child >= n) return;
    if (child + 1 < n && better(heap[child + 1], heap[child])) ++child;
    if (!better(heap[child], heap[at])) return;
    Candidate t = heap[at];
    heap[at] = heap[child];
    heap[child] = t;
    at = child;
  }
}

uint64_t splitmix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Takes the best out of the heap one by one, to the heap's end, until enough of the mass is there. Returns how many.
size_t select(Candidate* c, size_t n, const qd_sampling& s, double* kept) {
  double best = c[0].logit, all = 0;
  for (size_t i = 0; i < n; ++i) all += std::exp((c[i].logit - best) / s.temperature);
  size_t taken = 0;
  *kept = 0;
  while (taken < n) {
    double p = std::exp((c[0].logit - best) / s.temperature);
    if (taken > 0 && ((s.top_k > 0 && taken >= s.top_k) || p < s.min_p || *kept >= s.top_p * all)) break;
    *kept += p;
    Candidate top = c[0];
    c[0] = c[n - 1 - taken];
    c[n - 1 - taken] = top;
    ++taken;
    sift(c, 0, n - taken);
  }
  return taken;
}

bool sane(const qd_sampling& s) {
  return s.temperature >= 0 && s.top_p > 0 && s.top_p <= 1 && s.min_p >= 0 && s.min_p <= 1 &&
         s.repetition_penalty > 0 && std::isfinite(s.temperature) && std::isfinite(s.repetition_penalty);
}

// Each token is penalized once, however often it occurs.
void penalize(Candidate* c, size_t vocab, const qd_sampling& s, const int32_t* tokens, size_t n) {
  size_t from = s.last_n > 0 && s.last_n < n ? n - s.last_n : 0;
  for (size_t i = from; i < n; ++i) {
    if (tokens[i] < 0 || static_cast<size_t>(tokens[i]) >= vocab) continue;
    Candidate& at = c[tokens[i]];
    if (at.token < 0) continue;
    at.logit = at.logit > 0 ? at.logit / s.repetition_penalty : at.logit * s.repetition_penalty;
    at.token = -1;  // done
  }
  for (size_t i = 0; i < vocab; ++i) c[i].token = static_cast<int32_t>(i);
}

// The best, or where all that is allowed has no finite logit, the first that is.
qd_status first_allowed(const Candidate* c, size_t vocab, const uint32_t* mask, size_t best, int32_t* out) {
  *out = c[best].token;
  for (size_t i = 0; mask != nullptr && !std::isfinite(c[best].logit) && i < vocab; ++i)
    if (mask[i / 32] >> (i % 32) & 1) return *out = static_cast<int32_t>(i), QD_OK;
  return QD_OK;
}

}  // namespace

extern "C" void qd_sampling_init(qd_sampling* s) {
  if (s == nullptr) return;
  std::memset(s, 0, sizeof *s);
  s->size = sizeof *s;
  s->top_p = 1;
  s->repetition_penalty = 1;
}

namespace qd {

qd_status choose(uint8_t* room, size_t vocab, const qd_sampling* sampling, const float* logits, const int32_t* tokens, size_t n,
                 const uint32_t* mask, int32_t* out, qd_error* err) {
  qd_sampling s;
  qd_sampling_init(&s);
  if (sampling != nullptr) std::memcpy(&s, sampling, sampling->size < sizeof s ? sampling->size : sizeof s);
  if (!sane(s)) return fail(err, QD_BAD_ARGUMENT, "qd_sample: temperature, top_p, min_p or penalty out of range");
  if (vocab == 0) return fail(err, QD_UNSUPPORTED, "qd_sample: the model has no vocabulary to sample from");
  Candidate* c = reinterpret_cast<Candidate*>(room);
  size_t allowed = 0;
  for (size_t i = 0; i < vocab; ++i) {
    bool masked = mask != nullptr && !(mask[i / 32] >> (i % 32) & 1);
    allowed += !masked;
    c[i] = {masked || std::isnan(logits[i]) ? -INFINITY : logits[i], static_cast<int32_t>(i)};
  }
  if (allowed == 0) return fail(err, QD_BAD_ARGUMENT, "mask: found no token that it allows");
  if (s.repetition_penalty != 1) penalize(c, vocab, s, tokens, n);
  size_t best = 0;
  for (size_t i = 1; i < vocab; ++i)
    if (better(c[i], c[best])) best = i;
  *out = c[best].token;
  if (s.temperature == 0 || !std::isfinite(c[best].logit)) return first_allowed(c, vocab, mask, best, out);
  for (size_t i = vocab / 2; i-- > 0;) sift(c, i, vocab);
  double kept, run = 0;
  size_t taken = select(c, vocab, s, &kept);
  double draw = static_cast<double>(splitmix(splitmix(s.seed) + n) >> 11) * 0x1p-53 * kept;
  for (size_t i = 0; i < taken; ++i) {
    const Candidate& at = c[vocab - 1 - i];
    *out = at.token;
    run += std::exp((at.logit - c[vocab - 1].logit) / static_cast<double>(s.temperature));
    if (run > draw) break;
  }
  return QD_OK;
}

}  // namespace qd

extern "C" qd_status qd_sample(qd_session* session, const qd_sampling* sampling, const float* logits,
                               const int32_t* tokens, size_t n, int32_t* out, qd_error* err) {
  if (session == nullptr || logits == nullptr || out == nullptr || (tokens == nullptr && n > 0))
    return qd::fail(err, QD_BAD_ARGUMENT, "qd_sample: a null pointer");
  return qd::choose(session->candidates, session->model->file.header.vocab, sampling, logits, tokens, n, nullptr, out, err);
}
