// A matrix times some rows of activations, which are prepared as its terms read them.
#pragma once
#include "walker.h"

namespace qd {

struct Product {
  const format::Matrix& matrix;
  const float* x;         // row t is x + (picks ? picks[t] : t) * stride
  uint64_t stride;
  const uint32_t* picks;
  uint32_t tokens;        // at most kLinearTokens
  uint64_t key;           // products of one key, one after the other, share what was prepared; 0: of none
};

// Tokens [first, first + tokens) of a value.
Product product_of(const Step& s, const format::Matrix& matrix, uint32_t value, uint32_t first, uint32_t tokens);
// y[t * y_stride + row] = W x + bias, for the rows rounded up to 16.
void multiply(Step& s, const Product& in, const float* bias, float* y, size_t y_stride);

}  // namespace qd
