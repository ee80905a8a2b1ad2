// A block draws one column of one stream: draw_column() of core/candidates.h, shared between threads. The same
// arithmetic on the same candidates, so the same column; only the way to find which candidates are kept differs.
//
// One pass finds the best candidate, and NaN or +inf. Greedy ends there. Then, if few are to be kept (the usual top-k):
//   1. Threads form groups; the k-th largest of the groups' best logits is a bound that at least k candidates reach.
//   2. A second pass collects what reaches the bound: k candidates and few more, which are then sorted by counting.
// If many are kept, or many candidates tie at the bound, the cut is searched instead: the range of order-preserving
// keys is divided by four at each pass, counting (top-k) or summing integer probabilities (top-p) above three pivots.
#pragma once

#include "cuda/block_candidates.h"

namespace ualm::cuda {

constexpr int kFew = 128;     // candidates kept by sorting, at most
constexpr int kListed = 256;  // candidates that reach the bound, at most
constexpr int kGroups = 256;  // groups of threads that each offer their best, at most
constexpr int kLeastGroups = 64;

struct DrawMemory {
  union {
    Overview overviews[kMaxWarps];
    Best bests[kMaxWarps];
    Sums sums[kMaxWarps];
  };
  float offers[kGroups];
  float bound;
  int listed;
  Candidate list[kListed];
  Candidate sorted[kListed];
  unsigned long long weights[kListed];
};

// One draw, as the whole block sees it. The members are the same in every thread.
class BlockDraw {
 public:
  __device__ BlockDraw(const StepLogits& logits, ColumnRange range, int32_t base, const Sampling& sampling,
                       uint32_t row, uint32_t stream, DrawMemory& memory)
      : logits_(logits), range_(range), base_(base), sampling_(sampling), row_(row), stream_(stream), memory_(memory) {}

  __device__ Draw draw() {
    Overview mine = look();
    const Overview all = reduce_block(mine, memory_.overviews);
    if (all.bad_column < range_.end) {
      const float bad = logits_.at(all.bad_column);
      return {-1, bad != bad ? Fault::kNan : Fault::kPositiveInfinity};
    }
    if (all.candidates == 0) return {-1, Fault::kAllNegativeInfinity};
    const int32_t columns = range_.end - range_.begin;
    int32_t limit = sampling_.top_k > 0 && sampling_.top_k < columns ? sampling_.top_k : columns;
    if (sampling_.temperature == 0.0f) limit = 1;
    limit = limit < all.candidates ? limit : all.candidates;
    if (limit == 1) return {all.best.column, Fault::kNone};
    best_ = all.best.logit;

    const bool all_kept = limit == all.candidates;
    const bool top_p = sampling_.top_p < 1.0;
    int survivors = 0;
    if (limit <= kFew) {
      const int listed = list(mine.best, limit);
      if (listed >= 0) survivors = top_p ? likeliest(limit, 0) : limit;
    } else if (top_p && all_kept) {
      // What top-p keeps is usually little, whatever top-k leaves: try the best few before all.
      const uint64_t total = weight_of_all();
      const int listed = list(mine.best, kFew);
      if (listed >= 0) survivors = likeliest(listed, total);
    }
    return {survivors > 0 ? winner_of_sorted(survivors) : winner_of_kept(cut_of(limit, all_kept, all.best)),
            Fault::kNone};
  }

 private:
  // First pass. `best` is this thread's own.
  __device__ Overview look() const {
    Overview mine = {{-positive_infinity(), -1}, 0, 0x7FFFFFFF};
    each_logit<8>(logits_, range_, [&](float logit, int32_t column) {
      if (!below_positive_infinity(logit)) {
        mine.bad_column = column < mine.bad_column ? column : mine.bad_column;
      } else if (logit > -positive_infinity()) {
        ++mine.candidates;
        if (mine.best.column < 0 || logit > mine.best.logit) mine.best = {logit, column};  // columns rise: ties stay
      }
    });
    return mine;
  }

