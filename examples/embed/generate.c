/* Embeds the runtime: continues a row of token ids inside a memory budget, and halves the budget on the way.

   generate MODEL.qd BUDGET_BYTES COUNT ID [ID ...]      prints the ids that follow, one line */
#include <qdeploy.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char *what, const qd_error *error) {
  fprintf(stderr, "%s: %s: %s\n", what, qd_status_name(error->status), error->text);
  return 2;
}

int main(int argc, char **argv) {
  if (argc < 5) return fprintf(stderr, "usage: %s MODEL.qd BUDGET COUNT ID [ID ...]\n", argv[0]), 2;
  qd_error error = QD_INIT(qd_error);
  qd_options options;
  qd_options_init(&options);
  options.budget = strtoull(argv[2], NULL, 10);
  qd_model *model;
  if (qd_open(argv[1], &options, &model, &error)) return fail("open", &error);
  qd_info info = QD_INIT(qd_info);
  qd_model_info(model, &info);
  qd_session *session;
  if (qd_session_open(model, 256, &session, &error)) return fail("session", &error);

  size_t n = (size_t)argc - 4, count = strtoul(argv[3], NULL, 10);
  int32_t *ids = malloc((n + count) * sizeof *ids);
  float *logits = malloc(info.vocab * sizeof *logits);
  for (size_t i = 0; i < n; i++) ids[i] = (int32_t)strtol(argv[4 + i], NULL, 10);
  qd_sampling greedy;
  qd_sampling_init(&greedy);
  size_t done = 0;
  for (size_t i = 0; i < count; i++) {
    if (qd_decode(session, ids + done, n - done, logits, &error)) return fail("decode", &error);
    done = n;
    if (qd_sample(session, &greedy, logits, ids, n, &ids[n], &error)) return fail("sample", &error);
    printf(i + 1 < count ? "%d " : "%d\n", ids[n++]);
    if (i == count / 2) { /* before the next token: as little as the model can live in */
      qd_memory memory = QD_INIT(qd_memory);
      qd_memory_now(model, &memory);
      if (qd_set_budget(model, memory.floor, &error) > QD_PENDING) return fail("budget", &error);
    }
  }
  free(ids);
  free(logits);
  qd_session_close(session);
  return qd_close(model);
}
