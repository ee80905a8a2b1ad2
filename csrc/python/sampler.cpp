// The CPU's frame sampler for Python, the limits of its options and the words for what it finds wrong.
#include "cpu/frame_sampler.h"

#include <cstdio>

#include "python/arrays.h"
#include "python/module.h"

namespace ualm::python {

namespace {

using namespace py::literals;

Layout check_layout(int64_t codebook_size, int64_t text_size, int64_t audio_base, int64_t text_base,
                    int64_t vocabulary) {
  Layout layout{};
  layout.codebook_size = checked_int("codebook_size", codebook_size, 1, kInt32Max / 16);
  layout.text_size = checked_int("text_size", text_size, 1, kInt32Max / 2);
  // Above eos and eot: ids must rise with the columns of a head for "ties to the lower id" to hold.
  layout.audio_base = checked_int("audio_base", audio_base, kEot + 1, kInt32Max / 2);
  layout.text_base = checked_int("text_base", text_base, kEot + 1, kInt32Max / 2);
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

std::string fault_text(const StepResult& result) {
  char message[256] = "logits: cannot be drawn from";
  for (const FaultText& text : kFaultTexts) {
    if (text.fault == result.fault) std::snprintf(message, sizeof message, text.format, result.row, result.stream);
  }
  return message;
}

py::dict fault_formats() {
  py::dict formats;
  for (const FaultText& text : kFaultTexts) formats[py::int_(static_cast<int>(text.fault))] = text.format;
  return formats;
}

py::dict sampling_limits() {
  py::dict limits;
  const auto add = [&limits](const char* name, const auto& both) {
    limits[name] = py::make_tuple(both.least, both.most);
  };
  add("temperature", kTemperatureLimits);
  add("top_k", kTopKLimits);
  add("top_p", kTopPLimits);
  add("guidance", kGuidanceLimits);
  add("max_steps", kMaxStepsLimits);
  add("seed", kSeedLimits);
  add("segment", kSegmentLimits);
  return limits;
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
    begin(mode == "fixed" ? SegmentKind::kAudioFixed : SegmentKind::kAudioReference, max_steps,
          sampling_of(temperature, top_k, top_p, guidance, seed, segment));
  }

  void begin_text(double temperature, int64_t top_k, double top_p, double guidance, int64_t max_steps, uint64_t seed,
                  int64_t segment) {
    begin(SegmentKind::kText, max_steps, sampling_of(temperature, top_k, top_p, guidance, seed, segment));
  }

  int step(const py::array& logits, py::array& row_out, py::array& embedding_out, py::array& latent_out) {
    if (!sampler_.begun()) throw std::runtime_error("step: no segment has begun; call begin_audio or begin_text");
    const bool text = sampler_.segment().kind == SegmentKind::kText;
    const int64_t columns = text ? text_logits() : audio_logits();
    const float* rows = view<float>("logits", logits, {{"branches", branches_}, {"L", columns}});
    int32_t* row = writable_view<int32_t>("row_out", row_out, {{"streams", kStreams}});
    float* embedding = writable_view<float>("embedding_out", embedding_out, {{"H", hidden_size()}});
    float* latent = writable_view<float>("latent_out", latent_out, {{"D", latent_size()}});
    StepResult result;
    {
      py::gil_scoped_release release;
      result = sampler_.step(rows, branches_ == 2 ? rows + columns : nullptr, row, embedding, latent);
    }
    if (result.status == StepStatus::kEnded) {
      throw std::runtime_error("step: the segment has ended; call begin_audio or begin_text");
    }
    if (result.status == StepStatus::kBadLogits) refuse(fault_text(result));
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
  int64_t audio_logits() const { return audio_columns(sampler_.layout()); }
  int64_t text_logits() const { return text_columns(sampler_.layout()); }
  int64_t row() const { return sampler_.segment().row; }

 private:
  FrameSampler make(int64_t codebook_size, int64_t text_size, int64_t audio_base, int64_t text_base) const {
    Tables tables{};
    // numpy has no bfloat16: its bits come as uint16
    if (py::isinstance<py::array_t<uint16_t>>(embedding_)) {
      tables.embedding_number = Number::kBFloat16;
      tables.embedding = view<uint16_t>("embedding", embedding_, {{"N", -1}, {"H", -1}});
    } else if (py::isinstance<py::array_t<float>>(embedding_)) {
      tables.embedding_number = Number::kFloat32;
      tables.embedding = view<float>("embedding", embedding_, {{"N", -1}, {"H", -1}});
    } else {
      refuse_dtype("embedding", embedding_, "float32, or uint16 (the bits of bfloat16)");
    }
    tables.vocabulary = embedding_.shape(0);
    tables.hidden = embedding_.shape(1);
    const Layout layout = check_layout(codebook_size, text_size, audio_base, text_base, tables.vocabulary);
    tables.rvq = view<float>("rvq_table", rvq_table_, {{"streams", kStreams}, {"K", codebook_size}, {"D", -1}});
    tables.latent = rvq_table_.shape(2);
    tables.rvq_bias = view<float>("rvq_bias", rvq_bias_, {{"D", tables.latent}});
    return FrameSampler(layout, tables);
  }

  void begin(SegmentKind kind, int64_t max_steps, const Sampling& sampling) {
    sampler_.begin(kind, max_steps_of(max_steps, kind), sampling);
    branches_ = sampling.guidance > 1.0f || sampling.one_minus_guidance < 0.0f ? 2 : 1;
  }

  py::array embedding_, rvq_table_, rvq_bias_;
  FrameSampler sampler_;
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
    bad = latents_of_codes(table, bias, codebook_size, latent, values, count, latents);
  }
  if (bad >= 0) {
    refuse("codes[" + std::to_string(bad / kStreams) + ", " + std::to_string(bad % kStreams) + "] = " +
           std::to_string(values[bad]) + ": must be a code from 0 to " + std::to_string(codebook_size - 1));
  }
}

}  // namespace

void bind_sampler(py::module_& module) {
  module.attr("STOP") = static_cast<int>(kStop);
  module.attr("LIMIT") = static_cast<int>(kLimit);
  module.attr("LATENT") = static_cast<int>(kLatent);
  module.attr("FAULTS") = fault_formats();
  module.attr("SAMPLING_LIMITS") = sampling_limits();

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
}

}  // namespace ualm::python
