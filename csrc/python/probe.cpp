// What measures the machine, for Python: bench/meters/bandwidth.py and bench/meters/core_distance.py.
#include "probe/core_round_trip.h"
#include "probe/read_bandwidth.h"
#include "python/arrays.h"
#include "python/module.h"

namespace ualm::python {

namespace {

using namespace py::literals;

// The kernel of that name among those that this CPU can run.
const ReadKernel& read_kernel(const std::string& name) {
  int32_t count = 0;
  const ReadKernel* kernels = read_kernels(&count);
  std::string known;
  for (int32_t index = 0; index < count; ++index) {
    if (name == kernels[index].name) return kernels[index];
    known += (index == 0 ? "" : ", ") + std::string(kernels[index].name);
  }
  refuse("kernel = '" + name + "': this CPU runs " + known);
}

py::tuple read_kernel_names() {
  int32_t count = 0;
  const ReadKernel* kernels = read_kernels(&count);
  py::tuple names(count);
  for (int32_t index = 0; index < count; ++index) names[index] = py::str(kernels[index].name);
  return names;
}

py::tuple read_once(const py::array& words, int64_t threads, const std::string& kernel) {
  const uint64_t* data = view<uint64_t>("words", words, {{"n", -1}});
  const int32_t count = checked_int("threads", threads, 1, 1 << 14);
  const ReadKernel& chosen = read_kernel(kernel);
  ReadPass pass;
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

}  // namespace

void bind_probe(py::module_& module) {
  module.def("read_once", &read_once, "words"_a.noconvert(), "threads"_a, "kernel"_a = "portable");
  module.attr("READ_KERNELS") = read_kernel_names();
  module.def("core_round_trip", &core_round_trip, "turns"_a);
}

}  // namespace ualm::python
