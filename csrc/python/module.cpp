// Python module ualm.runtime._native, put together.
#include "python/module.h"

PYBIND11_MODULE(_native, module) {
  using namespace ualm::python;
  module.doc() =
      "The native parts of ualm: the CPU frame sampler and a read of memory. Shapes, dtypes and errors: _native.pyi.";
  module.attr("CUDA_ARCHITECTURES") = UALM_CUDA_ARCHITECTURES;
  bind_sampler(module);
  bind_quantize(module);
  bind_probe(module);
  bind_testing(module);
}
