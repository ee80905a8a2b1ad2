#include "probe/read_kernels.h"

#include <algorithm>

// One baseline instruction set: a wider kernel carries its own as an attribute of the function, and is called where CPU
// and system have it. MSVC knows no such attribute and gets the portable kernel.
#if defined(__GNUC__) && defined(__x86_64__) && !defined(_MSC_VER)
#define UALM_READ_X86 1
#include <immintrin.h>
#elif defined(__GNUC__) && defined(__aarch64__) && !defined(_MSC_VER)
#define UALM_READ_NEON 1
#include <arm_neon.h>
#endif

namespace ualm {

namespace {

// Eight sums that do not wait for each other, so that the loop waits for memory only; compilers make vectors of them.
uint64_t sum_portable(const uint64_t* words, int64_t count) {
  constexpr int64_t kLanes = 8;
  uint64_t sums[kLanes] = {};
  int64_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += words[at + lane];
  }
  uint64_t sum = 0;
  for (const uint64_t lane : sums) sum += lane;
  for (; at < count; ++at) sum += words[at];
  return sum;
}

#if defined(UALM_READ_X86) || defined(UALM_READ_NEON)

// What the vector kernels share. They start at a cache line, since a vector across two lines takes two reads, and read
// `kStretches` consecutive stretches of `each` words: each step reads kStep words (whole lines) of one, then of the next.
// A CPU's prefetcher predicts one stretch best; several keep more reads in flight where memory is slow to answer.
constexpr int64_t kStep = 32;

struct Split {
  int64_t before;  // words that are left to the portable kernel, as are those behind the stretches
  int64_t each;
  int64_t end;
};

template <int kStretches>
Split split(const uint64_t* words, int64_t count) {
  const auto past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(words) % 64 / sizeof(uint64_t));
  const int64_t before = std::min<int64_t>(count, (8 - past) % 8);
  const int64_t each = (count - before) / (kStretches * kStep) * kStep;
  return {before, each, before + kStretches * each};
}

// Of a kernel's lanes and of the words that it left.
template <int kLanes>
uint64_t sum_up(const uint64_t (&lanes)[kLanes], const uint64_t* words, int64_t count, const Split& parts) {
  uint64_t sum = sum_portable(words, parts.before) + sum_portable(words + parts.end, count - parts.end);
  for (const uint64_t lane : lanes) sum += lane;
  return sum;
}

#endif

#if defined(UALM_READ_X86)

template <int kStretches>
__attribute__((target("avx512f"))) uint64_t sum_avx512(const uint64_t* words, int64_t count) {
  const Split parts = split<kStretches>(words, count);
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t at = 0; at < parts.each; at += kStep) {
    for (int stretch = 0; stretch < kStretches; ++stretch) {
      const uint64_t* step = words + parts.before + stretch * parts.each + at;
      for (int each = 0; each < 4; ++each) {
        sums[each] = _mm512_add_epi64(sums[each], _mm512_loadu_si512(step + 8 * each));
      }
    }
  }
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]), _mm512_add_epi64(sums[2], sums[3])));
  return sum_up(lanes, words, count, parts);
}

template <int kStretches>
__attribute__((target("avx2"))) uint64_t sum_avx2(const uint64_t* words, int64_t count) {
  const Split parts = split<kStretches>(words, count);
  __m256i sums[8];
  for (__m256i& each : sums) each = _mm256_setzero_si256();
  for (int64_t at = 0; at < parts.each; at += kStep) {
    for (int stretch = 0; stretch < kStretches; ++stretch) {
      const uint64_t* step = words + parts.before + stretch * parts.each + at;
      for (int each = 0; each < 8; ++each) {
        const auto* vector = reinterpret_cast<const __m256i*>(step + 4 * each);
        sums[each] = _mm256_add_epi64(sums[each], _mm256_loadu_si256(vector));
      }
    }
  }
  alignas(32) uint64_t lanes[32];
  for (int each = 0; each < 8; ++each) _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 4 * each), sums[each]);
  return sum_up(lanes, words, count, parts);
}

#elif defined(UALM_READ_NEON)

template <int kStretches>
uint64_t sum_neon(const uint64_t* words, int64_t count) {
  const Split parts = split<kStretches>(words, count);
  uint64x2_t sums[8];
  for (uint64x2_t& each : sums) each = vdupq_n_u64(0);
  for (int64_t at = 0; at < parts.each; at += kStep) {
    for (int stretch = 0; stretch < kStretches; ++stretch) {
      const uint64_t* step = words + parts.before + stretch * parts.each + at;
      for (int each = 0; each < kStep / 2; ++each) {
        sums[each % 8] = vaddq_u64(sums[each % 8], vld1q_u64(step + 2 * each));
      }
    }
  }
  uint64_t lanes[16];
  for (int each = 0; each < 8; ++each) vst1q_u64(lanes + 2 * each, sums[each]);
  return sum_up(lanes, words, count, parts);
}

#endif

struct Kernels {
  ReadKernel list[5];
  int32_t count = 0;

  void add(const char* name, uint64_t (*sum)(const uint64_t*, int64_t)) { list[count++] = {name, sum}; }

  Kernels() {
#if defined(UALM_READ_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {  // of the system too: whether it keeps such registers for a thread
      add("avx512", sum_avx512<1>);
      add("avx512x4", sum_avx512<4>);
    }
    if (__builtin_cpu_supports("avx2")) {
      add("avx2", sum_avx2<1>);
      add("avx2x4", sum_avx2<4>);
    }
#elif defined(UALM_READ_NEON)
    add("neon", sum_neon<1>);  // every aarch64 has it
    add("neonx4", sum_neon<4>);
#endif
    add("portable", sum_portable);
  }
};

}  // namespace

const ReadKernel* read_kernels(int32_t* count) {
  static const Kernels kernels;
  *count = kernels.count;
  return kernels.list;
}

}  // namespace ualm
