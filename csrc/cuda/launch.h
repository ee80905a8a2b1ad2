// What the CUDA side of the frame loop offers: kernels behind plain structs of raw pointers and sizes. Every launch_*
// checks its arguments, puts one kernel on a stream and returns; it allocates nothing, synchronises with nothing, and
// may be captured into a graph. Pointers are device memory, or pinned host memory where stated. docs/cuda.md has
// the kernels' inner workings and what they need of a GPU.
#pragma once

#include <cstdint>

#include "core/candidates.h"
#include "core/segment.h"
#include "core/tables.h"

namespace ualm::cuda {

constexpr int32_t kMaxSequences = 64;
constexpr int32_t kQuantBlock = 32;  // inputs that share a scale in int8 weights: export/formats/blocks.py

// What became of a launch. Neither set: the kernel is on the stream.
struct Launched {
  const char* refused = nullptr;  // what is wrong with the arguments; nothing was launched
  int32_t cuda_error = 0;         // cudaError_t of the launch itself

  bool ok() const { return refused == nullptr && cuda_error == 0; }
};

using Stream = void*;  // a cudaStream_t

// ---- Sequences ------------------------------------------------------------------------------------------------------

// All that the sampler knows of one sequence, in device memory. launch_begin writes it, launch_sample advances it.
struct SequenceState {
  Segment segment;
  Sampling sampling;
  int32_t recent[kStreams][kStreams];  // the last 8 rows; row r lies at r % 8
  int32_t drawn[kStreams];             // of the row under way, by stream
  int32_t stream_faults[kStreams];
  int32_t fault;  // a Fault: the logits could not be drawn from; the segment stays where it was until one is begun
  int32_t fault_stream;
  uint32_t arrived;  // blocks that have drawn their stream of the row under way; 0 between launches
};

// How far a sequence is, in one word, so that the host can read it while the GPU writes it.
// Bits 0..31: rows drawn in this segment. 32..39: StepFlags of the last row. 40..47: Fault. 48..55: the fault's stream.
using Progress = uint64_t;

// Begins a segment of one sequence: writes `state` and, unless null, `progress` (device or pinned host memory).
Launched launch_begin(SequenceState* state, const Segment& segment, const Sampling& sampling, Progress* progress,
                      Stream stream);

// ---- Frame sampler --------------------------------------------------------------------------------------------------

// One row of each of `sequences` sequences, in one launch: what FrameSampler::step (cpu/frame_sampler.h) does, bit for
// bit. A sequence whose segment has ended, or whose logits were faulty, is left alone, and so is everything of it in
// the outputs: rows may be launched ahead. All sequences of a launch speak the same modality.
struct SampleArgs {
  SequenceState* states;  // [sequences]
  const float* logits;    // [sequences, branches, logits_stride]; 1 branch is taken as it is
  int64_t logits_stride;  // floats between two rows of logits, at least the head's columns
  int32_t sequences;      // 1 .. kMaxSequences
  int32_t branches;       // 1 or 2 (conditional, null)
  bool text;              // which head the logits are of
  Layout layout;
  Tables tables;
  float* embeddings;         // out: [sequences, embedding_copies, hidden]
  int32_t embedding_copies;  // 1, or 2 to feed both branches
  int32_t* rows;  // out: [sequences, row_capacity, 8], device or pinned; row r of the segment at r % row_capacity
  int32_t row_capacity;
  float* latents;  // out: [sequences, latent_capacity, latent]; frame f at f % latent_capacity; null for text
  int32_t latent_capacity;
  Progress* progress;  // out: [sequences], device or pinned memory; written last, when all of the above is visible
};
Launched launch_sample(const SampleArgs& args, Stream stream);

// out[count, copies, hidden] = sums of the 8 embeddings of rows[count, 8] (ids must be within the table; id 0 adds
// nothing).
Launched launch_embed_rows(const Tables& tables, const int32_t* rows, int64_t count, int32_t copies, float* out,
                           Stream stream);

// ---- Audio head -----------------------------------------------------------------------------------------------------

// logits = hidden . weights + bias for 1 or 2 branches of each sequence, float32 accumulation in a fixed order.
struct HeadArgs {
  const float* hidden;  // [sequences, branches, inputs]
  int32_t sequences;    // 1 .. kMaxSequences
  int32_t branches;     // 1 or 2
  int32_t inputs;       // for kInt8Blocks a multiple of 32
  int32_t columns;
  const void* weights;  // [inputs, weight_stride], as the bundle stores them
  Number number;
  int64_t weight_stride;   // numbers between two inputs: even, at least columns
  const uint16_t* scales;  // kInt8Blocks: float16 [inputs / 32, scale_stride]; else null
  int64_t scale_stride;    // even, at least columns
  const float* bias;       // [columns] or null
  float* logits;           // out: [sequences, branches, logits_stride]
  int64_t logits_stride;   // at least columns
};
Launched launch_head(const HeadArgs& args, Stream stream);

// ---- KV cache -------------------------------------------------------------------------------------------------------

// Where a cache of any layout keeps the number (head, position, i): base + head * head_stride + position *
// position_stride + i. Bases are one pointer a layer, tables in device memory; strides count numbers.
struct CacheLayout {
  Number number;  // kFloat32, kFloat16 or kBFloat16
  int32_t layers;
  int32_t kv_heads;
  int32_t head_dim;  // even
  int32_t capacity;  // positions
  int64_t head_stride;
  int64_t position_stride;
};

// Null prefix of positions [first, last): keys rotated to their position, values as they are, in every layer.
struct NullPrefixArgs {
  CacheLayout cache;
  void* const* keys;         // [layers] pointers to the null branch of each layer
  void* const* values;       // [layers]
  const float* null_keys;    // [layers, kv_heads, head_dim], not rotated
  const float* null_values;  // [layers, kv_heads, head_dim]
  const float* cos;          // [last or more, head_dim / 2]
  const float* sin;
  int32_t first;
  int32_t last;
};
Launched launch_null_prefix(const NullPrefixArgs& args, Stream stream);

// Copies new rows into the cache, for an engine that gives them apart: [branches, kv_heads, rows, head_dim] a layer,
// with strides of their own, to positions [position, position + rows).
struct KvWriteArgs {
  CacheLayout cache;
  int32_t branches;
  int64_t branch_stride;  // of the cache
  void* const* keys;      // [layers]
  void* const* values;
  const void* const* new_keys;  // [layers], the cache's number format
  const void* const* new_values;
  int64_t new_branch_stride, new_head_stride, new_row_stride;
  int32_t rows;
  int32_t position;
  // Unless null, added to `position`: for a captured launch, in the type that engines count positions in. The caller
  // keeps the sum within the capacity.
  const int64_t* device_position;
};
Launched launch_kv_write(const KvWriteArgs& args, Stream stream);

// ---- Bandwidth ------------------------------------------------------------------------------------------------------

// Reads memory as fast as it can, and adds the sum of its 64-bit words, modulo 2^64, to `total`.
struct ReadArgs {
  const void* data;  // aligned to 16 bytes
  int64_t bytes;     // a multiple of 16
  int32_t blocks;    // of 512 threads
  uint64_t* total;   // device memory
};
Launched launch_read(const ReadArgs& args, Stream stream);

}  // namespace ualm::cuda
