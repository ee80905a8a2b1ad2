// Python module ualm.runtime._native: checks what comes in, hands pointers to the plain C++ below it, and turns status
// codes into exceptions. Nothing is computed here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <limits>
#include <string>

#include "probe/core_round_trip.h"
#include "cpu/frame_sampler.h"
#include "cpu/quantize_blocks.h"
#include "probe/read_bandwidth.h"

namespace py = pybind11;

namespace {

using ualm::kStreams;

[[noreturn]] void refuse(const std::string& message) { throw py::value_error(message); }

std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis != 0 ? ", " : "") + std::to_string(array.shape(axis));
  }
  return text + "]";
}

[[noreturn]] void refuse_dtype(const std::string& name, const py::array& array, const std::string& wanted) {
  throw py::type_error(name + ": dtype is " + py::str(array.dtype()).cast<std::string>() + ", must be " + wanted);
}

// One wanted dimension: its name in messages and its size, or -1 where any size will do.
struct Dimension {
  const char* name;
  int64_t size;
};

// Checks dtype, shape, C order and alignment; never converts or copies. Raises TypeError or ValueError.
template <class T>
const T* view(const char* name, const py::array& array, std::initializer_list<Dimension> wanted) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    refuse_dtype(name, array, py::str(py::dtype::of<T>()).cast<std::string>());
  }
  bool fits = array.ndim() == static_cast<py::ssize_t>(wanted.size());
  std::string wanted_text;
  py::ssize_t axis = 0;
  for (const Dimension& dimension : wanted) {
    fits = fits && (dimension.size < 0 || array.shape(axis) == dimension.size);
    wanted_text += std::string(axis != 0 ? ", " : "") + dimension.name;
    if (dimension.size >= 0) wanted_text += " = " + std::to_string(dimension.size);
    ++axis;
  }
  if (!fits) refuse(std::string(name) + ": shape is " + shape_text(array) + ", must be [" + wanted_text + "]");
  constexpr int kPlain = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kPlain) != kPlain) {
    refuse(std::string(name) + ": must be C-contiguous and aligned; pass numpy.ascontiguousarray(...)");
  }
  return static_cast<const T*>(array.data());
}

template <class T>
T* writable_view(const char* name, py::array& array, std::initializer_list<Dimension> wanted) {
  view<T>(name, array, wanted);
  if (!array.writeable()) refuse(std::string(name) + ": must be writable, it is read-only");
  return static_cast<T*>(array.mutable_data());
}

std::string number_text(double value) { return py::repr(py::float_(value)).cast<std::string>(); }

int32_t checked_int(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    refuse(std::string(name) + " = " + std::to_string(value) + ": must be a whole number from " + std::to_string(low) +
           " to " + std::to_string(high));
  }
  return static_cast<int32_t>(value);
}

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

ualm::Sampling check_sampling(double temperature, int64_t top_k, double top_p, double guidance, uint64_t seed,
                              int64_t segment) {
  const float temperature32 = static_cast<float>(temperature);
  if (!(temperature >= 0) || !std::isfinite(temperature32) || (temperature > 0 && temperature32 == 0.0f)) {
    refuse("temperature = " + number_text(temperature) +
           ": must be 0 (greedy) or a positive number that float32 can hold");
  }
  if (!(top_p > 0 && top_p <= 1)) {
    refuse("top_p = " + number_text(top_p) + ": must be above 0 and at most 1 (1 keeps all)");
  }
  if (!(guidance >= 1) || !std::isfinite(static_cast<float>(guidance))) {
    refuse("guidance = " + number_text(guidance) + ": must be a finite number of at least 1 (1 turns guidance off)");
  }
  if (top_k < 0) refuse("top_k = " + std::to_string(top_k) + ": must be at least 0 (0 keeps all)");
  if (segment < 0 || segment > int64_t{std::numeric_limits<uint32_t>::max()}) {
    refuse("segment = " + std::to_string(segment) + ": must be a whole number from 0 to 4294967295");
  }
  ualm::Sampling sampling{};
  sampling.temperature = temperature32;
  sampling.top_k = static_cast<int32_t>(top_k < kInt32Max ? top_k : 0);  // more than any head has columns: all
  sampling.top_p = top_p;
  sampling.guidance = static_cast<float>(guidance);
  sampling.one_minus_guidance = static_cast<float>(1.0 - guidance);
  sampling.seed = seed;
  sampling.segment = static_cast<uint32_t>(segment);
  return sampling;
}

