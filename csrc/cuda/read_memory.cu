// How fast memory is read: the sum of all words of a buffer. Nothing is written but one addition a block.
#include "cuda/device.h"

namespace ualm::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 4;  // of a thread, on their way at once

struct alignas(16) Words {
  unsigned long long low, high;
};

struct Sum {
  unsigned long long value;
  static __device__ Sum combined(Sum a, Sum b) { return {a.value + b.value}; }
  static __device__ Sum from_lane(Sum mine, int distance) {
    return {__shfl_xor_sync(kWholeWarp, mine.value, distance)};
  }
};

__global__ void __launch_bounds__(kThreads)
    read_kernel(const Words* data, int64_t count, unsigned long long* total) {
  __shared__ Sum of_warps[kMaxWarps];
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  unsigned long long sum = 0;
  for (; at + (kLoads - 1) * stride < count; at += kLoads * stride) {
    Words loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) loaded[i] = data[at + i * stride];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum += loaded[i].low + loaded[i].high;
  }
  for (; at < count; at += stride) sum += data[at].low + data[at].high;
  const Sum found = reduce_block(Sum{sum}, of_warps);
  if (threadIdx.x == 0) atomicAdd(total, found.value);
}

}  // namespace

Launched launch_read(const ReadArgs& args, Stream stream) {
  if (args.data == nullptr || args.total == nullptr) return refused("data, total: must not be null");
  if (reinterpret_cast<uintptr_t>(args.data) % sizeof(Words) != 0) return refused("data: must be aligned to 16 bytes");
  if (args.bytes < 0 || args.bytes % static_cast<int64_t>(sizeof(Words)) != 0) {
    return refused("bytes: must be a multiple of 16");
  }
  if (args.blocks < 1 || args.blocks > 0xFFFF) return refused("blocks: must be 1 to 65535");
  return launch(read_kernel, dim3(static_cast<unsigned>(args.blocks)), kThreads, stream,
                static_cast<const Words*>(args.data), args.bytes / static_cast<int64_t>(sizeof(Words)),
                reinterpret_cast<unsigned long long*>(args.total));
}

}  // namespace ualm::cuda
