// Loops that sum memory as fast as a CPU can read it: those of each family of vector instructions.
#pragma once

#include <cstdint>

namespace ualm {

struct ReadKernel {
  const char* name;                                       // "avx512"; "avx512x4" reads four stretches in turn
  uint64_t (*sum)(const uint64_t* words, int64_t count);  // of all words, modulo 2^64
};

// Kernels that this CPU can run, the widest first; the last one is "portable", which every CPU runs.
const ReadKernel* read_kernels(int32_t* count);

}  // namespace ualm
