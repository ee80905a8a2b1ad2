// Block quantisation of a weight matrix at export: the formats and their layout are those of export/formats/blocks.py.
#pragma once

#include <cstdint>

namespace ualm {

struct BlockFormat {
  int64_t block;          // inputs that share a scale
  const float* divisors;  // what a block's largest magnitude is divided by: the best scale of them is kept
  int64_t divisor_count;
  float low, high;  // smallest and largest whole number
};

// matrix[inputs, outputs], row by row -> whole[inputs, outputs] and scales[inputs / block, outputs]; inputs must be a
// multiple of block. A scale is a positive float16 number, widened; of several divisors the one with the least squared
// error is taken, weighted by importance[inputs] unless that is null, the first of equals. `threads` share the columns.
void quantize_blocks(const float* matrix, int64_t inputs, int64_t outputs, const BlockFormat& format,
                     const float* importance, int8_t* whole, float* scales, int threads);

}  // namespace ualm
