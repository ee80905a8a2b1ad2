// The parts of the Python module ualm.runtime._native, a file each: they check what comes in, hand pointers to the plain
// C++ below them, and turn status codes into exceptions. Nothing is computed here.
#pragma once

#include <pybind11/pybind11.h>

namespace ualm::python {

void bind_sampler(pybind11::module_& module);
void bind_quantize(pybind11::module_& module);
void bind_probe(pybind11::module_& module);
void bind_testing(pybind11::module_& module);

}  // namespace ualm::python