  // Puts the candidates that reach a bound, which at least `wanted` do if there are so many, into memory_.sorted, best
  // first. Returns how many there are, or -1 if there is no room for them.
  __device__ int list(const Candidate& mine, int wanted) {
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    // Three offers for each candidate wanted make a bound that few more reach; fewer groups are ranked faster.
    int groups = threads < kLeastGroups ? threads : kLeastGroups;
    while (groups < threads && groups < kGroups && groups < 3 * wanted) groups *= 2;
    const int width = threads / groups;  // threads of a group: neighbours in a warp, a power of two
    float offer = mine.column >= 0 ? mine.logit : -positive_infinity();
    for (int distance = width / 2; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kWholeWarp, offer, distance);
      offer = other > offer ? other : offer;
    }
    if (thread % width == 0) memory_.offers[thread / width] = offer;
    if (thread == 0) memory_.listed = 0;
    __syncthreads();
    if (thread < groups) {
      const float own = memory_.offers[thread];
      int rank = 0;
      for (int i = 0; i < groups; ++i) {
        const float other = memory_.offers[i];
        rank += other > own || (other == own && i < thread);
      }
      if (rank == wanted - 1) memory_.bound = own;  // ranks are distinct: one thread writes
    }
    __syncthreads();
    const float bound = memory_.bound;
    each_logit<8>(logits_, range_, [&](float logit, int32_t column) {
      if (logit >= bound && logit > -positive_infinity()) {
        const int place = atomicAdd(&memory_.listed, 1);
        if (place < kListed) memory_.list[place] = {logit, column};
      }
    });
#if !defined(UALM_TEST_WITHOUT_BARRIER)  // the tests leave it out once: ThreadSanitizer must notice
    __syncthreads();
#endif
    const int listed = memory_.listed;
    if (listed > kListed) return -1;
    for (int at = thread; at < listed; at += threads) {
      const Candidate own = memory_.list[at];
      int rank = 0;
      for (int i = 0; i < listed; ++i) rank += ranks_before(memory_.list[i], own);
      memory_.sorted[rank] = own;
    }
    __syncthreads();
    return listed;
  }

  // How many of the first `count` sorted candidates top-p keeps, out of a `total` weight (0: theirs); 0 if their weight
  // does not suffice to tell.
  __device__ int likeliest(int count, uint64_t total) {
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    for (int at = thread; at < count; at += threads) memory_.weights[at] = weight(memory_.sorted[at].logit);
    __syncthreads();
    uint64_t whole = 0;
    for (int i = 0; i < count; ++i) whole += memory_.weights[i];
    const double enough = sampling_.top_p * static_cast<double>(total != 0 ? total : whole);
    if (!(static_cast<double>(whole) >= enough)) return 0;
    int before = 0;  // candidates before the one that reaches it: sums rise, so they are those that do not
    for (int base = 0; base < count; base += threads) {
      const int at = base + thread;
      uint64_t held = 0;
      for (int i = 0; i <= at && at < count; ++i) held += memory_.weights[i];
      before += __syncthreads_count(at < count && !(static_cast<double>(held) >= enough));
    }
    return before + 1;
  }

  __device__ int32_t winner_of_sorted(int count) {
    Best mine = {{-positive_infinity(), -1}};
    for (int at = static_cast<int>(threadIdx.x); at < count; at += static_cast<int>(blockDim.x)) {
      mine = Best::combined(mine, {scored(memory_.sorted[at])});
    }
    return reduce_block(mine, memory_.bests).candidate.column;
  }

