// The random part of a draw. A draw is the argmax over the kept candidates of logit/T + g, with g standard Gumbel noise:
// exactly a draw from softmax(logit/T), but no sum decides, so the order in which candidates are visited cannot matter.
#pragma once

#include "core/float_math.h"
#include "core/philox.h"

namespace ualm {

// No noise is larger: it is 17.32868 at the largest u, 1 - 2^-25.
constexpr float kGumbelBound = 17.33f;

// g = -log(-log(u)) with u = ((x >> 8) + 0.5) * 2^-24, strictly inside (0, 1).
// u has 25 significant bits, one more than a float holds (the largest would round to 1), so it stays an integer.
UALM_HD inline float gumbel_of_bits(uint32_t x) {
  const uint32_t odd = 2u * (x >> 8) + 1u;  // u = odd * 2^-25
  return -log_f32(-log_scaled(odd, -25));
}

// Noise of one candidate. Keyed by the absolute vocabulary id, so it depends neither on the layout of the head nor on
// what else is in the batch. Philox: key = seed, counter = (id, stream, row, segment), first output word.
UALM_HD inline float gumbel_noise(uint64_t seed, uint32_t segment, uint32_t row, uint32_t stream, uint32_t id) {
  const Philox4 counter = {{id, stream, row, segment}};
  const Philox4 random = philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return gumbel_of_bits(random.word[0]);
}

}  // namespace ualm
