/* Moves the budget at random from two threads while a third generates, and holds the library to what it promises.

   stress MODEL.qd CHANGES [SEED]

   - after every step the process holds at most the budget in force and 4 MB;
   - at every rung qd_memory_now says what the process holds, within 2 MB and 1 % (after a prompt, which touches it
   all);
   - a replay of the recorded rungs gives the same logits, bit for bit;
   - what was held is given back at the end.
   Prints one line of figures and "ok". */
#include <pthread.h>
#include <qdeploy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CONTEXT = 96, MOST_STEPS = 1 << 20 };
static const long MB = 1000000;

typedef struct {
  uint32_t rung;
  int32_t token;
  uint32_t fresh; /* the session was trimmed before it */
  uint64_t hash;
} Step;

typedef struct {
  qd_model *model;
  uint64_t low, high; /* budgets are drawn from here */
  uint32_t changes, seed;
} Mover;

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static uint64_t most_allowed, last_allowed; /* the greatest budget since it was last looked at, and the newest */
static uint32_t movers_left = 2;

static long resident(void) {
  long pages = 0, ignored = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%ld %ld", &ignored, &pages) != 2) pages = 0;
  if (file) fclose(file);
  return pages * sysconf(_SC_PAGESIZE);
}

static void must(int good, const char *what, double found, double allowed) {
  if (good) return;
  printf("FAIL %s: found %.0f, allowed %.0f\n", what, found, allowed);
  exit(1);
}

static void ok(qd_status status, const qd_error *error, const char *what) {
  if (status == QD_OK || status == QD_PENDING) return;
  printf("FAIL %s: %s: %s\n", what, qd_status_name(status), error->text);
  exit(1);
}

static uint64_t draw(uint64_t *state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return *state >> 33;
}

static void *move(void *ctx) {
  Mover *m = ctx;
  uint64_t state = m->seed;
  qd_error error = QD_INIT(qd_error);
  for (uint32_t i = 0; i < m->changes; i++) {
    uint64_t budget = m->low + draw(&state) % (m->high - m->low + 1);
    pthread_mutex_lock(&guard);
    ok(qd_set_budget(m->model, budget, &error), &error, "qd_set_budget");
    last_allowed = budget;
    if (budget > most_allowed) most_allowed = budget;
    pthread_mutex_unlock(&guard);
    struct timespec pause = {0, (long)(draw(&state) % 1500000)};
    nanosleep(&pause, NULL);
  }
  pthread_mutex_lock(&guard);
  movers_left--;
  pthread_mutex_unlock(&guard);
  return NULL;
}

static uint64_t hash_of(const float *logits, uint32_t n) {
  uint64_t h = 1469598103934665603u;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, logits + i, 4);
    h = (h ^ bits) * 1099511628211u;
  }
  return h;
}

