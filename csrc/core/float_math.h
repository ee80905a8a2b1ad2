// Natural log and exp in float32 from our own polynomials, so that a CPU and a GPU draw the same token from the same
// logits (their libm differ in the last bit). Both stay within 1 ulp of the exact value: tests/csrc/cpu/test_float_math.py.
#pragma once

#include "core/host_device.h"

namespace ualm {

constexpr uint32_t kInfinityBits = 0x7F800000u;

UALM_HD inline float positive_infinity() { return float_of(kInfinityBits); }

// Logical "x is a finite number or -inf", false for NaN and +inf.
UALM_HD inline bool below_positive_infinity(float x) { return x < positive_infinity(); }

// log((1 + f) * 2^exponent) for f in [sqrt(1/2) - 1, sqrt(2) - 1].
// log(1 + f) = f - f^2/2 + f^3 Q(f), Q a weighted minimax fit of degree 8 (relative error of the sum 8e-10).
UALM_HD inline float log_reduced(float f, int exponent) {
  const float square = multiply(f, f);
  float q = 0.0674664006f;
  q = add(multiply(q, f), -0.116756521f);
  q = add(multiply(q, f), 0.11888162f);
  q = add(multiply(q, f), -0.124055892f);
  q = add(multiply(q, f), 0.142195523f);
  q = add(multiply(q, f), -0.166679963f);
  q = add(multiply(q, f), 0.200021192f);
  q = add(multiply(q, f), -0.250000089f);
  q = add(multiply(q, f), 0.333333135f);
  // log 2 in two parts: the high one has few enough bits that its product with any exponent is exact.
  const float scale = static_cast<float>(exponent);
  const float high = multiply(scale, 0.693359375f);
  const float low = multiply(scale, -2.12194440e-4f);
  float tail = multiply(multiply(q, f), square);
  tail = add(tail, low);
  tail = add(tail, multiply(-0.5f, square));
  return add(high, add(f, tail));
}

// log(mantissa * 2^exponent) for an integer 0 < mantissa < 2^25. The subtraction of 1 is exact, also where the number
// itself would not fit a float (25 bits): that is what keeps -log(u) accurate beside u = 1.
UALM_HD inline float log_scaled(uint32_t mantissa, int exponent) {
  while (mantissa < (1u << 24)) {
    mantissa <<= 1;
    --exponent;
  }
  constexpr uint32_t kSqrt2 = 23726566;  // floor(sqrt(2) * 2^24)
  if (mantissa <= kSqrt2) {
    return log_reduced(multiply(static_cast<float>(mantissa - (1u << 24)), 0x1p-24f), exponent + 24);
  }
  return log_reduced(multiply(-static_cast<float>((1u << 25) - mantissa), 0x1p-25f), exponent + 25);
}

// Natural logarithm: -inf at 0, NaN below 0 and at NaN, +inf at +inf; subnormals are exact inputs.
UALM_HD inline float log_f32(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits << 1) == 0) return -positive_infinity();
  if (bits > kInfinityBits) return float_of(0x7FC00000u);  // negative or NaN
  if (bits == kInfinityBits) return x;
  const uint32_t field = bits >> 23;
  const uint32_t fraction = bits & 0x7FFFFFu;
  if (field == 0) return log_scaled(fraction, -149);
  return log_scaled(fraction | 0x800000u, static_cast<int>(field) - 150);
}

// Exponential: 0 below about -104, +inf above 88.72, NaN at NaN; the result may be subnormal.
// exp(x) = 2^n exp(r), |r| <= log(2)/2, exp(r) = 1 + r + r^2 P(r), P a weighted minimax fit of degree 5.
UALM_HD inline float exp_f32(float x) {
  if (x != x) return x;
  if (x > 89.0f) return positive_infinity();
  if (x < -104.0f) return 0.0f;
  const float scaled = multiply(x, 1.44269504f);
  const int n = static_cast<int>(add(scaled, scaled < 0.0f ? -0.5f : 0.5f));
  const float steps = static_cast<float>(n);
  float r = add(x, multiply(steps, -0.693359375f));
  r = add(r, multiply(steps, 2.12194440e-4f));
  float p = 0.000197902438f;
  p = add(multiply(p, r), 0.00139447581f);
  p = add(multiply(p, r), 0.00833349768f);
  p = add(multiply(p, r), 0.0416662954f);
  p = add(multiply(p, r), 0.166666657f);
  p = add(multiply(p, r), 0.5f);
  const float value = add(add(multiply(multiply(p, r), r), r), 1.0f);
  // Two factors, because 2^128 and 2^-150 are not floats; only the last product can round.
  const int half = n / 2;
  const float first = float_of(static_cast<uint32_t>(half + 127) << 23);
  const float second = float_of(static_cast<uint32_t>(n - half + 127) << 23);
  return multiply(multiply(value, first), second);
}

}  // namespace ualm
