// What the two halves of the Python module ualm.runtime._cuda share.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <string>

namespace ualm::cuda {

using Address = uint64_t;  // a pointer or a handle, as Python holds it: 0 is null

template <class T>
T* pointer_of(Address address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

inline Address address_of(const void* pointer) { return static_cast<Address>(reinterpret_cast<uintptr_t>(pointer)); }

// Throws _cuda.CudaError (a RuntimeError) unless `error` is cudaSuccess; `what` is the call in words.
void check(cudaError_t error, const char* what);

void bind_device(pybind11::module_& module);

}  // namespace ualm::cuda
