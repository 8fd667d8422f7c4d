/* qdeploy: a quantized network in a number of bytes that may change between two steps. The whole C surface.

   A model file holds its weights as a stack; any prefix of it is a working model, and a longer one is a better one. The
   budget decides how much of the stack is resident. Everything that is held for the model counts: weights, key/value
   caches, activations, scratch, load buffers, thread stacks.

   Every call that can fail returns a status and, where `err` is not NULL, fills *err. Nothing aborts, throws, or keeps an
   error of its own. Handles are opaque. Structs that begin with `size` must have it set to sizeof the struct (the *_init
   functions and the macro QD_INIT do), so that later versions can append fields.

   Thread rules, per function: [any] from any thread at any time; [one] from one thread at a time per handle.
   Sessions of one model may step at the same time, each from a thread of its own. A budget may be moved while other threads
   decode: it takes effect between two steps. */
#ifndef QDEPLOY_H
#define QDEPLOY_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define QD_API __declspec(dllexport)
#else
#define QD_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
template <class Type>
inline Type qd_sized() {
  Type made{};
  made.size = sizeof(Type);
  return made;
}
#define QD_INIT(Type) qd_sized<Type>()
extern "C" {
#else
#define QD_INIT(Type) ((Type){.size = sizeof(Type)})
#endif

/* [cdef] what stands between these two marks is also read by Python's cffi: no preprocessor lines here */
typedef struct qd_model qd_model;
typedef struct qd_session qd_session;
typedef struct qd_engine qd_engine;
typedef struct qd_sequence qd_sequence;

typedef enum {
  QD_OK = 0,
  QD_PENDING = 1,            /* accepted; takes effect after the running step, or when it has been loaded */
  QD_CANCELLED = 2,
  QD_BAD_ARGUMENT = 3,
  QD_BAD_FILE = 4,
  QD_UNSUPPORTED = 5,
  QD_BUDGET_UNDER_FLOOR = 6, /* floor_bytes of the error is the least that works */
  QD_NO_MEMORY = 7,
  QD_IO = 8,
  QD_CONTEXT_FULL = 9,
  QD_BUSY = 10,
  QD_CHECKSUM = 11
} qd_status;

typedef enum { QD_ACTIVATIONS_INT8 = 0, QD_ACTIVATIONS_EXACT = 1 } qd_activations; /* exact: float32, for verification */
typedef enum { QD_KV_F16 = 0, QD_KV_INT8 = 1, QD_KV_F32 = 2 } qd_kv_dtype; /* int8: one scale per head and token */
typedef enum { QD_F32 = 0, QD_I32 = 1, QD_I64 = 2 } qd_dtype;
typedef enum { /* how short the system says memory is; Android's onTrimMemory and Apple's warnings map to these */
  QD_PRESSURE_NONE = 0,     /* the budget counts again */
  QD_PRESSURE_MODERATE = 1, /* three quarters of what is above the floor: TRIM_MEMORY_RUNNING_MODERATE */
  QD_PRESSURE_LOW = 2,      /* half of it: TRIM_MEMORY_RUNNING_LOW, DISPATCH_MEMORYPRESSURE_WARN */
  QD_PRESSURE_CRITICAL = 3  /* the floor: TRIM_MEMORY_RUNNING_CRITICAL, DISPATCH_MEMORYPRESSURE_CRITICAL */
} qd_level;

typedef struct {
  uint32_t size;
  qd_status status;
  uint64_t floor_bytes;
  char text[496]; /* what, where, found, allowed, what to do; one line */
} qd_error;

typedef struct {
  uint32_t size;
  uint32_t threads;   /* 0: one per core */
  uint32_t max_chunk; /* tokens per step of a prompt; 0: 64. A shrink waits for one step at most */
  uint32_t flags;     /* QD_HUGE_PAGES, QD_SMALL_PAGES, QD_NO_VERIFY, QD_NO_GROW */
  uint64_t budget;    /* bytes; 0: everything fits */
  const char *isa;    /* NULL: the best that the machine has, or the environment variable QDEPLOY_ISA */
  qd_activations activations;
  qd_kv_dtype kv_dtype;
} qd_options;

typedef struct { /* where the bytes of a model come from, when it is not a path: app assets, memory, a network */
  void *ctx;
  uint64_t size;
  int64_t (*read)(void *ctx, uint64_t at, void *to, size_t n); /* bytes read, or negative; any thread, several at once */
  void (*close)(void *ctx);                                    /* may be NULL */
} qd_source;

typedef struct {
  uint32_t size;
  uint32_t rungs;   /* how many blocks the stack has */
  uint32_t rung;    /* how many are resident and in use */
  uint32_t pending; /* 1 while a budget has not taken effect */
  uint64_t budget;
  uint64_t total;   /* weights + kv + scratch + fixed: what the process holds for this model now */
  uint64_t weights; /* committed part of the stack, loads in flight included */
  uint64_t kv;
  uint64_t scratch;
  uint64_t fixed;   /* directory, plan, resident tensors, thread stacks, load buffer */
  uint64_t floor;   /* the least budget that works with the sessions that are open */
  uint64_t ceiling; /* the budget at which everything is resident */
  uint64_t peak;
  uint64_t unreturned; /* of total: what the system did not take back, as it is locked */
  uint64_t prompt_cache; /* of kv: blocks that no sequence holds, dropped before any weight is */
} qd_memory;

typedef struct {
  uint32_t size;
  uint32_t index; /* number of blocks resident */
  uint64_t bytes; /* of the stack, up to here */
  double error;   /* predicted loss at this rung, in the unit of the file's metadata */
} qd_rung;

typedef struct {
  uint32_t size;
  uint32_t vocab, context, layers; /* 0 where they do not apply */
  uint32_t outputs, encoder;
  uint32_t matrices, rungs;
  uint64_t parameters, file_bytes, stack_bytes;
  uint8_t content_sha256[32]; /* names what the file holds */
} qd_info;

typedef struct { /* an input or output of qd_run */
  const char *name;
  qd_dtype dtype;
  uint32_t rank;
  int64_t shape[4];
  void *data; /* caller's; may be NULL in qd_io */
  size_t bytes;
} qd_tensor;

typedef struct {
  uint32_t size;
  uint32_t top_k;        /* 0: off */
  float temperature;     /* 0: greedy */
  float top_p;           /* 1: off */
  float min_p;           /* 0: off */
  float repetition_penalty; /* 1: off */
  uint32_t last_n;       /* how many of the given tokens the penalty looks at; 0: all */
  uint64_t seed;
} qd_sampling;

typedef enum { /* why a text ended */
  QD_FINISH_NONE = 0,    /* it did not: the call failed or was cancelled */
  QD_FINISH_STOP = 1,    /* a token that ends texts, or the caller's function */
  QD_FINISH_LENGTH = 2,  /* as many tokens as were asked for */
  QD_FINISH_CONTEXT = 3  /* the session is full */
} qd_finish;

typedef struct { /* of qd_generate; QD_INIT gives the defaults */
  uint32_t size;
  uint32_t tokens;              /* how many at most; 0: as there is room for */
  const qd_sampling *sampling;  /* NULL: greedy */
  int (*token)(void *ctx, int32_t token); /* told of each; ends the text where it returns another number than 0. May be NULL */
  void *ctx;
} qd_generation;

typedef struct {
  uint32_t size;
  uint32_t rung;        /* of the last step */
  uint32_t tokens;      /* in the last step */
  uint64_t nanoseconds; /* that it took */
} qd_step;

typedef struct {
  uint32_t size;
  uint32_t sequences; /* open at once, at most 64; 0: 16 */
  uint32_t rows;      /* tokens of a step, of all sequences; 0: the model's max_chunk, which is the most */
  uint32_t reserved;
  uint64_t kv_bytes;  /* most bytes of the blocks of keys and values, the prompt cache included; 0: as the budget allows */
} qd_engine_options;

typedef struct {
  uint32_t size;
  uint32_t sequences, waiting; /* open; of these the ones with tokens that no step has taken */
  uint32_t rung, tokens;       /* of the last step */
  uint64_t nanoseconds;        /* that it took */
  uint64_t steps;
  uint64_t block_bytes;        /* of 64 tokens */
  uint64_t blocks, cached_blocks; /* that sequences hold or were promised; that only the prompt cache holds */
  uint64_t prompt_tokens, reused_tokens; /* of all sequences so far; reused: from the prompt cache */
} qd_engine_stats;

uint32_t qd_abi_version(void);                                 /* [any] */
const char *qd_version(void);                                  /* [any] */
const char *qd_status_name(qd_status status);                  /* [any] */
size_t qd_isas(const char **names, size_t capacity);           /* best first; returns the count [any] */
void qd_options_init(qd_options *options);                     /* [any] */
void qd_sampling_init(qd_sampling *sampling);                  /* greedy [any] */
void qd_set_log(void (*log)(void *ctx, int level, const char *line), void *ctx); /* before anything else [one] */

qd_status qd_open(const char *path, const qd_options *options, qd_model **out, qd_error *err);            /* [any] */
qd_status qd_open_source(const qd_source *source, const qd_options *options, qd_model **out, qd_error *err); /* [any] */
qd_status qd_close(qd_model *model);                           /* QD_BUSY while sessions live [one] */
qd_status qd_model_info(const qd_model *model, qd_info *out);  /* [any] */
qd_status qd_metadata(const qd_model *model, const char *key, char *to, size_t capacity, size_t *needed); /* [any] */
qd_status qd_verify(qd_model *model, int (*progress)(void *ctx, uint64_t done, uint64_t all), void *ctx,
                    qd_error *err);                            /* every checksum of the file [any] */
const char *qd_isa(const qd_model *model);                     /* [any] */

qd_status qd_set_budget(qd_model *model, uint64_t bytes, qd_error *err);          /* never blocks [any] */
qd_status qd_wait_budget(qd_model *model, uint32_t timeout_ms, qd_error *err);    /* until nothing is pending [any] */
qd_status qd_set_rung(qd_model *model, uint32_t rung, qd_error *err);  /* pins the rung, for replays; waits [one] */
qd_status qd_follow_pressure(qd_model *model, int on, qd_error *err);  /* Linux: cgroup limits and PSI move the budget [any] */
qd_status qd_pressure(qd_model *model, qd_level level, qd_error *err); /* what the system has said; never blocks [any] */
qd_status qd_memory_now(const qd_model *model, qd_memory *out);                   /* [any] */
qd_status qd_plan(const qd_model *model, uint64_t budget, qd_rung *out, qd_error *err); /* what it would give [any] */
qd_status qd_rung_at(const qd_model *model, uint32_t index, qd_rung *out);        /* [any] */

qd_status qd_session_open(qd_model *model, uint32_t context, qd_session **out, qd_error *err); /* charges the whole cache,
                         which is refused beyond the budget, or the machine's memory where there is none [any] */
void qd_session_close(qd_session *session);                    /* [one] */
qd_status qd_session_trim(qd_session *session, uint32_t keep, qd_error *err); /* forget tokens from `keep` on [one] */
uint32_t qd_session_length(const qd_session *session);         /* [any] */
qd_status qd_decode(qd_session *session, const int32_t *tokens, size_t n, float *logits,
                    qd_error *err);                            /* logits of the last token, or NULL [one] */
qd_status qd_sample(qd_session *session, const qd_sampling *sampling, const float *logits, const int32_t *tokens,
                    size_t n, int32_t *out, qd_error *err);    /* tokens: those so far, for the penalty [one] */
size_t qd_stop_tokens(const qd_model *model, int32_t *to, size_t capacity); /* that end a text; returns the count [any] */
qd_status qd_generate(qd_session *session, int32_t *tokens, size_t *n, size_t capacity, float *logits,
                      const qd_generation *how, qd_finish *finish, qd_error *err); /* appends to the n tokens, of which
                         the session holds none yet; logits: room for the vocabulary. Stop tokens are not written [one] */
qd_status qd_step_info(const qd_session *session, qd_step *out);                  /* [one] */
void qd_cancel(qd_session *session);                           /* the running call returns QD_CANCELLED [any] */

/* Many sequences in one step. Sequences are opened with their prompts; a step takes one token of each that decodes, and fills
   its rows with prompts, in the order in which they came; whose logits are ready is sampled, and the token pushed. Sequences
   come and go between two steps. The bits of a sequence depend on its tokens and the rungs of its steps alone. An engine and
   its sequences are used by one thread at a time; the budget may move meanwhile. */
qd_status qd_engine_open(qd_model *model, const qd_engine_options *options, qd_engine **out, qd_error *err); /* [any] */
qd_status qd_engine_close(qd_engine *engine);                  /* QD_BUSY while sequences are open [one] */
qd_status qd_engine_step(qd_engine *engine, qd_sequence **ready, size_t capacity, size_t *n,
                         qd_error *err);                       /* ready: those that have logits since; room for all [one] */
qd_status qd_engine_info(const qd_engine *engine, qd_engine_stats *out); /* [one] */
qd_status qd_sequence_open(qd_engine *engine, const int32_t *tokens, size_t n, uint32_t context, qd_sequence **out,
                           qd_error *err);                     /* context: the most tokens that it will have, whose blocks
                         are promised now: a sequence that runs never lacks memory. QD_BUSY: as many as there may be [one] */
void qd_sequence_close(qd_sequence *sequence);                 /* full blocks of it stay in the prompt cache [one] */
qd_status qd_sequence_push(qd_sequence *sequence, const int32_t *tokens, size_t n, qd_error *err); /* [one] */
const float *qd_sequence_logits(const qd_sequence *sequence);  /* behind its last token; NULL while tokens wait [one] */
qd_status qd_sequence_sample(qd_sequence *sequence, const qd_sampling *sampling, const uint32_t *mask, int32_t *out,
                             qd_error *err);                   /* bit t % 32 of mask[t / 32] allows token t; NULL: all. The
                         penalty looks at the sequence's tokens [one] */
qd_status qd_sequence_fork(qd_sequence *sequence, qd_sequence **out, qd_error *err); /* shares full blocks; what is written
                         to is its own. With the logits [one] */
qd_status qd_sequence_trim(qd_sequence *sequence, uint32_t keep, qd_error *err); /* forget tokens from `keep` on [one] */
uint32_t qd_sequence_length(const qd_sequence *sequence);      /* tokens, those that wait included [one] */
uint32_t qd_sequence_reused(const qd_sequence *sequence);      /* tokens that came from the prompt cache [one] */
qd_status qd_sequence_save(const qd_sequence *sequence, const char *path, qd_error *err);    /* with checksums [one] */
qd_status qd_sequence_restore(qd_engine *engine, const char *path, uint32_t context, qd_sequence **out,
                              qd_error *err);                  /* of the same content and kind of cache [one] */

qd_status qd_run(qd_session *session, const qd_tensor *in, size_t n_in, qd_tensor *out, size_t n_out,
                 qd_error *err);                               /* encoders: sequences of one length, [n, tokens]; what of
                         a shorter one is padding the attention mask says [one] */
qd_status qd_io(const qd_model *model, int output, uint32_t index, qd_tensor *out); /* names and shapes [any] */
/* [cdef] */

/* Pages of the weights: of 2 MiB from a stack of 64 MiB on, where the system gives them. They load and go back several times
   faster, and memory is counted in them. */
enum { QD_HUGE_PAGES = 1, QD_NO_VERIFY = 2, QD_NO_GROW = 4, QD_SMALL_PAGES = 8 };

#ifdef __cplusplus
}
#endif
#endif
