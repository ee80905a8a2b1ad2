// Sums of table rows outside a frame, and latents on their way to the codec.
#include "core/numbers.h"
#include "cuda/device.h"

namespace ualm::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;  // a block of the transposing gather moves kTile x kTile numbers

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

__global__ void __launch_bounds__(kThreads) gather_frames_kernel(GatherArgs args) {
  const int64_t count = int64_t{args.count} * args.latent;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < count; at += int64_t{gridDim.x} * blockDim.x) {
    const int64_t frame = args.first + at / args.latent;
    args.out[at] = args.ring[frame % args.capacity * args.latent + at % args.latent];
  }
}

// blockIdx.x, y: tile of frames, tile of numbers. kTile x 8 threads; through shared memory, so that both sides are
// read and written in runs (the tile is one wider, so that a column does not fall on one bank).
__global__ void __launch_bounds__(kThreads) gather_columns_kernel(GatherArgs args) {
  __shared__ float tile[kTile][kTile + 1];
  const int lane = static_cast<int>(threadIdx.x) % kTile;
  const int line = static_cast<int>(threadIdx.x) / kTile;
  const int64_t first_frame = int64_t{blockIdx.x} * kTile;
  const int64_t first_number = int64_t{blockIdx.y} * kTile;
  for (int row = line; row < kTile; row += kThreads / kTile) {
    const int64_t frame = first_frame + row;
    const int64_t number = first_number + lane;
    if (frame < args.count && number < args.latent) {
      tile[row][lane] = args.ring[(args.first + frame) % args.capacity * args.latent + number];
    }
  }
  __syncthreads();
  for (int row = line; row < kTile; row += kThreads / kTile) {
    const int64_t frame = first_frame + lane;
    const int64_t number = first_number + row;
    if (frame < args.count && number < args.latent) args.out[number * args.count + frame] = tile[lane][row];
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

Launched launch_gather_latents(const GatherArgs& args, Stream stream) {
  if (args.ring == nullptr || args.out == nullptr) return refused("ring, out: must not be null");
  if (args.capacity < 1 || args.latent < 1) return refused("capacity, latent: must be at least 1");
  if (args.first < 0 || args.count < 0) return refused("first, count: must not be negative");
  if (args.count > args.capacity) return refused("count: the ring holds no more frames than its capacity");
  if (args.count == 0) return {};
  if (args.frames_last) {
    const dim3 grid(static_cast<unsigned>((args.count + kTile - 1) / kTile),
                    static_cast<unsigned>((args.latent + kTile - 1) / kTile));
    return launch(gather_columns_kernel, grid, kThreads, stream, args);
  } else {
    const int64_t blocks = (int64_t{args.count} * args.latent + kThreads - 1) / kThreads;
    return launch(gather_frames_kernel, dim3(static_cast<unsigned>(blocks < 256 ? blocks : 256)), kThreads, stream,
                  args);
  }
}

}  // namespace ualm::cuda
