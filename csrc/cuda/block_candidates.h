// What a block finds out about the candidates of one stream, a few passes over its logits: the best, sums above pivots,
// and where the cut between kept and left candidates lies.
#pragma once

#include "core/candidates.h"
#include "cuda/device.h"

namespace ualm::cuda {

constexpr int kPivots = 3;

// What a thread, a warp, a block knows of the columns that it has seen.
struct Overview {
  Candidate best;      // column -1: nothing but -inf
  int32_t candidates;  // above -inf
  int32_t bad_column;  // the lowest that holds NaN or +inf, else INT32_MAX

  __device__ static Overview combined(const Overview& a, const Overview& b) {
    const bool a_first = b.best.column < 0 || (a.best.column >= 0 && ranks_before(a.best, b.best));
    return {a_first ? a.best : b.best, a.candidates + b.candidates,
            a.bad_column < b.bad_column ? a.bad_column : b.bad_column};
  }
  __device__ static Overview from_lane(const Overview& mine, int distance) {
    return {{__shfl_xor_sync(kWholeWarp, mine.best.logit, distance),
             __shfl_xor_sync(kWholeWarp, mine.best.column, distance)},
            __shfl_xor_sync(kWholeWarp, mine.candidates, distance),
            __shfl_xor_sync(kWholeWarp, mine.bad_column, distance)};
  }
};

// The best of some candidates, by logit or by score; column -1: none.
struct Best {
  Candidate candidate;

  __device__ static Best combined(const Best& a, const Best& b) {
    const bool a_first = b.candidate.column < 0 || (a.candidate.column >= 0 && ranks_before(a.candidate, b.candidate));
    return a_first ? a : b;
  }
  __device__ static Best from_lane(const Best& mine, int distance) {
    return {{__shfl_xor_sync(kWholeWarp, mine.candidate.logit, distance),
             __shfl_xor_sync(kWholeWarp, mine.candidate.column, distance)}};
  }
};

struct Sums {
  unsigned long long above[kPivots];

  __device__ static Sums combined(Sums a, const Sums& b) {
    for (int i = 0; i < kPivots; ++i) a.above[i] += b.above[i];
    return a;
  }
  __device__ static Sums from_lane(Sums mine, int distance) {
    for (int i = 0; i < kPivots; ++i) mine.above[i] = __shfl_xor_sync(kWholeWarp, mine.above[i], distance);
    return mine;
  }
};

// Keys rise with logits; -0 and +0 share one.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = bits_of(add(logit, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float logit_of(uint32_t key) { return float_of(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }

// The candidates kept: key above `key`, or equal and a column up to `column`.
struct Cut {
  uint32_t key;
  int32_t column;

  __device__ bool keeps(float logit, int32_t at) const {
    const uint32_t mine = key_of(logit);
    return mine > key || (mine == key && at <= column);
  }
};

constexpr uint32_t kKeyOfMinusInfinity = 0x007FFFFFu;

// Calls visit(logit, column) for this thread's columns of `range`, rising. kBatch loads are on their way at once: one
// at a time, a pass would take a memory latency for each column of a thread.
template <int kBatch, class Visit>
__device__ inline void each_logit(const StepLogits& logits, ColumnRange range, const Visit& visit) {
  const bool pair = logits.null_branch != nullptr;
  const float* const null_branch = pair ? logits.null_branch : logits.conditional;  // read, whether it counts or not
  const int32_t step = static_cast<int32_t>(blockDim.x);
  for (int32_t at = range.begin + static_cast<int32_t>(threadIdx.x); at < range.end; at += kBatch * step) {
    float cond[kBatch], null[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int32_t column = at + i * step < range.end ? at + i * step : at;
      cond[i] = logits.conditional[column];
      null[i] = null_branch[column];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (at + i * step < range.end) visit(pair ? logits.mixed(cond[i], null[i]) : cond[i], at + i * step);
    }
  }
}

struct Ranked {
  uint32_t rank;
  uint64_t weight;
};

struct Found {
  uint32_t rank;
  uint64_t above;  // weight of all ranks above it
};

// The largest rank in [low, high) for which the columns of at least that rank weigh `enough`. At `low` they do; none
// has a rank of `high`. `ranked(logit, column)` gives a column's rank and weight.
template <class Function>
__device__ inline Found search(const StepLogits& logits, ColumnRange range, uint32_t low, uint32_t high, double enough,
                               const Function& ranked, Sums* shared) {
  uint64_t above = 0;
  while (high - low > 1) {
    uint32_t pivots[kPivots];
    for (int i = 0; i < kPivots; ++i) {
      pivots[i] = low + static_cast<uint32_t>(uint64_t{high - low} * static_cast<unsigned>(i + 1) / (kPivots + 1));
    }
    Sums sums{};
    each_logit<4>(logits, range, [&](float logit, int32_t column) {
      const Ranked mine = ranked(logit, column);
      for (int i = 0; i < kPivots; ++i) sums.above[i] += mine.rank >= pivots[i] ? mine.weight : 0;
    });
    sums = reduce_block(sums, shared);
    bool reached = false;  // no early exit, so that the loop unrolls and the pivots stay in registers
#pragma unroll
    for (int i = kPivots - 1; i >= 0; --i) {
      if (reached) continue;
      reached = static_cast<double>(sums.above[i]) >= enough;
      if (reached) {
        low = pivots[i];
      } else {
        high = pivots[i];
        above = sums.above[i];
      }
    }
  }
  return {low, above};
}

}  // namespace ualm::cuda
