// How a segment is drawn, and what each of its options may be. Python takes the limits from _native.SAMPLING_LIMITS, which
// are these.
#pragma once

#include <limits>

#include "core/host_device.h"

namespace ualm {

// How to draw, fixed for a segment. temperature 0 is greedy; top_k 0 keeps everything; top_p 1 is off.
struct Sampling {
  float temperature;
  int32_t top_k;
  double top_p;
  float guidance;
  float one_minus_guidance;
  uint64_t seed;
  uint32_t segment;
};

template <class T>
struct Limits {
  T least, most;

  constexpr bool hold(T value) const { return value >= least && value <= most; }  // never NaN
};

// Options come as double and are used as float32.
constexpr double kLargestFloat = 0x1.fffffep+127;
constexpr double kSmallestFloat = 0x1p-149;

constexpr Limits<double> kTemperatureLimits = {kSmallestFloat, kLargestFloat};  // or 0: greedy
constexpr Limits<int64_t> kTopKLimits = {1, std::numeric_limits<int32_t>::max()};  // or 0: all; more is all as well
constexpr Limits<double> kTopPLimits = {0.0, 1.0};                                 // but not 0 itself
constexpr Limits<double> kGuidanceLimits = {1.0, kLargestFloat};
constexpr Limits<int64_t> kMaxStepsLimits = {1, std::numeric_limits<int32_t>::max()};  // kMinFixedSteps: segment.h
constexpr Limits<uint64_t> kSeedLimits = {0, std::numeric_limits<uint64_t>::max()};
constexpr Limits<int64_t> kSegmentLimits = {0, std::numeric_limits<uint32_t>::max()};

}  // namespace ualm
