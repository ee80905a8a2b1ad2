// The formats that numbers are stored in. Narrow floating-point numbers are held as their bits: float16 (IEEE binary16)
// and bfloat16, widened exactly and narrowed to the nearest, ties to even. Of float16 a GPU has instructions, which give
// the same bits; CUDA's own headers for them would take as long to compile as a kernel.
#pragma once

#include "core/host_device.h"

namespace ualm {

enum class Number : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kInt8Blocks = 3 };

struct Float16 {
  uint16_t bits;
};

// The upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

UALM_HD inline float widen(float value) { return value; }

UALM_HD inline float widen(BFloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

UALM_HD inline float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = (value.bits >> 10) & 31u;
  const uint32_t fraction = value.bits & 0x3FFu;
  if (exponent == 31) return float_of(sign | 0x7F800000u | fraction << 13);
  if (exponent == 0) return float_of(sign | bits_of(multiply(static_cast<float>(fraction), 0x1p-24f)));
  return float_of(sign | (exponent + 112) << 23 | fraction << 13);
#endif
}

template <class T>
UALM_HD inline T narrow(float value);

template <>
UALM_HD inline float narrow<float>(float value) {
  return value;
}

template <>
UALM_HD inline BFloat16 narrow<BFloat16>(float value) {
  const uint32_t bits = bits_of(value);
  if (value != value) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

template <>
UALM_HD inline Float16 narrow<Float16>(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return {bits};
#else
  const uint32_t sign = bits_of(value) >> 31 << 15;
  const uint32_t bits = bits_of(value) & 0x7FFFFFFFu;
  if (value != value) return {0x7FFF};
  if (bits >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00)};  // 65520 and more round to infinity
  if (bits < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the subnormal's bits, rounded, at the end of the fraction
    return {static_cast<uint16_t>(sign | (bits_of(add(float_of(bits), 0.5f)) - bits_of(0.5f)))};
  }
  return {static_cast<uint16_t>(sign | (((bits + 0xFFF + ((bits >> 13) & 1)) >> 13) - (112u << 10)))};
#endif
}

}  // namespace ualm