ualm::Layout check_layout(int64_t codebook_size, int64_t text_size, int64_t audio_base, int64_t text_base,
                          int64_t vocabulary) {
  ualm::Layout layout{};
  layout.codebook_size = checked_int("codebook_size", codebook_size, 1, kInt32Max / 16);
  layout.text_size = checked_int("text_size", text_size, 1, kInt32Max / 2);
  // Above eos and eot: ids must rise with the columns of a head for "ties to the lower id" to hold.
  layout.audio_base = checked_int("audio_base", audio_base, ualm::kEot + 1, kInt32Max / 2);
  layout.text_base = checked_int("text_base", text_base, ualm::kEot + 1, kInt32Max / 2);
  const int64_t audio_end = audio_base + kStreams * (codebook_size + 1);
  const int64_t text_end = text_base + text_size;
  const auto within = [vocabulary](const char* name, int64_t begin, int64_t end) {
    if (end > vocabulary) {
      refuse("embedding: has " + std::to_string(vocabulary) + " rows, but the " + name + " ids are " +
             std::to_string(begin) + " .. " + std::to_string(end - 1));
    }
  };
  within("audio", audio_base, audio_end);
  within("text", text_base, text_end);
  if (audio_base < text_end && text_base < audio_end) {
    refuse("audio ids " + std::to_string(audio_base) + " .. " + std::to_string(audio_end - 1) + " and text ids " +
           std::to_string(text_base) + " .. " + std::to_string(text_end - 1) + " overlap");
  }
  return layout;
}

// The sampler together with the arrays that its tables point into.
class PySampler {
 public:
  PySampler(int64_t codebook_size, int64_t text_size, int64_t audio_base, int64_t text_base, py::array embedding,
            py::array rvq_table, py::array rvq_bias)
      : embedding_(std::move(embedding)),
        rvq_table_(std::move(rvq_table)),
        rvq_bias_(std::move(rvq_bias)),
        sampler_(make(codebook_size, text_size, audio_base, text_base)) {}

  void begin_audio(const std::string& mode, double temperature, int64_t top_k, double top_p, double guidance,
                   int64_t max_steps, uint64_t seed, int64_t segment) {
    if (mode != "fixed" && mode != "reference") refuse("mode = '" + mode + "': must be 'fixed' or 'reference'");
    const bool fixed = mode == "fixed";
    begin(fixed ? ualm::SegmentKind::kAudioFixed : ualm::SegmentKind::kAudioReference,
          checked_int("max_steps", max_steps, fixed ? ualm::kMinFixedSteps : 1, kInt32Max),
          check_sampling(temperature, top_k, top_p, guidance, seed, segment));
  }

  void begin_text(double temperature, int64_t top_k, double top_p, double guidance, int64_t max_steps, uint64_t seed,
                  int64_t segment) {
    begin(ualm::SegmentKind::kText, checked_int("max_steps", max_steps, 1, kInt32Max),
          check_sampling(temperature, top_k, top_p, guidance, seed, segment));
  }

  int step(const py::array& logits, py::array& row_out, py::array& embedding_out, py::array& latent_out) {
    if (!sampler_.begun()) throw std::runtime_error("step: no segment has begun; call begin_audio or begin_text");
    const bool text = sampler_.segment().kind == ualm::SegmentKind::kText;
    const int64_t columns = text ? text_logits() : audio_logits();
    const float* rows = view<float>("logits", logits, {{"branches", branches_}, {"L", columns}});
    int32_t* row = writable_view<int32_t>("row_out", row_out, {{"streams", kStreams}});
    float* embedding = writable_view<float>("embedding_out", embedding_out, {{"H", hidden_size()}});
    float* latent = writable_view<float>("latent_out", latent_out, {{"D", latent_size()}});
    ualm::StepResult result;
    {
      py::gil_scoped_release release;
      result = sampler_.step(rows, branches_ == 2 ? rows + columns : nullptr, row, embedding, latent);
    }
    if (result.status == ualm::StepStatus::kEnded) {
      throw std::runtime_error("step: the segment has ended; call begin_audio or begin_text");
    }
    if (result.status == ualm::StepStatus::kBadLogits) refuse(fault_text(result));
    return result.flags;
  }

