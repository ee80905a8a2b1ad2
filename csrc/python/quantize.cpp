// Block quantisation for Python: what export/formats/blocks.py and export/quality/gptq.py call.
#include "cpu/quantize_blocks.h"

#include "python/arrays.h"
#include "python/module.h"

namespace ualm::python {

namespace {

using namespace py::literals;

void quantize_blocks(const py::array& matrix, int64_t block, const py::array& divisors, int64_t low, int64_t high,
                     const py::object& importance, py::array& whole, py::array& scales, int64_t threads) {
  const float* values = view<float>("matrix", matrix, {{"in", -1}, {"out", -1}});
  const int64_t inputs = matrix.shape(0), outputs = matrix.shape(1);
  if (block < 1 || inputs % block != 0) {
    refuse("block = " + std::to_string(block) + ": must divide the " + std::to_string(inputs) + " inputs");
  }
  BlockFormat format{};
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

}  // namespace

void bind_quantize(py::module_& module) {
  module.def("quantize_blocks", &quantize_blocks, "matrix"_a.noconvert(), py::kw_only(), "block"_a,
             "divisors"_a.noconvert(), "low"_a, "high"_a, "importance"_a, "whole"_a.noconvert(), "scales"_a.noconvert(),
             "threads"_a);
}

}  // namespace ualm::python
