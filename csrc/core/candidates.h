// From one stream's logits to one drawn column: guidance mix, top-k, top-p, Gumbel-max. Shared by every device.
#pragma once

#include "core/fault.h"
#include "core/gumbel.h"
#include "core/layout.h"
#include "core/sampling.h"

namespace ualm {

// The logits of one step, mixed as they are read: cond * g + null * (1 - g), each operation rounded to float32.
struct StepLogits {
  const float* conditional;
  const float* null_branch;  // nullptr without guidance
  float guidance;
  float one_minus_guidance;  // computed in double, then rounded, as torch does with Python scalars

  UALM_HD float at(int32_t column) const {
    if (null_branch == nullptr) return conditional[column];
    return mixed(conditional[column], null_branch[column]);
  }
  UALM_HD float mixed(float cond, float null) const {
    return add(multiply(cond, guidance), multiply(null, one_minus_guidance));
  }
};

struct Candidate {
  float logit;
  int32_t column;
};

struct Draw {
  int32_t column;
  Fault fault;
};

// The one order of candidates: higher logit first, then lower id.
UALM_HD inline bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.column < b.column);
}

struct BestOnTop {
  UALM_HD static bool above(const Candidate& a, const Candidate& b) { return ranks_before(a, b); }
};
struct WorstOnTop {
  UALM_HD static bool above(const Candidate& a, const Candidate& b) { return ranks_before(b, a); }
};