  void embed(const py::array& rows, py::array& out) const {
    const int32_t* ids = view<int32_t>("rows", rows, {{"n", -1}, {"streams", kStreams}});
    const int64_t count = rows.shape(0);
    float* sums = writable_view<float>("out", out, {{"n", count}, {"H", hidden_size()}});
    int64_t bad;
    {
      py::gil_scoped_release release;
      bad = ualm::embed_rows(sampler_.tables(), ids, count, sums);
    }
    if (bad >= 0) {
      refuse("rows[" + std::to_string(bad / kStreams) + ", " + std::to_string(bad % kStreams) + "] = " +
             std::to_string(ids[bad]) + ": must be an id from 0 to " +
             std::to_string(sampler_.tables().vocabulary - 1));
    }
  }

  int64_t hidden_size() const { return sampler_.tables().hidden; }
  int64_t latent_size() const { return sampler_.tables().latent; }
  int64_t audio_logits() const { return ualm::audio_columns(sampler_.layout()); }
  int64_t text_logits() const { return ualm::text_columns(sampler_.layout()); }
  int64_t row() const { return sampler_.segment().row; }

 private:
  ualm::FrameSampler make(int64_t codebook_size, int64_t text_size, int64_t audio_base, int64_t text_base) const {
    ualm::Tables tables{};
    // numpy has no bfloat16: its bits come as uint16
    tables.embedding_is_bfloat16 = py::isinstance<py::array_t<uint16_t>>(embedding_);
    if (tables.embedding_is_bfloat16) {
      tables.embedding = view<uint16_t>("embedding", embedding_, {{"N", -1}, {"H", -1}});
    } else if (py::isinstance<py::array_t<float>>(embedding_)) {
      tables.embedding = view<float>("embedding", embedding_, {{"N", -1}, {"H", -1}});
    } else {
      refuse_dtype("embedding", embedding_, "float32, or uint16 (the bits of bfloat16)");
    }
    tables.vocabulary = embedding_.shape(0);
    tables.hidden = embedding_.shape(1);
    const ualm::Layout layout = check_layout(codebook_size, text_size, audio_base, text_base, tables.vocabulary);
    tables.rvq = view<float>("rvq_table", rvq_table_, {{"streams", kStreams}, {"K", codebook_size}, {"D", -1}});
    tables.latent = rvq_table_.shape(2);
    tables.rvq_bias = view<float>("rvq_bias", rvq_bias_, {{"D", tables.latent}});
    return ualm::FrameSampler(layout, tables);
  }

  void begin(ualm::SegmentKind kind, int32_t max_steps, const ualm::Sampling& sampling) {
    sampler_.begin(kind, max_steps, sampling);
    branches_ = sampling.guidance > 1.0f || sampling.one_minus_guidance < 0.0f ? 2 : 1;
  }

  static std::string fault_text(const ualm::StepResult& result) {
    const char* what = result.fault == ualm::Fault::kNan                ? "NaN among"
                       : result.fault == ualm::Fault::kPositiveInfinity ? "+inf among"
                                                                        : "nothing but -inf among";
    return "logits: " + std::string(what) + " the candidates of row " + std::to_string(result.row) + ", stream " +
           std::to_string(result.stream) + "; the model's numbers are broken (an overflow, or damaged weights)";
  }

  py::array embedding_, rvq_table_, rvq_bias_;
  ualm::FrameSampler sampler_;
  int64_t branches_ = 1;
};

