// ualm.runtime._native.testing: the parts of the sampler that only the tests look at one by one.
#include "core/gumbel.h"
#include "python/arrays.h"
#include "python/module.h"

namespace ualm::python {

namespace {

using namespace py::literals;

py::array_t<float> map_f32(const py::array_t<float, py::array::c_style>& values, float (*function)(float)) {
  py::array_t<float> out(values.request().shape);
  for (py::ssize_t i = 0; i < values.size(); ++i) out.mutable_data()[i] = function(values.data()[i]);
  return out;
}

}  // namespace

void bind_testing(py::module_& native) {
  py::module_ module = native.def_submodule("testing", "What only the tests look at. See _native.pyi.");
  module.def(
      "philox",
      [](std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> counter, std::tuple<uint32_t, uint32_t> key) {
        const auto [c0, c1, c2, c3] = counter;
        const Philox4 random = philox4x32_10({{c0, c1, c2, c3}}, std::get<0>(key), std::get<1>(key));
        return py::make_tuple(random.word[0], random.word[1], random.word[2], random.word[3]);
      },
      "counter"_a, "key"_a);
  module.def(
      "log_f32", [](const py::array_t<float, py::array::c_style>& values) { return map_f32(values, log_f32); },
      "values"_a.noconvert());
  module.def(
      "exp_f32", [](const py::array_t<float, py::array::c_style>& values) { return map_f32(values, exp_f32); },
      "values"_a.noconvert());
  module.def("gumbel_of_bits", &gumbel_of_bits, "bits"_a);
  module.def("gumbel", &gumbel_noise, "seed"_a, "segment"_a, "row"_a, "stream"_a, "id"_a);
}

}  // namespace ualm::python
