// What the kernels share: how they are launched, and reductions over a block. Besides nvcc, the host shim of the tests
// compiles these files with a C++ compiler (tests/csrc/cuda/shim), which is why launches do without <<< >>>.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace ualm::cuda {

inline Launched refused(const char* reason) { return {reason, 0}; }

template <class T>
struct AsDeclared {
  using Type = T;
};

// Puts a kernel on a stream. The error is this launch's own: one that the runtime still remembers is not mistaken for
// it.
template <class... Parameters>
Launched launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, Stream stream,
                typename AsDeclared<Parameters>::Type... arguments) {
#if defined(__CUDACC__)
  void* addresses[] = {&arguments...};
  const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, dim3(threads), addresses, 0,
                                             static_cast<cudaStream_t>(stream));
  return {nullptr, static_cast<int32_t>(error)};
#else
  ualm_shim::launch(kernel, grid, dim3(threads), stream, arguments...);
  return {};
#endif
}

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;
constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

// All blocks consist of whole warps, and reductions are called by every thread of a block. T tells how it is combined
// (`T::combined`, associative and commutative on the values that occur) and how it travels between lanes (`T::from_lane`),
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