template <class Order>
UALM_HD inline void sift_down(Candidate* heap, int32_t count, int32_t at) {
  const Candidate moving = heap[at];
  for (;;) {
    int32_t child = 2 * at + 1;
    if (child >= count) break;
    if (child + 1 < count && Order::above(heap[child + 1], heap[child])) ++child;
    if (!Order::above(heap[child], moving)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = moving;
}

template <class Order>
UALM_HD inline void make_heap(Candidate* heap, int32_t count) {
  for (int32_t at = count / 2 - 1; at >= 0; --at) sift_down<Order>(heap, count, at);
}

// Whether `logits` at columns [begin, end) hold something that is above `cut`, or NaN. The loop has no exit on purpose:
// it is what a compiler turns into vector compares, and nearly every block of a large vocabulary ends here.
UALM_HD inline bool any_above(const StepLogits& logits, int32_t begin, int32_t end, float cut) {
  int found = 0;
  for (int32_t column = begin; column < end; ++column) found |= !(logits.at(column) <= cut);
  return found != 0;
}

struct Kept {
  int32_t count;
  Fault fault;
};

// Collects the `limit` highest logits of `range` into `kept` (room for min(limit, columns) candidates; limit >= 1), in
// no particular order; -inf is never collected. One pass over the logits.
UALM_HD inline Kept keep_top_k(const StepLogits& logits, ColumnRange range, int32_t limit, Candidate* kept) {
  constexpr int32_t kBlock = 64;
  int32_t count = 0;
  float cut = -positive_infinity();
  for (int32_t begin = range.begin; begin < range.end; begin += kBlock) {
    const int32_t end = range.end - begin < kBlock ? range.end : begin + kBlock;
    if (!any_above(logits, begin, end, cut)) continue;
    for (int32_t column = begin; column < end; ++column) {
      const float logit = logits.at(column);
      // An equal logit comes from a higher id than those kept, so it stays out; NaN must not pass unseen.
      if (logit <= cut) continue;
      if (!below_positive_infinity(logit)) return {0, logit != logit ? Fault::kNan : Fault::kPositiveInfinity};
      if (count < limit) {
        kept[count++] = {logit, column};
        if (count < limit) continue;
        make_heap<WorstOnTop>(kept, count);
      } else {
        kept[0] = {logit, column};
        sift_down<WorstOnTop>(kept, count, 0);
      }
      cut = kept[0].logit;
    }
  }
  return {count, count == 0 ? Fault::kAllNegativeInfinity : Fault::kNone};
}

// Logits enter every formula as (logit - best)/T: the same distribution, and neither a large logit nor a small T can
// overflow or cost the noise its low bits.
UALM_HD inline float scaled_logit(float logit, float best, float temperature) {
  return divide(add(logit, -best), temperature);
}

UALM_HD inline float best_logit(const Candidate* kept, int32_t count) {
  float best = kept[0].logit;
  for (int32_t i = 1; i < count; ++i) best = kept[i].logit > best ? kept[i].logit : best;
  return best;
}

// exp((logit - best)/T) in [0, 1] as an integer of 2^-40: integer sums do not depend on the order of their terms, so a
// parallel reduction keeps exactly the same candidates. Below 2^24 candidates no sum overflows.
UALM_HD inline uint64_t probability_weight(float logit, float best, float temperature) {
  return static_cast<uint64_t>(multiply(exp_f32(scaled_logit(logit, best, temperature)), 0x1p40f));
}

// Keeps the smallest set of the most probable candidates whose probability, softmax(logit/T) over the `count` given,
// sums to at least top_p. Reorders `kept`; returns the index at which the survivors begin (they run to `count`).
UALM_HD inline int32_t keep_top_p(Candidate* kept, int32_t count, float best, float temperature, double top_p) {
  uint64_t total = 0;
  for (int32_t i = 0; i < count; ++i) total += probability_weight(kept[i].logit, best, temperature);
  const double enough = top_p * static_cast<double>(total);
  make_heap<BestOnTop>(kept, count);
  uint64_t held = 0;
  int32_t begin = count;
  while (begin > 0) {
    const Candidate next = kept[0];
    --begin;  // the heap gives up its last place, where the best one goes
    kept[0] = kept[begin];
    sift_down<BestOnTop>(kept, begin, 0);
    kept[begin] = next;
    held += probability_weight(next.logit, best, temperature);
    if (static_cast<double>(held) >= enough) break;
  }
  return begin;
}

// Draws one column of `range` for (row, stream). `scratch` has room for as many candidates as `range` has columns.
// `base` turns columns into ids (layout.h). NaN or +inf anywhere in the range, or nothing but -inf, is a fault.
UALM_HD inline Draw draw_column(const StepLogits& logits, ColumnRange range, int32_t base, const Sampling& sampling,
                                uint32_t row, uint32_t stream, Candidate* scratch) {
  const int32_t columns = range.end - range.begin;
  int32_t limit = sampling.top_k > 0 && sampling.top_k < columns ? sampling.top_k : columns;
  if (sampling.temperature == 0.0f) limit = 1;
  const Kept kept = keep_top_k(logits, range, limit, scratch);
  if (kept.fault != Fault::kNone) return {-1, kept.fault};
  if (kept.count == 1) return {scratch[0].column, Fault::kNone};

  const float best = best_logit(scratch, kept.count);
  int32_t begin = 0;
  if (sampling.top_p < 1.0) begin = keep_top_p(scratch, kept.count, best, sampling.temperature, sampling.top_p);

  Candidate winner = {-positive_infinity(), -1};
  for (int32_t i = begin; i < kept.count; ++i) {
    const float scaled = scaled_logit(scratch[i].logit, best, sampling.temperature);
    // Rounding is monotonic, so this only skips candidates that would lose.
    if (winner.column >= 0 && add(scaled, kGumbelBound) < winner.logit) continue;
    const uint32_t id = static_cast<uint32_t>(id_of_column(scratch[i].column, base));
    const float noise = gumbel_noise(sampling.seed, sampling.segment, row, stream, id);
    const Candidate drawn = {add(scaled, noise), scratch[i].column};
    // A candidate so unlikely that (logit - best)/T overflows to -inf can only lose: the best one's score is finite.
    if (winner.column < 0 || ranks_before(drawn, winner)) winner = drawn;
  }
  return {winner.column, Fault::kNone};
}

}  // namespace ualm
