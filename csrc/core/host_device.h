// What the headers of core/ share: they compile as plain C++17 and as CUDA device code, and must compute the same bits
// in both. So: no std containers, no allocation, no recursion, no libm; scratch memory comes from the caller.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define UALM_HD __host__ __device__
#else
#define UALM_HD
#endif

#if defined(_MSC_VER) && !defined(__clang__) && !defined(__CUDACC__)
#pragma fp_contract(off)  // MSVC before 2022 contracts under /fp:precise and has no flag against it
#endif

namespace ualm {

// Float operations that round once and that no compiler may fuse. nvcc contracts a*b+c whatever the host flags say; its
// intrinsics are exempt. On the host the build turns contraction off.
UALM_HD inline float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

UALM_HD inline float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

UALM_HD inline float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

UALM_HD inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

UALM_HD inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace ualm
