// Sums of table rows outside a frame: the embeddings of a prompt.
#include "core/tables.h"
#include "cuda/device.h"

namespace ualm::cuda {

namespace {

constexpr int kThreads = 256;

// blockIdx.x: row; the threads share its columns.
template <class T>
__global__ void __launch_bounds__(kThreads)
    embed_rows_kernel(Tables tables, const int32_t* rows, int32_t copies, float* out) {
  const int32_t* const ids = rows + int64_t{blockIdx.x} * kStreams;
  float* const first = out + int64_t{blockIdx.x} * copies * tables.hidden;
  for (int64_t i = threadIdx.x; i < tables.hidden; i += blockDim.x) {
    const float sum = embedding_sum(static_cast<const T*>(tables.embedding), tables.hidden, ids, kStreams, i);
    for (int32_t copy = 0; copy < copies; ++copy) first[copy * tables.hidden + i] = sum;
  }
}

}  // namespace

Launched launch_embed_rows(const Tables& tables, const int32_t* rows, int64_t count, int32_t copies, float* out,
                           Stream stream) {
  if (tables.embedding == nullptr || rows == nullptr || out == nullptr) {
    return refused("embedding, rows, out: must not be null");
  }
  if (tables.hidden < 1 || count < 0 || count > 0x7FFFFFFF) return refused("hidden, count: out of range");
  if (copies < 1 || copies > 2) return refused("copies: must be 1 or 2");
  if (count == 0) return {};
  const dim3 grid(static_cast<unsigned>(count));
  if (tables.embedding_number == Number::kFloat32) {
    return launch(embed_rows_kernel<float>, grid, kThreads, stream, tables, rows, copies, out);
  } else if (tables.embedding_number == Number::kBFloat16) {
    return launch(embed_rows_kernel<BFloat16>, grid, kThreads, stream, tables, rows, copies, out);
  } else {
    return refused("embedding: must be float32 or bfloat16");
  }
}

}  // namespace ualm::cuda
