// Python module ualm.runtime._cuda, first half: the launches. Arguments are numbers and addresses; what a launch
// refuses becomes a ValueError. A launch that is made again and again is an object that holds its arguments, so that a
// frame costs one call without arguments.
#include "cuda/launch.h"
#include "python/arguments.h"
#include "python/cuda_module.h"

namespace py = pybind11;

namespace ualm::cuda {

namespace {

using namespace py::literals;

void raise(const Launched& launched) {
  if (launched.refused != nullptr) throw py::value_error(launched.refused);
  check(static_cast<cudaError_t>(launched.cuda_error), "launch a kernel");
}

Stream stream_of(Address stream) { return pointer_of<void>(stream); }

Layout layout_of(int32_t codebook_size, int32_t text_size, int32_t audio_base, int32_t text_base) {
  return {codebook_size, text_size, audio_base, text_base};
}

Tables tables_of(Address embedding, int32_t embedding_number, Address rvq, Address rvq_bias, int64_t vocabulary,
                       int64_t hidden, int64_t latent) {
  return {pointer_of<void>(embedding),
          static_cast<Number>(embedding_number),
          pointer_of<float>(rvq),
          pointer_of<float>(rvq_bias),
          vocabulary,
          hidden,
          latent};
}

void begin_segment(Address state, Address progress, const std::string& kind, double temperature, int64_t top_k,
                   double top_p, double guidance, int64_t max_steps, uint64_t seed, int64_t segment, Address stream) {
  if (kind != "text" && kind != "fixed" && kind != "reference") {
    python::refuse("kind = '" + kind + "': must be 'text', 'fixed' or 'reference'");
  }
  const SegmentKind chosen = kind == "text"    ? SegmentKind::kText
                             : kind == "fixed" ? SegmentKind::kAudioFixed
                                               : SegmentKind::kAudioReference;
  const Segment begun = ualm::begin_segment(chosen, python::max_steps_of(max_steps, chosen));
  const Sampling sampling = python::sampling_of(temperature, top_k, top_p, guidance, seed, segment);
  raise(launch_begin(pointer_of<SequenceState>(state), begun, sampling, pointer_of<Progress>(progress),
                     stream_of(stream)));
}

// A launch with its arguments. Making one checks nothing; calling it does.
template <class Args, Launched (*kLaunch)(const Args&, Stream)>
struct Prepared {
  Args args;
  void operator()(Address stream) const { raise(kLaunch(args, stream_of(stream))); }
};
using SampleLaunch = Prepared<SampleArgs, launch_sample>;
using HeadLaunch = Prepared<HeadArgs, launch_head>;

SampleLaunch sample_launch(Address states, Address logits, int64_t logits_stride, int32_t sequences, int32_t branches,
                           bool text, const Layout& layout, const Tables& tables, Address embeddings,
                           int32_t embedding_copies, Address rows, int32_t row_capacity, Address latents,
                           int32_t latent_capacity, Address progress) {
  SampleArgs args{};
  args.states = pointer_of<SequenceState>(states);
  args.logits = pointer_of<float>(logits);
  args.logits_stride = logits_stride;
  args.sequences = sequences;
  args.branches = branches;
  args.text = text;
  args.layout = layout;
  args.tables = tables;
  args.embeddings = pointer_of<float>(embeddings);
  args.embedding_copies = embedding_copies;
  args.rows = pointer_of<int32_t>(rows);
  args.row_capacity = row_capacity;
  args.latents = pointer_of<float>(latents);
  args.latent_capacity = latent_capacity;
  args.progress = pointer_of<Progress>(progress);
  return {args};
}

HeadLaunch head_launch(Address hidden, int32_t sequences, int32_t branches, int32_t inputs, int32_t columns,
                       Address weights, int32_t number, int64_t weight_stride, Address scales, int64_t scale_stride,
                       Address bias, Address logits, int64_t logits_stride) {
  HeadArgs args{};
  args.hidden = pointer_of<float>(hidden);
  args.sequences = sequences;
  args.branches = branches;
  args.inputs = inputs;
  args.columns = columns;
  args.weights = pointer_of<void>(weights);
  args.number = static_cast<Number>(number);
  args.weight_stride = weight_stride;
  args.scales = pointer_of<uint16_t>(scales);
  args.scale_stride = scale_stride;
  args.bias = pointer_of<float>(bias);
  args.logits = pointer_of<float>(logits);
  args.logits_stride = logits_stride;
  return {args};
}

void bind_frame(py::module_& module) {
  py::class_<Layout>(module, "Layout", py::module_local())
      .def(py::init(&layout_of), py::kw_only(), "codebook_size"_a, "text_size"_a, "audio_base"_a, "text_base"_a);
  py::class_<Tables>(module, "Tables", py::module_local())
      .def(py::init(&tables_of), py::kw_only(), "embedding"_a, "embedding_number"_a, "rvq"_a, "rvq_bias"_a,
           "vocabulary"_a, "hidden"_a, "latent"_a);
  module.def("begin_segment", &begin_segment, py::kw_only(), "state"_a, "progress"_a, "kind"_a, "temperature"_a,
             "top_k"_a, "top_p"_a, "guidance"_a, "max_steps"_a, "seed"_a, "segment"_a, "stream"_a);
  py::class_<SampleLaunch>(module, "SampleLaunch", py::module_local())
      .def(py::init(&sample_launch), py::kw_only(), "states"_a, "logits"_a, "logits_stride"_a, "sequences"_a,
           "branches"_a, "text"_a, "layout"_a, "tables"_a, "embeddings"_a, "embedding_copies"_a, "rows"_a,
           "row_capacity"_a, "latents"_a, "latent_capacity"_a, "progress"_a)
      .def("__call__", &SampleLaunch::operator(), "stream"_a);
  module.def(
      "embed_rows",
      [](const Tables& tables, Address rows, int64_t count, int32_t copies, Address out, Address stream) {
        raise(launch_embed_rows(tables, pointer_of<int32_t>(rows), count, copies, pointer_of<float>(out),
                                stream_of(stream)));
      },
      "tables"_a, py::kw_only(), "rows"_a, "count"_a, "copies"_a, "out"_a, "stream"_a);
  py::class_<HeadLaunch>(module, "HeadLaunch", py::module_local())
      .def(py::init(&head_launch), py::kw_only(), "hidden"_a, "sequences"_a, "branches"_a, "inputs"_a, "columns"_a,
           "weights"_a, "number"_a, "weight_stride"_a, "scales"_a = 0, "scale_stride"_a = 0, "bias"_a = 0,
           "logits"_a, "logits_stride"_a)
      .def("__call__", &HeadLaunch::operator(), "stream"_a);
}

void bind_cache(py::module_& module) {
  py::class_<CacheLayout>(module, "CacheLayout", py::module_local())
      .def(py::init([](int32_t number, int32_t layers, int32_t kv_heads, int32_t head_dim, int32_t capacity,
                       int64_t head_stride, int64_t position_stride) {
             const Number cache_number = static_cast<Number>(number);
             return CacheLayout{cache_number, layers, kv_heads, head_dim, capacity, head_stride, position_stride};
           }),
           py::kw_only(), "number"_a, "layers"_a, "kv_heads"_a, "head_dim"_a, "capacity"_a, "head_stride"_a,
           "position_stride"_a);
  module.def(
      "fill_null_prefix",
      [](const CacheLayout& cache, Address keys, Address values, Address null_keys, Address null_values, Address cos,
         Address sin, int32_t first, int32_t last, Address stream) {
        NullPrefixArgs args{};
        args.cache = cache;
        args.keys = pointer_of<void*>(keys);
        args.values = pointer_of<void*>(values);
        args.null_keys = pointer_of<float>(null_keys);
        args.null_values = pointer_of<float>(null_values);
        args.cos = pointer_of<float>(cos);
        args.sin = pointer_of<float>(sin);
        args.first = first;
        args.last = last;
        raise(launch_null_prefix(args, stream_of(stream)));
      },
      "cache"_a, py::kw_only(), "keys"_a, "values"_a, "null_keys"_a, "null_values"_a, "cos"_a, "sin"_a, "first"_a,
      "last"_a, "stream"_a);
  module.def(
      "write_kv_rows",
      [](const CacheLayout& cache, int32_t branches, int64_t branch_stride, Address keys, Address values,
         Address new_keys, Address new_values, int64_t new_branch_stride, int64_t new_head_stride,
         int64_t new_row_stride, int32_t rows, int32_t position, Address device_position, Address stream) {
        KvWriteArgs args{};
        args.cache = cache;
        args.branches = branches;
        args.branch_stride = branch_stride;
        args.keys = pointer_of<void*>(keys);
        args.values = pointer_of<void*>(values);
        args.new_keys = pointer_of<const void*>(new_keys);
        args.new_values = pointer_of<const void*>(new_values);
        args.new_branch_stride = new_branch_stride;
        args.new_head_stride = new_head_stride;
        args.new_row_stride = new_row_stride;
        args.rows = rows;
        args.position = position;
        args.device_position = pointer_of<int64_t>(device_position);
        raise(launch_kv_write(args, stream_of(stream)));
      },
      "cache"_a, py::kw_only(), "branches"_a, "branch_stride"_a, "keys"_a, "values"_a, "new_keys"_a, "new_values"_a,
      "new_branch_stride"_a, "new_head_stride"_a, "new_row_stride"_a, "rows"_a, "position"_a, "device_position"_a = 0,
      "stream"_a);
}

void bind_bandwidth(py::module_& module) {
  module.def(
      "read_memory",
      [](Address data, int64_t bytes, int32_t blocks, Address total, Address stream) {
        raise(launch_read({pointer_of<void>(data), bytes, blocks, pointer_of<uint64_t>(total)}, stream_of(stream)));
      },
      py::kw_only(), "data"_a, "bytes"_a, "blocks"_a, "total"_a, "stream"_a);
}

}  // namespace

}  // namespace ualm::cuda

PYBIND11_MODULE(_cuda, module) {
  using namespace ualm::cuda;
  using ualm::Number;
  module.doc() = "The CUDA side of the frame loop: launches and the few calls that they need. See _cuda.pyi.";
  module.attr("ARCHITECTURES") =
      UALM_CUDA_ARCHITECTURES;  // what the build holds code for, e.g. "80-real 90-real 90-virtual"
  module.attr("STATE_BYTES") = sizeof(SequenceState);
  module.attr("MAX_SEQUENCES") = kMaxSequences;
  module.attr("FLOAT32") = static_cast<int>(Number::kFloat32);
  module.attr("FLOAT16") = static_cast<int>(Number::kFloat16);
  module.attr("BFLOAT16") = static_cast<int>(Number::kBFloat16);
  module.attr("INT8_BLOCKS") = static_cast<int>(Number::kInt8Blocks);
  bind_device(module);
  bind_frame(module);
  bind_cache(module);
  bind_bandwidth(module);
}