static int32_t best_of(const float *logits, uint32_t n) {
  uint32_t best = 0;
  for (uint32_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  return (int32_t)best;
}

/* One step at whatever rung there is; returns the next token. */
static int32_t step(qd_session *session, int32_t token, float *logits, uint32_t vocab, Step *out) {
  qd_error error = QD_INIT(qd_error);
  out->fresh = qd_session_length(session) == CONTEXT;
  if (out->fresh) ok(qd_session_trim(session, 0, &error), &error, "qd_session_trim");
  ok(qd_decode(session, &token, 1, logits, &error), &error, "qd_decode");
  qd_step info = QD_INIT(qd_step);
  qd_step_info(session, &info);
  out->rung = info.rung, out->token = token, out->hash = hash_of(logits, vocab);
  return (best_of(logits, vocab) + 1) % (int32_t)vocab; /* one further than the best: text that never settles */
}

static uint32_t generate(qd_session *session, float *logits, uint32_t vocab, long base, Step *steps, long *most_over) {
  int32_t token = 1;
  for (uint32_t n = 0; n < MOST_STEPS; n++) {
    token = step(session, token, logits, vocab, &steps[n]);
    long held = resident() - base;
    pthread_mutex_lock(&guard);
    long over = held - (long)most_allowed;
    most_allowed = last_allowed;
    uint32_t left = movers_left;
    pthread_mutex_unlock(&guard);
    if (over > *most_over) *most_over = over;
    must(over <= 4 * MB, "bytes above the budget", (double)over, 4e6);
    if (left == 0) return n + 1;
  }
  return MOST_STEPS;
}

static void replay(qd_model *model, const Step *steps, uint32_t count, float *logits, uint32_t vocab) {
  qd_error error = QD_INIT(qd_error);
  qd_session *session;
  ok(qd_session_open(model, CONTEXT, &session, &error), &error, "qd_session_open");
  for (uint32_t i = 0; i < count; i++) {
    Step again;
    ok(qd_set_rung(model, steps[i].rung, &error), &error, "qd_set_rung");
    step(session, steps[i].token, logits, vocab, &again);
    must(again.rung == steps[i].rung, "rung of a replayed step", again.rung, steps[i].rung);
    must(again.hash == steps[i].hash, "a replayed step has other logits: step", i, 0);
  }
  qd_session_close(session);
  ok(qd_set_rung(model, 0, &error), &error, "qd_set_rung");
}

/* The greatest difference between what is counted and what is held, over all rungs. */
static long sweep(qd_model *model, qd_session *session, float *logits, uint32_t vocab, long base) {
  qd_error error = QD_INIT(qd_error);
  qd_rung floor = QD_INIT(qd_rung);
  qd_memory memory = QD_INIT(qd_memory);
  qd_memory_now(model, &memory);
  ok(qd_plan(model, memory.floor, &floor, &error), &error, "qd_plan");
  long most = 0;
  for (uint32_t rung = memory.rungs; rung >= floor.index && rung > 0; rung--) {
    Step ignored;
    ok(qd_set_rung(model, rung, &error), &error, "qd_set_rung");
    step(session, 1, logits, vocab, &ignored);
    qd_memory_now(model, &memory);
    long difference = labs(resident() - base - (long)memory.total);
    must(difference <= 2 * MB + (long)memory.total / 100, "counted against held, bytes", (double)difference,
         2e6 + (double)memory.total / 100);
    if (difference > most) most = difference;
  }
  ok(qd_set_rung(model, 0, &error), &error, "qd_set_rung");
  return most;
}

int main(int argc, char **argv) {
  if (argc < 3) return fprintf(stderr, "usage: %s MODEL.qd CHANGES [SEED]\n", argv[0]), 2;
  Step *steps = malloc(MOST_STEPS * sizeof *steps);
  float *logits = malloc(sizeof(float) << 20);
  if (!steps || !logits) return 2;
  long base = resident(), most_over = -(1L << 30);
  qd_error error = QD_INIT(qd_error);
  qd_options options;
  qd_options_init(&options);
  options.threads = 2;
  qd_model *model;
  qd_session *session;
  ok(qd_open(argv[1], &options, &model, &error), &error, "qd_open");
  ok(qd_session_open(model, CONTEXT, &session, &error), &error, "qd_session_open");
  qd_info info = QD_INIT(qd_info);
  qd_model_info(model, &info);
  must(info.vocab <= 1 << 20, "vocabulary", info.vocab, 1 << 20);
  qd_memory memory = QD_INIT(qd_memory);
  qd_memory_now(model, &memory);
  most_allowed = last_allowed = memory.ceiling;
  int32_t prompt[CONTEXT];
  for (int i = 0; i < CONTEXT; i++) prompt[i] = i % (int32_t)info.vocab;
  ok(qd_decode(session, prompt, CONTEXT, NULL, &error), &error, "qd_decode"); /* touches all that was counted */
  uint32_t changes = (uint32_t)strtoul(argv[2], NULL, 10), seed = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 1;
  Mover movers[2];
  pthread_t threads[2];
  for (uint32_t i = 0; i < 2; i++) {
    movers[i] = (Mover){model, memory.floor, memory.ceiling + (uint64_t)(2 * MB), changes / 2, seed + i};
    if (pthread_create(&threads[i], NULL, move, &movers[i])) return 2;
  }
  uint32_t count = generate(session, logits, info.vocab, base, steps, &most_over);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
  ok(qd_set_budget(model, 0, &error), &error, "qd_set_budget");
  long difference = sweep(model, session, logits, info.vocab, base);
  replay(model, steps, count, logits, info.vocab);
  uint32_t seen = 0, lowest = steps[0].rung, highest = 0;
  for (uint32_t i = 0; i < count; i++) {
    seen += i == 0 || steps[i].rung != steps[i - 1].rung;
    if (steps[i].rung < lowest) lowest = steps[i].rung;
    if (steps[i].rung > highest) highest = steps[i].rung;
  }
  qd_session_close(session);
  ok(qd_close(model), &error, "qd_close");
  memset(steps, 0, count * sizeof *steps);
  long left = resident() - base - (long)(count * sizeof *steps);
  must(left <= 4 * MB, "bytes that were not given back", (double)left, 4e6);
  printf(
      "changes %u, steps %u, rungs %u to %u, moved %u times, most above the budget %ld, counted within %ld, left %ld\n",
      changes, count, lowest, highest, seen, most_over, difference, left);
  puts("ok");
  free(logits), free(steps);
  return 0;
}