void codes_to_latents(const py::array& codes, const py::array& rvq_table, const py::array& rvq_bias, py::array& out) {
  const float* table = view<float>("rvq_table", rvq_table, {{"streams", kStreams}, {"K", -1}, {"D", -1}});
  const int64_t codebook_size = rvq_table.shape(1);
  const int64_t latent = rvq_table.shape(2);
  const float* bias = view<float>("rvq_bias", rvq_bias, {{"D", latent}});
  // int16 is how codes are stored; widening copies only them.
  const bool narrow = py::isinstance<py::array_t<int16_t>>(codes);
  if (!narrow && !py::isinstance<py::array_t<int32_t>>(codes)) refuse_dtype("codes", codes, "int32 or int16");
  if (narrow) view<int16_t>("codes", codes, {{"T", -1}, {"streams", kStreams}});
  const py::array wide = narrow ? py::array(codes.attr("astype")(py::dtype::of<int32_t>())) : codes;
  const int32_t* values = view<int32_t>("codes", wide, {{"T", -1}, {"streams", kStreams}});
  const int64_t count = wide.shape(0);
  float* latents = writable_view<float>("out", out, {{"T", count}, {"D", latent}});
  int64_t bad;
  {
    py::gil_scoped_release release;
    bad = ualm::latents_of_codes(table, bias, codebook_size, latent, values, count, latents);
  }
  if (bad >= 0) {
    refuse("codes[" + std::to_string(bad / kStreams) + ", " + std::to_string(bad % kStreams) + "] = " +
           std::to_string(values[bad]) + ": must be a code from 0 to " + std::to_string(codebook_size - 1));
  }
}

// The kernel of that name among those that this CPU can run.
const ualm::ReadKernel& read_kernel(const std::string& name) {
  int32_t count = 0;
  const ualm::ReadKernel* kernels = ualm::read_kernels(&count);
  std::string known;
  for (int32_t index = 0; index < count; ++index) {
    if (name == kernels[index].name) return kernels[index];
    known += (index == 0 ? "" : ", ") + std::string(kernels[index].name);
  }
  refuse("kernel = '" + name + "': this CPU runs " + known);
}

py::tuple read_kernel_names() {
  int32_t count = 0;
  const ualm::ReadKernel* kernels = ualm::read_kernels(&count);
  py::tuple names(count);
  for (int32_t index = 0; index < count; ++index) names[index] = py::str(kernels[index].name);
  return names;
}

py::tuple read_once(const py::array& words, int64_t threads, const std::string& kernel) {
  const uint64_t* data = view<uint64_t>("words", words, {{"n", -1}});
  const int32_t count = checked_int("threads", threads, 1, 1 << 14);
  const ualm::ReadKernel& chosen = read_kernel(kernel);
  ualm::ReadPass pass;
  {
    py::gil_scoped_release release;
    pass = ualm::read_once(data, words.size(), count, chosen);
  }
  if (pass.seconds < 0) {
    throw std::runtime_error("read_once: this machine does not give " + std::to_string(threads) + " threads");
  }
  return py::make_tuple(pass.sum, pass.seconds);
}

double core_round_trip(int64_t turns) {
  if (turns < 1) refuse("turns = " + std::to_string(turns) + ": must be at least 1");
  py::gil_scoped_release release;
  const double seconds = ualm::core_round_trip(turns);
  if (seconds < 0) throw std::runtime_error("core_round_trip: this machine does not give a second thread");
  return seconds;
}

void quantize_blocks(const py::array& matrix, int64_t block, const py::array& divisors, int64_t low, int64_t high,
                     const py::object& importance, py::array& whole, py::array& scales, int64_t threads) {
  const float* values = view<float>("matrix", matrix, {{"in", -1}, {"out", -1}});
  const int64_t inputs = matrix.shape(0), outputs = matrix.shape(1);
  if (block < 1 || inputs % block != 0) {
    refuse("block = " + std::to_string(block) + ": must divide the " + std::to_string(inputs) + " inputs");
  }
  ualm::BlockFormat format{};
  format.block = block;
  format.divisors = view<float>("divisors", divisors, {{"n", -1}});
  format.divisor_count = divisors.shape(0);
  if (format.divisor_count < 1) refuse("divisors: must hold at least one number");
  format.low = static_cast<float>(checked_int("low", low, -128, 0));
  format.high = static_cast<float>(checked_int("high", high, 1, 127));
  const float* weights = nullptr;
  if (!importance.is_none()) weights = view<float>("importance", importance.cast<py::array>(), {{"in", inputs}});
  int8_t* numbers = writable_view<int8_t>("whole", whole, {{"in", inputs}, {"out", outputs}});
  float* steps = writable_view<float>("scales", scales, {{"blocks", inputs / block}, {"out", outputs}});
  const int32_t count = checked_int("threads", threads, 1, 1 << 10);
  py::gil_scoped_release release;
  ualm::quantize_blocks(values, inputs, outputs, format, weights, numbers, steps, count);
}

