// Rows of the KV cache that no engine writes: the null branch's prefix, and rows that an engine returns separately.
#include "core/numbers.h"
#include "cuda/device.h"

namespace ualm::cuda {

namespace {

constexpr int kThreads = 256;

// One thread turns one pair (i, i + head_dim / 2) of a key to one position, and copies the same two numbers of the
// value. blockIdx.y: layer and head. The products and the sum round one by one, as the CPU engine's do.
template <class T>
__global__ void __launch_bounds__(kThreads) null_prefix_kernel(NullPrefixArgs args) {
  const CacheLayout& cache = args.cache;
  const int64_t half = cache.head_dim / 2;
  const int64_t layer = blockIdx.y / cache.kv_heads;
  const int64_t head = blockIdx.y % cache.kv_heads;
  const float* key = args.null_keys + (layer * cache.kv_heads + head) * cache.head_dim;
  const float* value = args.null_values + (layer * cache.kv_heads + head) * cache.head_dim;
  T* keys = static_cast<T*>(args.keys[layer]) + head * cache.head_stride;
  T* values = static_cast<T*>(args.values[layer]) + head * cache.head_stride;
  const int64_t pairs = (args.last - args.first) * half;
  for (int64_t pair = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; pair < pairs;
       pair += int64_t{gridDim.x} * blockDim.x) {
    const int64_t position = args.first + pair / half;
    const int64_t i = pair % half;
    const float cos = args.cos[position * half + i];
    const float sin = args.sin[position * half + i];
    const float low = key[i];
    const float high = key[i + half];
    T* const key_row = keys + position * cache.position_stride;
    T* const value_row = values + position * cache.position_stride;
    key_row[i] = narrow<T>(add(multiply(low, cos), -multiply(high, sin)));
    key_row[i + half] = narrow<T>(add(multiply(high, cos), multiply(low, sin)));
    value_row[i] = narrow<T>(value[i]);
    value_row[i + half] = narrow<T>(value[i + half]);
  }
}

// blockIdx.y: layer, branch and head; Unit is what a thread copies at once, `units` of them a row.
template <class Unit>
__global__ void __launch_bounds__(kThreads) kv_write_kernel(KvWriteArgs args, int32_t unit_numbers) {
  const CacheLayout& cache = args.cache;
  const int64_t head = blockIdx.y % cache.kv_heads;
  const int64_t branch = blockIdx.y / cache.kv_heads % args.branches;
  const int64_t layer = blockIdx.y / cache.kv_heads / args.branches;
  const int64_t units = cache.head_dim / unit_numbers;
  const int64_t position = args.position + (args.device_position != nullptr ? *args.device_position : 0);
  const int64_t to = branch * args.branch_stride + head * cache.head_stride + position * cache.position_stride;
  const int64_t from = branch * args.new_branch_stride + head * args.new_head_stride;
  // Strides are whole units (checked at the launch), so the rows of a unit type can be indexed as such.
  const Unit* const new_keys = static_cast<const Unit*>(args.new_keys[layer]) + from / unit_numbers;
  const Unit* const new_values = static_cast<const Unit*>(args.new_values[layer]) + from / unit_numbers;
  Unit* const keys = static_cast<Unit*>(args.keys[layer]) + to / unit_numbers;
  Unit* const values = static_cast<Unit*>(args.values[layer]) + to / unit_numbers;
  const int64_t count = args.rows * units;
  for (int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; at < count; at += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = at / units;
    const int64_t i = at % units;
    const int64_t source = row * (args.new_row_stride / unit_numbers) + i;
    const int64_t target = row * (cache.position_stride / unit_numbers) + i;
    keys[target] = new_keys[source];
    values[target] = new_values[source];
  }
}

const char* wrong_with(const CacheLayout& cache) {
  if (cache.number != Number::kFloat32 && cache.number != Number::kFloat16 && cache.number != Number::kBFloat16) {
    return "cache: number must be float32, float16 or bfloat16";
  }
  if (cache.layers < 1 || cache.kv_heads < 1) return "cache: layers and kv_heads must be at least 1";
  if (cache.head_dim < 2 || cache.head_dim % 2 != 0) return "cache: head_dim must be even and at least 2";
  if (cache.capacity < 1) return "cache: capacity must be at least 1";
  if (cache.position_stride < cache.head_dim) return "cache: position_stride must be at least head_dim";
  if (cache.head_stride < cache.head_dim) return "cache: head_stride must be at least head_dim";
  return nullptr;
}

unsigned blocks_for(int64_t items) {
  const int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 64 ? blocks : 64);  // the kernels stride over what remains
}

}  // namespace

Launched launch_null_prefix(const NullPrefixArgs& args, Stream stream) {
  if (const char* wrong = wrong_with(args.cache)) return refused(wrong);
  if (args.keys == nullptr || args.values == nullptr) return refused("keys, values: must not be null");
  if (args.null_keys == nullptr || args.null_values == nullptr)
    return refused("null_keys, null_values: must not be null");
  if (args.cos == nullptr || args.sin == nullptr) return refused("cos, sin: must not be null");
  if (args.first < 0 || args.last < args.first || args.last > args.cache.capacity) {
    return refused("first, last: must be positions of the cache, first not behind last");
  }
  const int64_t heads = int64_t{args.cache.layers} * args.cache.kv_heads;
  if (heads > 65535) return refused("cache: layers x kv_heads must be at most 65535");
  if (args.first == args.last) return {};
  const dim3 grid(blocks_for(int64_t{args.last - args.first} * (args.cache.head_dim / 2)),
                  static_cast<unsigned>(heads));
  switch (args.cache.number) {
    case Number::kFloat32: return launch(null_prefix_kernel<float>, grid, kThreads, stream, args);
    case Number::kFloat16: return launch(null_prefix_kernel<Float16>, grid, kThreads, stream, args);
    default: return launch(null_prefix_kernel<BFloat16>, grid, kThreads, stream, args);
  }
}

Launched launch_kv_write(const KvWriteArgs& args, Stream stream) {
  if (const char* wrong = wrong_with(args.cache)) return refused(wrong);
  if (args.keys == nullptr || args.values == nullptr) return refused("keys, values: must not be null");
  if (args.new_keys == nullptr || args.new_values == nullptr) return refused("new_keys, new_values: must not be null");
  if (args.branches < 1 || args.branches > 2) return refused("branches: must be 1 or 2");
  if (args.rows < 0 || args.position < 0 || int64_t{args.position} + args.rows > args.cache.capacity) {
    return refused("position, rows: must lie within the cache's capacity");
  }
  const int64_t heads = int64_t{args.cache.layers} * args.branches * args.cache.kv_heads;
  if (heads > 65535) return refused("cache: layers x branches x kv_heads must be at most 65535");
  if (args.rows == 0) return {};
  // A thread copies 4 bytes: two numbers of 16 bits, where head_dim and strides are even, else one number.
  const int64_t strides = args.cache.head_stride | args.cache.position_stride | args.branch_stride |
                          args.new_branch_stride | args.new_head_stride | args.new_row_stride;
  const bool narrow_numbers = args.cache.number != Number::kFloat32;
  const int32_t unit = narrow_numbers && strides % 2 == 0 ? 2 : 1;
  const dim3 grid(blocks_for(int64_t{args.rows} * (args.cache.head_dim / unit)), static_cast<unsigned>(heads));
  if (narrow_numbers && unit == 1) {
    return launch(kv_write_kernel<uint16_t>, grid, kThreads, stream, args, unit);
  } else {
    return launch(kv_write_kernel<uint32_t>, grid, kThreads, stream, args, unit);
  }
}

}  // namespace ualm::cuda
