// Philox4x32-10, a counter-based generator: the same counter and key give the same four words everywhere, in any order.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include "core/host_device.h"

namespace ualm {

struct Philox4 {
  uint32_t word[4];
};

UALM_HD inline Philox4 philox4x32_10(Philox4 counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t right = uint64_t{0xCD9E8D57u} * counter.word[2];
    const uint32_t word1 = counter.word[1];
    const uint32_t word3 = counter.word[3];
    counter.word[0] = static_cast<uint32_t>(right >> 32) ^ word1 ^ key0;
    counter.word[1] = static_cast<uint32_t>(right);
    counter.word[2] = static_cast<uint32_t>(left >> 32) ^ word3 ^ key1;
    counter.word[3] = static_cast<uint32_t>(left);
    key0 += 0x9E3779B9u;  // golden ratio
    key1 += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

}  // namespace ualm
