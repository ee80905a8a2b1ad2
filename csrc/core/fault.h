// What can be wrong with the logits that a stream is to draw from, and what a message says of it.
#pragma once

#include "core/host_device.h"

namespace ualm {

// The numbers leave the device in a progress word (cuda/launch.h) and the module as _native.FAULTS.
enum class Fault : int32_t { kNone = 0, kNan = 1, kPositiveInfinity = 2, kAllNegativeInfinity = 3, kWrongHead = 4 };

struct FaultText {
  Fault fault;
  const char* format;  // of printf and of Python's %, for two whole numbers: the row and the stream
};

#define UALM_CANDIDATES \
  " the candidates of row %d, stream %d; the model's numbers are broken (an overflow, or damaged weights)"
constexpr FaultText kFaultTexts[] = {
    {Fault::kNan, "logits: NaN among" UALM_CANDIDATES},
    {Fault::kPositiveInfinity, "logits: +inf among" UALM_CANDIDATES},
    {Fault::kAllNegativeInfinity, "logits: nothing but -inf among" UALM_CANDIDATES},
    {Fault::kWrongHead, "logits: of a head that the segment does not draw from, row %d, stream %d; report this"},
};
#undef UALM_CANDIDATES

}  // namespace ualm
