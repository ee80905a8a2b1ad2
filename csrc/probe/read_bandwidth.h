// How fast this machine reads memory: the limit that a step bound by its weights is held against.
#pragma once

#include <cstdint>

#include "probe/read_kernels.h"

namespace ualm {

struct ReadPass {
  uint64_t sum;    // of all words, modulo 2^64: proof that every one was read
  double seconds;  // from the moment all threads may start to the moment the last is done; negative: no threads
};

// Reads `count` 64-bit words once with `threads` threads, each its own stretch of whole 64-byte lines, in one go.
ReadPass read_once(const uint64_t* words, int64_t count, int32_t threads, const ReadKernel& kernel);

}  // namespace ualm
