// The frame sampler as one kernel: a block draws one stream of one sequence; the block of a sequence that is done last
// ends the row. Segment rules, draws and sums are those of core/, so tokens and sums are the CPU's bit for bit.
#include "core/tables.h"
#include "cuda/draw.h"

namespace ualm::cuda {

namespace {

constexpr int kMaxThreads = 512;

struct RowMemory {
  int32_t ids[kStreams];
  int32_t codes[kStreams];
  int32_t latent_slot;  // -1: no frame became complete
  int32_t embedded_streams;
  int32_t flags;
  int last;  // this block arrived last
  int good;  // and no stream's logits were faulty
};

__device__ Progress progress_of(int32_t rows, int32_t flags, int32_t fault, int32_t stream) {
  return static_cast<Progress>(static_cast<uint32_t>(rows)) | static_cast<Progress>(flags) << 32 |
         static_cast<Progress>(fault) << 40 | static_cast<Progress>(stream) << 48;
}

// A 64-bit store is one transaction, also over PCIe: the host sees the old word or the new one.
__device__ void report(Progress* progress, Progress word) {
  __threadfence_system();
  *static_cast<volatile Progress*>(progress) = word;
}

// One thread: what was drawn becomes a row. Fills `memory` with what the others then add up.
__device__ void end_row(const SampleArgs& args, int32_t sequence, SequenceState& state, RowMemory& memory) {
  Segment segment = state.segment;
  const int32_t row = segment.row;
  const RowEnd end = finish_row(segment, args.layout, memory.ids);
  int32_t* const out = args.rows + (int64_t{sequence} * args.row_capacity + row % args.row_capacity) * kStreams;
  for (int stream = 0; stream < kStreams; ++stream) {
    state.recent[row % kStreams][stream] = memory.ids[stream];
    out[stream] = memory.ids[stream];
  }
  memory.embedded_streams = end.embedded_streams;
  memory.flags = end.flags;
  memory.latent_slot = -1;
  if (end.flags & kLatent) {
    const int32_t frame = row - kDelay;
    memory.latent_slot = frame % args.latent_capacity;
    for (int stream = 0; stream < kStreams; ++stream) {
      memory.codes[stream] = code_of_id(args.layout, stream, state.recent[(frame + stream) % kStreams][stream]);
    }
  }
  state.segment = segment;
}

__global__ void __launch_bounds__(kMaxThreads, 1) sample_kernel(SampleArgs args) {
  __shared__ DrawMemory draw_memory;
  __shared__ RowMemory memory;
  __shared__ Sampling sampling;  // shared rather than a copy in registers: it is read now and then
  const int32_t sequence = static_cast<int32_t>(blockIdx.x) / kStreams;
  const int32_t stream = static_cast<int32_t>(blockIdx.x) % kStreams;
  SequenceState& state = args.states[sequence];
  if (state.segment.ended || state.fault != 0) return;

  // Nothing of the state that a block reads up to its arrival is written before all eight blocks have arrived.
  const Segment segment = state.segment;
  int32_t id = 0;
  int32_t fault = 0;
  if ((segment.kind == SegmentKind::kText) != args.text) {
    fault = static_cast<int32_t>(Fault::kWrongHead);
  } else {
    const Cell cell = plan_cell(segment, args.layout, stream);
    id = cell.id;
    if (cell.action != Cell::kHold) {
      if (threadIdx.x == 0) {
        sampling = state.sampling;
        if (cell.action == Cell::kRankEnds) sampling.temperature = 0.0f;
      }
      __syncthreads();
      const int32_t base = args.text ? args.layout.text_base : args.layout.audio_base;
      const float* const rows = args.logits + int64_t{sequence} * args.branches * args.logits_stride;
      const StepLogits logits = {rows, args.branches == 2 ? rows + args.logits_stride : nullptr, sampling.guidance,
                                 sampling.one_minus_guidance};
      BlockDraw block(logits, cell.range, base, sampling, static_cast<uint32_t>(segment.row),
                      static_cast<uint32_t>(stream), draw_memory);
      const Draw draw = block.draw();
      fault = static_cast<int32_t>(draw.fault);
      id = id_of_column(draw.column, base);
    }
  }

  // A block counts itself only when all its threads have read the state: a hold or a wrong head passes no other barrier,
  // and the last block's writes would reach a warp that is late. That block sees what all have written: each writes,
  // fences, then counts itself.
  __syncthreads();
  if (threadIdx.x == 0) {
    state.drawn[stream] = id;
    state.stream_faults[stream] = fault;
    __threadfence();
    memory.last = atomicAdd(&state.arrived, 1u) == kStreams - 1;
  }
  __syncthreads();
  if (!memory.last) return;

  Progress* const progress = args.progress + sequence;
  if (threadIdx.x == 0) {
    __threadfence();
    // volatile: the first cache of this multiprocessor may hold the line from before
    const volatile SequenceState& arrived = state;
    state.arrived = 0;
    int32_t bad = kStreams;
    for (int i = kStreams - 1; i >= 0; --i) {
      memory.ids[i] = arrived.drawn[i];
      if (arrived.stream_faults[i] != 0) bad = i;
    }
    memory.good = bad == kStreams;
    if (bad != kStreams) {
      state.fault = arrived.stream_faults[bad];
      state.fault_stream = bad;
      report(progress, progress_of(segment.row, 0, state.fault, bad));
    } else {
      end_row(args, sequence, state, memory);
    }
  }
  __syncthreads();
  if (!memory.good) return;

  const Tables& tables = args.tables;
  float* const embedding = args.embeddings + int64_t{sequence} * args.embedding_copies * tables.hidden;
  for (int64_t i = threadIdx.x; i < tables.hidden; i += blockDim.x) {
    const float sum = tables.embedding_number == Number::kBFloat16
                          ? embedding_sum(static_cast<const BFloat16*>(tables.embedding), tables.hidden, memory.ids,
                                          memory.embedded_streams, i)
                          : embedding_sum(static_cast<const float*>(tables.embedding), tables.hidden, memory.ids,
                                          memory.embedded_streams, i);
    for (int32_t copy = 0; copy < args.embedding_copies; ++copy) embedding[copy * tables.hidden + i] = sum;
  }
  if (memory.latent_slot >= 0) {
    float* const latent =
        args.latents + (int64_t{sequence} * args.latent_capacity + memory.latent_slot) * tables.latent;
    for (int64_t i = threadIdx.x; i < tables.latent; i += blockDim.x) {
      latent[i] = code_sum(tables.rvq, tables.rvq_bias, args.layout.codebook_size, tables.latent, memory.codes, i);
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) report(progress, progress_of(segment.row + 1, memory.flags, 0, 0));
}

__global__ void begin_kernel(SequenceState* state, Segment segment, Sampling sampling, Progress* progress) {
  state->segment = segment;
  state->sampling = sampling;
  for (int row = 0; row < kStreams; ++row) {
    for (int stream = 0; stream < kStreams; ++stream) state->recent[row][stream] = 0;
    state->drawn[row] = 0;
    state->stream_faults[row] = 0;
  }
  state->fault = 0;
  state->fault_stream = 0;
  state->arrived = 0;
  if (progress != nullptr) report(progress, 0);
}

const char* wrong_with(const SampleArgs& args) {
  const Tables& tables = args.tables;
  if (args.states == nullptr || args.logits == nullptr) return "states, logits: must not be null";
  if (args.embeddings == nullptr || args.rows == nullptr || args.progress == nullptr) {
    return "embeddings, rows, progress: must not be null";
  }
  if (args.sequences < 1 || args.sequences > kMaxSequences) return "sequences: must be 1 to 64";
  if (args.branches < 1 || args.branches > 2) return "branches: must be 1 or 2";
  if (args.embedding_copies < 1 || args.embedding_copies > 2) return "embedding_copies: must be 1 or 2";
  if (args.row_capacity < 1) return "row_capacity: must be at least 1";
  if (tables.embedding == nullptr || tables.hidden < 1) return "tables: embedding must not be null, hidden at least 1";
  if (tables.embedding_number != Number::kFloat32 && tables.embedding_number != Number::kBFloat16) {
    return "tables: embedding must be float32 or bfloat16";
  }
  if (args.layout.codebook_size < 1 || args.layout.text_size < 1) return "layout: sizes must be at least 1";
  if (args.logits_stride < (args.text ? text_columns(args.layout) : audio_columns(args.layout))) {
    return "logits_stride: must be at least the head's columns";
  }
  if (!args.text) {
    if (tables.rvq == nullptr || tables.rvq_bias == nullptr || tables.latent < 1) {
      return "tables: rvq and rvq_bias must not be null, latent at least 1";
    }
    if (args.latents == nullptr || args.latent_capacity < 1)
      return "latents: must not be null, latent_capacity at least 1";
  }
  return nullptr;
}

}  // namespace

Launched launch_begin(SequenceState* state, const Segment& segment, const Sampling& sampling, Progress* progress,
                      Stream stream) {
  if (state == nullptr) return refused("state: must not be null");
  return launch(begin_kernel, dim3(1), 1, stream, state, segment, sampling, progress);
}

Launched launch_sample(const SampleArgs& args, Stream stream) {
  if (const char* wrong = wrong_with(args)) return refused(wrong);
  const int32_t widest = args.text ? text_columns(args.layout) : whole_stream(args.layout, 0).end;
  // A few columns a thread: more threads make barriers dear, fewer make passes long.
  const unsigned threads = widest <= 256 ? 128 : widest <= 4096 ? 256 : kMaxThreads;
  return launch(sample_kernel, dim3(static_cast<unsigned>(args.sequences * kStreams)), threads, stream, args);
}

}  // namespace ualm::cuda
