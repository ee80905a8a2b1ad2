// An output head as a matrix-vector product for one or two branches, whose weights are read once for both.
//
// A block owns 64 columns; lane l of each warp owns columns 2l and 2l+1, so that a warp reads a run of memory. The
// inputs are cut into blocks of 32, and warp w takes blocks w, w + kWarps, w + 2 kWarps, ... The order of additions is
// fixed: within a block of 32 inputs, ascending, by fused multiply-adds from zero (int8: of the whole numbers, the
// scale then multiplies the block's sum); the blocks of a warp, ascending; the warps, ascending; the bias.
#include "core/numbers.h"
#include "cuda/device.h"

namespace ualm::cuda {

namespace {

constexpr int kWarps = 16;
constexpr int kThreads = kWarps * kWarp;
constexpr int kColumns = 2 * kWarp;  // of a block

struct Int8 {
  int8_t value;
};

template <class T>
struct Pair {
  T low, high;
};

__device__ inline float widen_weight(float weight) { return weight; }
__device__ inline float widen_weight(Float16 weight) { return widen(weight); }
__device__ inline float widen_weight(BFloat16 weight) { return widen(weight); }
__device__ inline float widen_weight(Int8 weight) { return static_cast<float>(weight.value); }

// Two neighbouring weights in one load; `at` is even, and so are the strides.
template <class T>
__device__ inline Pair<T> load_pair(const T* weights, int64_t at);

template <>
__device__ inline Pair<float> load_pair(const float* weights, int64_t at) {
  const float2 two = *reinterpret_cast<const float2*>(weights + at);
  return {two.x, two.y};
}
template <>
__device__ inline Pair<Float16> load_pair(const Float16* weights, int64_t at) {
  const uint32_t two = *reinterpret_cast<const uint32_t*>(weights + at);
  return {{static_cast<uint16_t>(two)}, {static_cast<uint16_t>(two >> 16)}};
}
template <>
__device__ inline Pair<BFloat16> load_pair(const BFloat16* weights, int64_t at) {
  const uint32_t two = *reinterpret_cast<const uint32_t*>(weights + at);
  return {{static_cast<uint16_t>(two)}, {static_cast<uint16_t>(two >> 16)}};
}
template <>
__device__ inline Pair<Int8> load_pair(const Int8* weights, int64_t at) {
  const uint16_t two = *reinterpret_cast<const uint16_t*>(weights + at);
  return {{static_cast<int8_t>(two & 0xFF)}, {static_cast<int8_t>(two >> 8)}};
}

// blockIdx.x: columns, blockIdx.y: sequence.
template <class T, int kBranches>
__global__ void __launch_bounds__(kThreads, 1) head_kernel(HeadArgs args) {
  constexpr bool kScaled = sizeof(T) == 1;
  __shared__ float held[kWarps][kQuantBlock][kBranches];  // the inputs that a warp is at
  __shared__ float partial[kWarps][kBranches][kColumns];
  const int32_t sequence = static_cast<int32_t>(blockIdx.y);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int32_t column = static_cast<int32_t>(blockIdx.x) * kColumns + 2 * lane;
  const bool inside = column < args.columns;  // strides are even: a pair that begins inside may be read whole
  const float* const hidden = args.hidden + int64_t{sequence} * kBranches * args.inputs;
  const T* const weights = static_cast<const T*>(args.weights);
  const Float16* const scales = reinterpret_cast<const Float16*>(args.scales);

  float sums[kBranches][2] = {};
  const int32_t blocks = (args.inputs + kQuantBlock - 1) / kQuantBlock;
  for (int32_t block = warp; block < blocks; block += kWarps) {
    const int32_t begin = block * kQuantBlock;
    const int32_t count = args.inputs - begin < kQuantBlock ? args.inputs - begin : kQuantBlock;
    __syncwarp();  // all lanes are done with the inputs before
    for (int branch = 0; branch < kBranches; ++branch) {
      held[warp][lane][branch] = lane < count ? hidden[int64_t{branch} * args.inputs + begin + lane] : 0.0f;
    }
    __syncwarp();
    if (!inside) continue;
    float local[kBranches][2] = {};
    const auto take = [&](int i) {
      const Pair<T> pair = load_pair<T>(weights, int64_t{begin + i} * args.weight_stride + column);
      const float low = widen_weight(pair.low);
      const float high = widen_weight(pair.high);
      for (int branch = 0; branch < kBranches; ++branch) {
        local[branch][0] = fmaf(held[warp][i][branch], low, local[branch][0]);
        local[branch][1] = fmaf(held[warp][i][branch], high, local[branch][1]);
      }
    };
    if (count == kQuantBlock) {
#pragma unroll
      for (int i = 0; i < kQuantBlock; ++i) take(i);
    } else {
      for (int i = 0; i < count; ++i) take(i);
    }
    if (kScaled) {
      const Pair<Float16> scale = load_pair<Float16>(scales, int64_t{block} * args.scale_stride + column);
      const float low = widen(scale.low);
      const float high = widen(scale.high);
      for (int branch = 0; branch < kBranches; ++branch) {
        sums[branch][0] = fmaf(local[branch][0], low, sums[branch][0]);
        sums[branch][1] = fmaf(local[branch][1], high, sums[branch][1]);
      }
    } else {
      for (int branch = 0; branch < kBranches; ++branch) {
        sums[branch][0] = add(sums[branch][0], local[branch][0]);
        sums[branch][1] = add(sums[branch][1], local[branch][1]);
      }
    }
  }
  for (int branch = 0; branch < kBranches; ++branch) {
    partial[warp][branch][2 * lane] = sums[branch][0];
    partial[warp][branch][2 * lane + 1] = sums[branch][1];
  }
  __syncthreads();

  const int32_t own = static_cast<int32_t>(blockIdx.x) * kColumns + static_cast<int32_t>(threadIdx.x);
  if (threadIdx.x >= kColumns || own >= args.columns) return;
  for (int branch = 0; branch < kBranches; ++branch) {
    float total = partial[0][branch][threadIdx.x];
    for (int w = 1; w < kWarps; ++w) total = add(total, partial[w][branch][threadIdx.x]);
    if (args.bias != nullptr) total = add(total, args.bias[own]);
    args.logits[(int64_t{sequence} * kBranches + branch) * args.logits_stride + own] = total;
  }
}

template <class T>
Launched launch_number(const HeadArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>((args.columns + kColumns - 1) / kColumns),
                  static_cast<unsigned>(args.sequences));
  if (args.branches == 2) {
    return launch(head_kernel<T, 2>, grid, kThreads, stream, args);
  } else {
    return launch(head_kernel<T, 1>, grid, kThreads, stream, args);
  }
}

const char* wrong_with(const HeadArgs& args) {
  if (args.hidden == nullptr || args.weights == nullptr || args.logits == nullptr) {
    return "hidden, weights, logits: must not be null";
  }
  if (args.sequences < 1 || args.sequences > kMaxSequences) return "sequences: must be 1 to 64";
  if (args.branches < 1 || args.branches > 2) return "branches: must be 1 or 2";
  if (args.inputs < 1 || args.columns < 1) return "inputs, columns: must be at least 1";
  if (args.weight_stride < args.columns || args.weight_stride % 2 != 0) {
    return "weight_stride: must be even and at least columns";
  }
  if (args.logits_stride < args.columns) return "logits_stride: must be at least columns";
  if (reinterpret_cast<uintptr_t>(args.weights) % 8 != 0) return "weights: must be aligned to 8 bytes";
  if (args.number == Number::kInt8Blocks) {
    if (args.scales == nullptr) return "scales: int8 weights need them";
    if (reinterpret_cast<uintptr_t>(args.scales) % 4 != 0) return "scales: must be aligned to 4 bytes";
    if (args.inputs % kQuantBlock != 0) return "inputs: int8 weights need whole blocks of 32";
    if (args.scale_stride < args.columns || args.scale_stride % 2 != 0) {
      return "scale_stride: must be even and at least columns";
    }
  }
  return nullptr;
}

}  // namespace

Launched launch_head(const HeadArgs& args, Stream stream) {
  if (const char* wrong = wrong_with(args)) return refused(wrong);
  switch (args.number) {
    case Number::kFloat32: return launch_number<float>(args, stream);
    case Number::kFloat16: return launch_number<Float16>(args, stream);
    case Number::kBFloat16: return launch_number<BFloat16>(args, stream);
    case Number::kInt8Blocks: return launch_number<Int8>(args, stream);
    default: return refused("number: must be float32, float16, bfloat16 or int8 blocks");
  }
}

}  // namespace ualm::cuda
