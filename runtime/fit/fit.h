/* Fitting plane ladders: the loops of qdeploy/quantize/ladder. No state, no threads, no allocation by the library that
 * outlives a call; rows are independent, so that callers share them out over threads as they like.
 *
 * A weight [rows][columns] has one code of P = `levels` bits per element. Level l (1 .. P) reads its top l bits as the
 * middle of what is left, times the level's own scale per row and group:
 *
 *     W_l[r][k] = scales[r][k / group][l - 1] * (code[r][k] with its last P - l bits at their middle, - (2^P - 1) / 2)
 *
 * `columns` is a multiple of `group` and of `block`; columns that only fill up have a row of zeros in H.
 */
#ifndef QDEPLOY_FIT_H
#define QDEPLOY_FIT_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* [cdef] */
typedef struct {
  uint32_t rows, columns, group, levels;
  const float *const *targets; /* [levels] -> [rows][columns]: what each level stands for */
  const float *weights;        /* [levels]: what a squared error of the level costs */
  float *scales;               /* [rows][columns / group][levels] */
  uint8_t *codes;              /* [rows][columns] */
} qdf_rows;

/* Blocks of a matrix as the loops read them: floats that rows [at, at + block) from column `from` on take. */
size_t qdf_packed(uint32_t columns, uint32_t block, uint32_t from);
void qdf_pack(uint32_t columns, uint32_t block, uint32_t at, uint32_t from, const float *matrix, float *packed);

/* One pass over the columns in `order`: each is rounded for all levels at once, and what is left is taken out of the
 * columns behind it along the rows of `factor`, upper triangular in that order with factor' factor = H^-1.
 * packed[b]: rows [b * block, (b + 1) * block) of the factor from column (b + 1) * block on. 0, or 1 for no memory. */
int qdf_round(const qdf_rows *rows, uint32_t block, const float *factor, const float *const *packed,
              const int32_t *order);
/* `sweeps` of coordinate descent: scales of a group, then the codes of its columns, group after group.
 * packed[g]: rows of group g of H, all columns. errors: [rows][levels] (W - W_l) H (W - W_l)'. */
int qdf_descend(const qdf_rows *rows, const float *moment, const float *const *packed, uint32_t sweeps, double *errors);
/* All scales of a row and level at once, for given codes: the minimum of the error plus `ridge` times its curvature
 * towards the present scales. */
int qdf_refit(const qdf_rows *rows, const float *const *packed, float ridge);
/* The instruction set that the loops use here. */
const char *qdf_isa(void);
/* [cdef] */

#ifdef __cplusplus
}
#endif
#endif
