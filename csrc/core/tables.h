// A model's tables, and the two sums of their rows that end a frame: the next input embedding and the codec latent. Both
// add in stream order, so every device gets the same bits. `first` and `stride` share a row between threads; one thread
// takes 0 and 1.
#pragma once

#include "core/layout.h"
#include "core/numbers.h"

namespace ualm {

// Tables of a model in its device's memory, row-major; read in place.
struct Tables {
  const void* embedding;  // [vocabulary, hidden], float32 or bfloat16
  Number embedding_number;
  const float* rvq;       // [8, codebook_size, latent]: codebooks already projected into the codec's latent space
  const float* rvq_bias;  // [latent]
  int64_t vocabulary;
  int64_t hidden;
  int64_t latent;
};

template <class T>
UALM_HD inline void add_row(float* out, const T* row, int64_t width, int64_t first, int64_t stride) {
  for (int64_t i = first; i < width; i += stride) out[i] = add(out[i], widen(row[i]));
}

// An embedding table [vocabulary, width] as it is stored; T is float or BFloat16.
// out[width] = sum over streams 0 .. streams-1 of table[ids[stream]], table [vocabulary, width]. Id 0 adds nothing.
template <class T>
UALM_HD inline void sum_embeddings(const T* table, int64_t width, const int32_t* ids, int streams, float* out,
                                   int64_t first, int64_t stride) {
  for (int64_t i = first; i < width; i += stride) out[i] = 0.0f;
  for (int stream = 0; stream < streams; ++stream) {
    if (ids[stream] != 0) add_row(out, table + ids[stream] * width, width, first, stride);
  }
}

// Number i of that sum, for a thread that keeps it in a register; the same additions in the same order.
template <class T>
UALM_HD inline float embedding_sum(const T* table, int64_t width, const int32_t* ids, int streams, int64_t i) {
  float sum = 0.0f;
  for (int stream = 0; stream < streams; ++stream) {
    if (ids[stream] != 0) sum = add(sum, widen(table[ids[stream] * width + i]));
  }
  return sum;
}

// out[width] = bias + sum over streams of rvq_table[stream][codes[stream]], rvq_table [8, codebook_size, width].
UALM_HD inline void sum_codes(const float* rvq_table, const float* rvq_bias, int64_t codebook_size, int64_t width,
                              const int32_t* codes, float* out, int64_t first, int64_t stride) {
  for (int64_t i = first; i < width; i += stride) out[i] = rvq_bias[i];
  for (int stream = 0; stream < kStreams; ++stream) {
    add_row(out, rvq_table + (stream * codebook_size + codes[stream]) * width, width, first, stride);
  }
}

// Number i of that sum.
UALM_HD inline float code_sum(const float* rvq_table, const float* rvq_bias, int64_t codebook_size, int64_t width,
                              const int32_t* codes, int64_t i) {
  float sum = rvq_bias[i];
  for (int stream = 0; stream < kStreams; ++stream) {
    sum = add(sum, rvq_table[(stream * codebook_size + codes[stream]) * width + i]);
  }
  return sum;
}

}  // namespace ualm
