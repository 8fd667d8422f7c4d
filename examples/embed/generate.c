/* Embeds the runtime: continues a row of token ids inside a memory budget, and halves the budget on the way.

   generate MODEL.qd BUDGET_BYTES COUNT ID [ID ...]      prints the ids that follow, one line, and why they ended */
#include <qdeploy.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char *what, const qd_error *error) {
  fprintf(stderr, "%s: %s: %s\n", what, qd_status_name(error->status), error->text);
  return 2;
}

struct writing {
  qd_model *model;
  size_t left; /* tokens until the budget falls to as little as the model can live in */
};

static int written(void *ctx, int32_t token) {
  struct writing *w = ctx;
  printf("%d ", token);
  if (w->left-- == 0) { /* takes effect before the next token */
    qd_error error = QD_INIT(qd_error);
    qd_memory memory = QD_INIT(qd_memory);
    qd_memory_now(w->model, &memory);
    if (qd_set_budget(w->model, memory.floor, &error) > QD_PENDING) return fail("budget", &error);
  }
  return 0; /* go on */
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
  struct writing writing = {model, count / 2};
  qd_generation how = QD_INIT(qd_generation);
  how.token = written;
  how.ctx = &writing;
  qd_finish finish;
  if (qd_generate(session, ids, &n, n + count, logits, &how, &finish, &error)) return fail("generate", &error);
  static const char *const reasons[] = {"", "a stop token", "as many tokens as were asked for", "a full context"};
  printf("\n");
  fprintf(stderr, "ended by %s\n", reasons[finish]);
  free(ids);
  free(logits);
  qd_session_close(session);
  return qd_close(model);
}
