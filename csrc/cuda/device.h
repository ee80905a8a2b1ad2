// What the kernels share: how they are launched, and reductions over a block. Besides nvcc, the host shim of the tests
// compiles these files with a C++ compiler (tests/cuda/shim), which is why launches go through one macro.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

#if defined(__CUDACC__)
#define UALM_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#define UALM_LAUNCH(kernel, grid, block, stream, ...) ualm_shim::launch(kernel, grid, block, stream, __VA_ARGS__)
#endif

namespace ualm::cuda {

inline Launched refused(const char* reason) { return {reason, 0}; }

// The error of the launch just made, if any. Errors of work launched before stay for whoever synchronises.
inline Launched launched() { return {nullptr, static_cast<int32_t>(cudaPeekAtLastError())}; }

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

// All blocks consist of whole warps, and reductions are called by every thread of a block. T tells how it is combined
// (`T::combined`, associative and commutative on the values at hand) and how it travels between lanes (`T::from_lane`),
// so that the result does not depend on which thread holds what.
template <class T>
__device__ inline T reduce_warp(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value = T::combined(value, T::from_lane(value, distance));
  return value;
}

// Every thread gets the result. `shared` has room for one T a warp; it may be used again at once.
template <class T>
__device__ inline T reduce_block(T value, T* shared) {
  value = reduce_warp(value);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = shared[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) total = T::combined(total, shared[warp]);
  __syncthreads();
  return total;
}

}  // namespace ualm::cuda
