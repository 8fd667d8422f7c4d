// What a set of kernels offers to the walker. One table per instruction set; all give the same bits.
//
// Rules that make that so: integer sums are exact in int32; floats are one lane per row, groups in order, a product and
// a sum are two roundings (no fused multiply-add); every horizontal sum of floats goes over 16 lanes (lane = index mod
// 16), then over the lanes in the order ((0+8)+(4+12))+((2+10)+(6+14)) + ... as reduce16() in portable.inl defines it.
// exp and the like are our own polynomials there.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../format.h"

namespace qd {

// Activations as kernels take them: mapped to the padded columns of a matrix, for `tokens` tokens.
// group = gcd(term group, 128); groups = ceil(columns / group). Rows of x are `stride` elements apart, a multiple of
// 128, zero behind `columns`.
struct Activations {
  uint32_t tokens, columns, group, groups, stride;
  const float* x;            // [tokens][stride]
  const int8_t* q;           // [groups][tokens][group] rint(x / scale), within -127 .. 127
  const float* scale;        // [groups][tokens] max|x| / 127 (0 where x is 0)
  const int32_t* sum;        // [groups][tokens] of q
  const float* fsum;         // [groups][tokens] of x, reduce16 order
  const int8_t* tables;  // one token only: [columns / 16][4][16]: entry i of table q of unit u: sum of +-x over columns
                         // 16 u + 4 q + b, + where bit b of i is set, over table_scale, rounded
  const float* table_scale;  // [groups]
};

// A term with what is resident of it.
struct TermView {
  const format::Term* term;
  const uint8_t* base;                      // the block with the params: plane 0, of a ladder the last resident plane
  const uint8_t* codes[format::kMaxPlanes]; // of the resident planes
  uint32_t planes;                          // how many are resident, at least 1
  uint32_t row_blocks, columns;             // columns: padded
  const float* table;                       // of the kinds that have one: resident float values
  const int8_t* itable;                     // the same, rounded
};

// Which part of Activations a kernel reads besides x.
enum class Need : uint32_t { kNothing = 0, kInt8 = 1, kTables = 2 };

// y[token * y_stride + row] += W x, rows [16 rb0, 16 rb1).
using MatVec = void (*)(const TermView&, const Activations&, const uint8_t* scratch, float* y, size_t y_stride,
                        uint32_t rb0, uint32_t rb1);
// Per term and step, before the rows are shared out; writes `scratch` (tables of a BitStack block, of a codebook).
using Prepare = void (*)(const TermView&, const Activations&, uint8_t* scratch);
using ScratchBytes = uint64_t (*)(const format::Term&, uint32_t columns, uint32_t tokens);
// out[0 .. columns) += a row as floats, in the padded columns' order. Exact.
using DecodeRow = void (*)(const TermView&, uint32_t row, float* out);

struct Kind {            // one per TermKind; made by its file in terms/
  Need one_need, many_need;
  MatVec one;            // tokens == 1
  MatVec many;           // any number of tokens
  MatVec exact;          // float32 activations and weights, any number of tokens; portable
  DecodeRow decode_row;
  Prepare prepare;       // nullptr where nothing is to be prepared
  ScratchBytes scratch;  // nullptr likewise
};

// out[r][c] = sum over k of a[r][k] b[k][c], for `columns` (a multiple of 16) columns; with `keep`, out[r][c] * keep[r] is
// added. Integers go in pairs: b is [depth / 2][columns][2], depth is even, and no sum may leave int32.
struct TileProduct {
  const void* a;  // [rows][a_stride]
  size_t a_stride;
  const void* b;  // [depth][b_stride]
  size_t b_stride;
  uint32_t rows, depth, columns;
  const float* keep;  // [rows], or null; of floats only
  void* out;          // [rows][out_stride]
  size_t out_stride;
};

struct Kernels {
  const char* name;
  Kind kinds[format::kTermKinds];
  // ---- activations. Each takes one token of `columns` (padded; x is zero from there to the next multiple of 128).
  // `quantize` writes one of `tokens` tokens: the pointers are those of its first group.
  void (*quantize)(const float* x, uint32_t columns, uint32_t group, uint32_t tokens, int8_t* q, float* scale,
                   int32_t* sum, float* fsum);
  void (*make_tables)(const float* x, uint32_t columns, uint32_t group, int8_t* tables, float* table_scale,
                      float* fsum);
  // out[j] = map[j] < 0 ? 0 : x[map[j]]
  void (*gather)(const float* x, const int32_t* map, uint32_t columns, float* out);
  // ---- vectors
  void (*rms_norm)(const float* x, const float* weight, float epsilon, uint32_t n, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float epsilon, uint32_t n, float* out);
  void (*add)(const float* a, const float* b, uint32_t n, float* out);
  void (*multiply)(const float* a, const float* b, uint32_t n, float* out);
  void (*activate)(uint32_t activation, const float* x, uint32_t n, float* out);
  void (*gate)(uint32_t activation, const float* x, const float* y, uint32_t n, float* out);  // act(x) * y
  void (*scale_rows)(float* y, const float* scale, const float* bias, uint32_t n);  // y * scale + bias, either nullable
  void (*add_numbers)(uint32_t kind, const uint8_t* numbers, size_t first, uint32_t n, float* y);  // n: a multiple of 16
  void (*softmax)(float* x, uint32_t n);                                            // in place
  float (*l2_norm)(const float* x, uint32_t n);
  // ---- attention, in tiles of 64 keys; portable_attention.inl says in which order sums go
  void (*rotate)(float* x, const float* cos, const float* sin, uint32_t rotary_dim, int interleaved);  // one head
  void (*store_f16)(const float* x, uint32_t n, uint16_t* out);
  void (*store_int8)(const float* x, uint32_t n, int8_t* out, float* scale);
  void (*product_f32)(const TileProduct&);
  void (*product_f16)(const TileProduct&);   // b: halves
  void (*product_int8)(const TileProduct&);  // a: int16; b: int8, in pairs; out: int32
  void (*product_int16)(const TileProduct&); // the same of a b that widen_int8 made
  void (*widen_f16)(const uint16_t* x, uint32_t n, float* out);  // n: a multiple of 16
  void (*widen_int8)(const int8_t* x, uint32_t n, int16_t* out);
  // x as integers of at most `levels`, which is at most 32767; returns what one of them counts.
  float (*round_int16)(const float* x, uint32_t n, float levels, int16_t* out);
  // Products of one query to scores: times a factor, and times key_scale [64].
  void (*scale_scores)(float* scores, float factor);
  void (*float_scores)(const int32_t* sums, const float* key_scale, float factor, float* scores);
  // Scores of [begin, end) to exp(score - greatest so far), of the others to 0; `most` and `total` of the query go on.
  // Returns what is to be multiplied into what the query has of earlier tiles.
  float (*tile_shares)(float* scores, uint32_t begin, uint32_t end, float* most, float* total);
  // What is known of one query after some keys, and after others: of both.
  void (*join_shares)(float* values, float* most, float* total, const float* other, float other_most, float other_total,
                      uint32_t n);
  // to = to * keep + x * factor
  void (*add_ints)(float* to, float keep, const int32_t* x, float factor, uint32_t n);
};

// The tables of this build, best first, whether this machine can run them or not; ends with a null pointer.
extern const Kernels* const kAllKernels[];
// Whether this machine (and its operating system) can run a table.
bool runs_here(const Kernels& kernels);
// The best that runs here, or the one named; null where there is none of that name that runs here.
const Kernels* select_kernels(const char* name);

}  // namespace qd
