// Arrays as Python passes them: checked, never converted or copied. Another dtype is a TypeError, anything else that
// does not fit a ValueError.
#pragma once

#include <pybind11/numpy.h>

#include <string>

#include "python/arguments.h"

namespace ualm::python {

namespace py = pybind11;

inline std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    text += (axis != 0 ? ", " : "") + std::to_string(array.shape(axis));
  }
  return text + "]";
}

[[noreturn]] inline void refuse_dtype(const std::string& name, const py::array& array, const std::string& wanted) {
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

}  // namespace ualm::python
