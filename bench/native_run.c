/* One process of the benchmarks of the native runtime: opens a model, prefills, decodes; prints what it took as JSON.

   native_run MODEL.qd THREADS PROMPT TOKENS [BUDGET_BYTES [FLAGS [BEHIND]]]

   Prefill is a prompt of PROMPT tokens (the faster of two), decode the median of TOKENS single ones after a prompt
   of BEHIND tokens (16). first_token_s runs from the start of main to the end of the first step of one token. Memory is that of the
   process. */
#include <qdeploy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static long status_kb(const char *key) {
  char line[256];
  long found = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (!strncmp(line, key, strlen(key))) found = atol(line + strlen(key) + 1);
  if (file) fclose(file);
  return found;
}

static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void must(qd_status status, const qd_error *error, const char *what) {
  if (status == QD_OK) return;
  fprintf(stderr, "%s: %s: %s\n", what, qd_status_name(status), error->text);
  exit(2);
}

int main(int argc, char **argv) {
  if (argc < 5) return fprintf(stderr, "usage: %s MODEL THREADS PROMPT TOKENS [BUDGET [FLAGS [BEHIND]]]\n", argv[0]), 2;
  double start = now();
  qd_error error = QD_INIT(qd_error);
  qd_options options;
  qd_options_init(&options);
  options.threads = (uint32_t)atoi(argv[2]);
  options.budget = argc > 5 ? strtoull(argv[5], NULL, 10) : 0;
  options.flags = argc > 6 ? (uint32_t)atoi(argv[6]) : 0;
  int prompt = atoi(argv[3]), tokens = atoi(argv[4]), behind = argc > 7 ? atoi(argv[7]) : 16;
  int most = prompt > behind ? prompt : behind;
  qd_model *model;
  must(qd_open(argv[1], &options, &model, &error), &error, "open");
  qd_session *session;
  must(qd_session_open(model, (uint32_t)(most + tokens), &session, &error), &error, "session");
  double opened = now();
  qd_info info = QD_INIT(qd_info);
  qd_model_info(model, &info);
  float *logits = malloc(info.vocab * sizeof *logits);
  int32_t *ids = malloc((size_t)(most + 16) * sizeof *ids);
  for (int i = 0; i < most + 16; i++) ids[i] = (int32_t)(1 + 7919u * (unsigned)i % (info.vocab - 1));
  must(qd_decode(session, ids, 1, logits, &error), &error, "first token");
  double first = now(), prefill = 0;
  for (int i = 0; i < 2 && prompt > 0; i++) {
    must(qd_session_trim(session, 0, &error), &error, "trim");
    double begin = now();
    must(qd_decode(session, ids, (size_t)prompt, logits, &error), &error, "prefill");
    double speed = prompt / (now() - begin);
    prefill = speed > prefill ? speed : prefill;
  }
  double *taken = malloc((size_t)(tokens + 1) * sizeof *taken);
  if (tokens > 0) {
    must(qd_session_trim(session, 0, &error), &error, "trim");
    must(qd_decode(session, ids, (size_t)behind, NULL, &error), &error, "prompt");
  }
  for (int i = 0; i < tokens; i++) {
    double begin = now();
    must(qd_decode(session, ids + i % 16, 1, logits, &error), &error, "decode");
    taken[i] = now() - begin;
  }
  if (tokens > 0) qsort(taken, (size_t)tokens, sizeof *taken, by_size);
  qd_memory memory = QD_INIT(qd_memory);
  qd_memory_now(model, &memory);
  printf("{\"isa\": \"%s\", \"open_s\": %.4f, \"first_token_s\": %.4f, \"prefill\": %.2f, \"decode\": %.3f, ",
         qd_isa(model), opened - start, first - start, prefill, tokens > 0 ? 1 / taken[tokens / 2] : 0.0);
  printf(
      "\"peak_rss\": %ld, \"rss\": %ld, \"total\": %llu, \"weights\": %llu, \"peak\": %llu, \"floor\": %llu, \"rung\": "
      "%u}\n",
      status_kb("VmHWM:") * 1024, status_kb("VmRSS:") * 1024, (unsigned long long)memory.total,
      (unsigned long long)memory.weights, (unsigned long long)memory.peak, (unsigned long long)memory.floor,
      memory.rung);
  free(taken), free(ids), free(logits);
  qd_session_close(session);
  return (int)qd_close(model);
}