py::array_t<float> map_f32(const py::array_t<float, py::array::c_style>& values, float (*function)(float)) {
  py::array_t<float> out(values.request().shape);
  for (py::ssize_t i = 0; i < values.size(); ++i) out.mutable_data()[i] = function(values.data()[i]);
  return out;
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  using namespace py::literals;
  module.doc() = "The native parts of ualm: the CPU frame sampler and a read of memory. Shapes, dtypes and errors: _native.pyi.";
  module.attr("CUDA_ARCHITECTURES") = UALM_CUDA_ARCHITECTURES;
  module.attr("STOP") = static_cast<int>(ualm::kStop);
  module.attr("LIMIT") = static_cast<int>(ualm::kLimit);
  module.attr("LATENT") = static_cast<int>(ualm::kLatent);

  py::class_<PySampler>(module, "FrameSampler")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, py::array, py::array, py::array>(), py::kw_only(),
           "codebook_size"_a, "text_size"_a, "audio_base"_a, "text_base"_a, "embedding"_a.noconvert(),
           "rvq_table"_a.noconvert(), "rvq_bias"_a.noconvert())
      .def("begin_audio", &PySampler::begin_audio, py::kw_only(), "mode"_a, "temperature"_a, "top_k"_a, "top_p"_a,
           "guidance"_a, "max_steps"_a, "seed"_a, "segment"_a)
      .def("begin_text", &PySampler::begin_text, py::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "guidance"_a,
           "max_steps"_a, "seed"_a, "segment"_a)
      .def("step", &PySampler::step, "logits"_a.noconvert(), "row_out"_a.noconvert(), "embedding_out"_a.noconvert(),
           "latent_out"_a.noconvert())
      .def("embed", &PySampler::embed, "rows"_a.noconvert(), "out"_a.noconvert())
      .def_property_readonly("row", &PySampler::row)
      .def_property_readonly("hidden_size", &PySampler::hidden_size)
      .def_property_readonly("latent_size", &PySampler::latent_size)
      .def_property_readonly("audio_logits", &PySampler::audio_logits)
      .def_property_readonly("text_logits", &PySampler::text_logits);

  module.def("codes_to_latents", &codes_to_latents, "codes"_a.noconvert(), "rvq_table"_a.noconvert(),
             "rvq_bias"_a.noconvert(), "out"_a.noconvert());
  module.def("quantize_blocks", &quantize_blocks, "matrix"_a.noconvert(), py::kw_only(), "block"_a,
             "divisors"_a.noconvert(), "low"_a, "high"_a, "importance"_a, "whole"_a.noconvert(), "scales"_a.noconvert(),
             "threads"_a);
  module.def("read_once", &read_once, "words"_a.noconvert(), "threads"_a, "kernel"_a = "portable");
  module.attr("READ_KERNELS") = read_kernel_names();
  module.def("core_round_trip", &core_round_trip, "turns"_a);
  module.def(
      "philox",
      [](std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> counter, std::tuple<uint32_t, uint32_t> key) {
        const auto [c0, c1, c2, c3] = counter;
        const ualm::Philox4 random = ualm::philox4x32_10({{c0, c1, c2, c3}}, std::get<0>(key), std::get<1>(key));
        return py::make_tuple(random.word[0], random.word[1], random.word[2], random.word[3]);
      },
      "counter"_a, "key"_a);
  module.def(
      "log_f32", [](const py::array_t<float, py::array::c_style>& values) { return map_f32(values, ualm::log_f32); },
      "values"_a.noconvert());
  module.def(
      "exp_f32", [](const py::array_t<float, py::array::c_style>& values) { return map_f32(values, ualm::exp_f32); },
      "values"_a.noconvert());
  module.def("gumbel_of_bits", &ualm::gumbel_of_bits, "bits"_a);
  module.def("gumbel", &ualm::gumbel_noise, "seed"_a, "segment"_a, "row"_a, "stream"_a, "id"_a);
}