  // The general way: the cut of top-k, then that of top-p among what it leaves.
  __device__ Cut cut_of(int32_t limit, bool all_kept, const Candidate& best) {
    Cut cut = {kKeyOfMinusInfinity + 1, range_.end};
    const uint32_t above_all = key_of(best.logit) + 1;
    if (!all_kept) cut = find(cut, above_all, limit, [](float) { return uint64_t{1}; });
    if (sampling_.top_p < 1.0) {
      const Cut kept = cut;
      const double enough = sampling_.top_p * static_cast<double>(weight_of_kept(kept));
      cut = find(kept, above_all, enough, [this](float logit) { return weight(logit); });
    }
    return cut;
  }

  // The best candidates of those that `kept` keeps whose weights reach `enough`, the fewest.
  template <class Weight>
  __device__ Cut find(const Cut& kept, uint32_t above_all, double enough, const Weight& weigh) {
    const auto by_key = [&](float logit, int32_t column) -> Ranked {
      if (!kept.keeps(logit, column)) return {0, 0};
      return {key_of(logit), weigh(logit)};
    };
    const Found level = search(logits_, range_, kept.key, above_all, enough, by_key, memory_.sums);
    // Among equals the lower columns come first: how many of them, and up to which column. (~0 + 1 is 0; the search
    // only takes differences of its ends.)
    const auto by_column = [&](float logit, int32_t column) -> Ranked {
      const bool equal = key_of(logit) == level.rank && kept.keeps(logit, column);
      return {~static_cast<uint32_t>(column), equal ? uint64_t{1} : uint64_t{0}};
    };
    const uint64_t each = weigh(logit_of(level.rank));
    uint64_t few = 0,
             many = static_cast<uint64_t>(range_.end - range_.begin);  // `many` equals are enough, `few` are not
    while (many - few > 1) {
      const uint64_t middle = (few + many) / 2;
      (static_cast<double>(level.above + middle * each) >= enough ? many : few) = middle;
    }
    const uint32_t first_rank = ~static_cast<uint32_t>(range_.begin);
    const uint32_t last_rank = ~static_cast<uint32_t>(range_.end - 1);
    const Found last =
        search(logits_, range_, last_rank, first_rank + 1, static_cast<double>(many), by_column, memory_.sums);
    return {level.rank, static_cast<int32_t>(~last.rank)};
  }

  __device__ int32_t winner_of_kept(const Cut& cut) {
    Best mine = {{-positive_infinity(), -1}};
    each_logit<2>(logits_, range_, [&](float logit, int32_t column) {
      if (!cut.keeps(logit, column)) return;
      // Rounding is monotonic, so this only skips candidates that would lose.
      if (mine.candidate.column >= 0 && add(scaled(logit), kGumbelBound) < mine.candidate.logit) return;
      mine = Best::combined(mine, {scored({logit, column})});
    });
    return reduce_block(mine, memory_.bests).candidate.column;
  }

  __device__ uint64_t weight_of_all() { return weight_of_kept({kKeyOfMinusInfinity + 1, range_.end}); }

  __device__ uint64_t weight_of_kept(const Cut& cut) {
    Sums sums{};
    each_logit<4>(logits_, range_, [&](float logit, int32_t column) {
      if (cut.keeps(logit, column)) sums.above[0] += weight(logit);
    });
    return reduce_block(sums, memory_.sums).above[0];
  }

  __device__ uint64_t weight(float logit) const { return probability_weight(logit, best_, sampling_.temperature); }
  __device__ float scaled(float logit) const { return scaled_logit(logit, best_, sampling_.temperature); }
  __device__ Candidate scored(const Candidate& candidate) const {
    const uint32_t id = static_cast<uint32_t>(id_of_column(candidate.column, base_));
    const float noise = gumbel_noise(sampling_.seed, sampling_.segment, row_, stream_, id);
    return {add(scaled(candidate.logit), noise), candidate.column};
  }

  const StepLogits logits_;
  const ColumnRange range_;
  const int32_t base_;
  const Sampling& sampling_;
  const uint32_t row_, stream_;
  DrawMemory& memory_;
  float best_ = 0.0f;
};

}  // namespace ualm::cuda
