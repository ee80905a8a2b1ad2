// Numbers and sampling options as Python hands them to either module: within their limits, or a ValueError that names
// the option, its value and what it must be.
#pragma once

#include <pybind11/pybind11.h>

#include <limits>
#include <string>

#include "core/sampling.h"
#include "core/segment.h"

namespace ualm::python {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

[[noreturn]] inline void refuse(const std::string& message) { throw pybind11::value_error(message); }

template <class T = int32_t>
T checked_int(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    refuse(std::string(name) + " = " + std::to_string(value) + ": must be a whole number from " + std::to_string(low) +
           " to " + std::to_string(high));
  }
  return static_cast<T>(value);
}

inline int32_t max_steps_of(int64_t max_steps, SegmentKind kind) {
  const int64_t least = kind == SegmentKind::kAudioFixed ? kMinFixedSteps : kMaxStepsLimits.least;
  return checked_int("max_steps", max_steps, least, kMaxStepsLimits.most);
}

inline Sampling sampling_of(double temperature, int64_t top_k, double top_p, double guidance, uint64_t seed,
                            int64_t segment) {
  const auto refuse_number = [](const char* name, double value, const char* wanted) {
    const std::string text = pybind11::repr(pybind11::float_(value)).cast<std::string>();
    refuse(std::string(name) + " = " + text + ": must be " + wanted);
  };
  if (temperature != 0 && !kTemperatureLimits.hold(temperature)) {
    refuse_number("temperature", temperature, "0 (greedy) or a positive number that float32 can hold");
  }
  if (top_p == 0 || !kTopPLimits.hold(top_p)) {
    refuse_number("top_p", top_p, "above 0 and at most 1 (1 keeps all)");
  }
  if (!kGuidanceLimits.hold(guidance)) {
    refuse_number("guidance", guidance, "a finite number of at least 1 (1 turns guidance off)");
  }
  if (top_k < 0) refuse("top_k = " + std::to_string(top_k) + ": must be at least 0 (0 keeps all)");
  Sampling sampling{};
  sampling.temperature = static_cast<float>(temperature);
  sampling.top_k = static_cast<int32_t>(top_k <= kTopKLimits.most ? top_k : 0);  // more than any head has columns: all
  sampling.top_p = top_p;
  sampling.guidance = static_cast<float>(guidance);
  sampling.one_minus_guidance = static_cast<float>(1.0 - guidance);
  sampling.seed = seed;
  sampling.segment = checked_int<uint32_t>("segment", segment, kSegmentLimits.least, kSegmentLimits.most);
  return sampling;
}

}  // namespace ualm::python
