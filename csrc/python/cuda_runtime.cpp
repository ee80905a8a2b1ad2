// The few calls of the CUDA runtime that the frame loop needs, for Python: devices, memory, streams, events, graphs.
// Addresses and handles are whole numbers. Nothing here runs before it is called: the module loads without a driver.
//
// Python's lock is let go in every call that may wait for the device or have the driver work for long: to begin, to
// allocate and free, to copy, to wait, to make a graph and to destroy one. It is kept where a call only puts a mark or a
// launch on a stream: those return at once, several times a frame, and to get the lock back from a thread that computes
// in Python can take 5 ms.
#include "python/cuda_module.h"

namespace py = pybind11;

namespace ualm::cuda {

namespace {

PyObject* cuda_error_type = nullptr;

cudaStream_t stream_of(Address stream) { return pointer_of<std::remove_pointer_t<cudaStream_t>>(stream); }
cudaEvent_t event_of(Address event) { return pointer_of<std::remove_pointer_t<cudaEvent_t>>(event); }
cudaGraphExec_t graph_of(Address graph) { return pointer_of<std::remove_pointer_t<cudaGraphExec_t>>(graph); }

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// How many devices there are, and if none, why.
py::tuple device_count() {
  int count = 0;
  cudaError_t error = cudaSuccess;
  {
    const py::gil_scoped_release released;
    error = cudaGetDeviceCount(&count);
    cudaGetLastError();  // or the next check would report it again
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return py::make_tuple(0, "the NVIDIA driver finds no device");
  }
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return py::make_tuple(0, "no NVIDIA driver was found");
    return py::make_tuple(0, "the NVIDIA driver is too old: it offers CUDA " + version_text(driver) +
                                 ", this build of ualm needs " + version_text(runtime) + "; update the driver");
  }
  if (error != cudaSuccess) return py::make_tuple(0, std::string("CUDA cannot start: ") + cudaGetErrorString(error));
  return py::make_tuple(count, "");
}

py::dict device_properties(int device) {
  cudaDeviceProp properties{};
  size_t free_bytes = 0, total_bytes = 0;
  {
    const py::gil_scoped_release released;
    check(cudaGetDeviceProperties(&properties, device), "read the device's properties");
    int before = 0;
    check(cudaGetDevice(&before), "ask for the current device");
    check(cudaSetDevice(device), "choose the device");
    const cudaError_t error = cudaMemGetInfo(&free_bytes, &total_bytes);
    check(cudaSetDevice(before), "choose the device");
    check(error, "ask for the device's memory");
  }
  py::dict found;
  found["name"] = properties.name;
  found["capability"] = py::make_tuple(properties.major, properties.minor);
  found["multiprocessors"] = properties.multiProcessorCount;
  found["memory_bytes"] = total_bytes;
  found["free_bytes"] = free_bytes;
  found["l2_bytes"] = properties.l2CacheSize;
  found["integrated"] = properties.integrated != 0;
  return found;
}

int version(cudaError_t (*ask)(int*)) {
  int found = 0;
  check(ask(&found), "ask for a version");
  return found;
}

void bind_memory(py::module_& module) {
  using namespace py::literals;
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def(
      "malloc",
      [](uint64_t bytes) {
        void* pointer = nullptr;
        check(cudaMalloc(&pointer, bytes), "allocate device memory");
        return address_of(pointer);
      },
      "bytes"_a, released);
  module.def(
      "free", [](Address pointer) { check(cudaFree(pointer_of<void>(pointer)), "free device memory"); }, "pointer"_a,
      released);
  module.def(
      "malloc_pinned",
      [](uint64_t bytes) {
        void* pointer = nullptr;
        void* seen = nullptr;
        {
          const py::gil_scoped_release for_others;
          check(cudaHostAlloc(&pointer, bytes, cudaHostAllocMapped | cudaHostAllocPortable), "allocate pinned memory");
          check(cudaHostGetDevicePointer(&seen, pointer, 0), "map pinned memory");
        }
        return py::make_tuple(address_of(pointer), address_of(seen));
      },
      "bytes"_a);
  module.def(
      "free_pinned", [](Address pointer) { check(cudaFreeHost(pointer_of<void>(pointer)), "free pinned memory"); },
      "pointer"_a, released);
  module.def(
      "pinned_view",
      [](Address pointer, uint64_t bytes) {
        return py::memoryview::from_memory(pointer_of<void>(pointer), static_cast<py::ssize_t>(bytes), false);
      },
      "pointer"_a, "bytes"_a);
  const auto define_copy = [&](const char* name, cudaMemcpyKind kind) {
    module.def(
        name,
        [kind](Address to, Address from, uint64_t bytes, Address stream) {
          check(cudaMemcpyAsync(pointer_of<void>(to), pointer_of<void>(from), bytes, kind, stream_of(stream)),
                "copy memory");
        },
        "to"_a, "from_"_a, "bytes"_a, "stream"_a, released);
  };
  define_copy("copy_to_device", cudaMemcpyHostToDevice);
  define_copy("copy_to_host", cudaMemcpyDeviceToHost);
  define_copy("copy_on_device", cudaMemcpyDeviceToDevice);
  module.def(
      "set_bytes",
      [](Address pointer, int value, uint64_t bytes, Address stream) {
        check(cudaMemsetAsync(pointer_of<void>(pointer), value, bytes, stream_of(stream)), "set memory");
      },
      "pointer"_a, "value"_a, "bytes"_a, "stream"_a, released);
}

void bind_streams(py::module_& module) {
  using namespace py::literals;
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def(
      "create_stream",
      [] {
        cudaStream_t stream = nullptr;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream");
        return address_of(stream);
      },
      released);
  module.def(
      "destroy_stream", [](Address stream) { check(cudaStreamDestroy(stream_of(stream)), "destroy a stream"); },
      "stream"_a, released);
  module.def(
      "synchronize", [](Address stream) { check(cudaStreamSynchronize(stream_of(stream)), "wait for a stream"); },
      "stream"_a, released);
  module.def(
      "create_event",
      [](bool timing) {
        cudaEvent_t event = nullptr;
        check(cudaEventCreateWithFlags(&event, timing ? cudaEventDefault : cudaEventDisableTiming), "create an event");
        return address_of(event);
      },
      py::kw_only(), "timing"_a = false);
  module.def(
      "destroy_event", [](Address event) { check(cudaEventDestroy(event_of(event)), "destroy an event"); }, "event"_a);
  module.def(
      "record_event",
      [](Address event, Address stream) {
        check(cudaEventRecord(event_of(event), stream_of(stream)), "record an event");
      },
      "event"_a, "stream"_a);
  module.def(
      "synchronize_event", [](Address event) { check(cudaEventSynchronize(event_of(event)), "wait for an event"); },
      "event"_a, released);
  module.def(
      "elapsed_ms",
      [](Address from, Address to) {
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, event_of(from), event_of(to)), "measure between events");
        return milliseconds;
      },
      "from_"_a, "to"_a);
}

void bind_graphs(py::module_& module) {
  using namespace py::literals;
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def(
      "begin_capture",
      [](Address stream) {
        check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal), "begin to capture");
      },
      "stream"_a);
  module.def(
      "end_capture",
      [](Address stream) {
        cudaGraph_t graph = nullptr;
        check(cudaStreamEndCapture(stream_of(stream), &graph), "end a capture");
        cudaGraphExec_t executable = nullptr;
        const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
        cudaGraphDestroy(graph);
        check(error, "make a graph of what was captured");
        return address_of(executable);
      },
      "stream"_a, released);
  module.def(
      "launch_graph",
      [](Address graph, Address stream) {
        check(cudaGraphLaunch(graph_of(graph), stream_of(stream)), "launch a graph");
      },
      "graph"_a, "stream"_a);
  module.def(
      "destroy_graph", [](Address graph) { check(cudaGraphExecDestroy(graph_of(graph)), "destroy a graph"); },
      "graph"_a, released);
}

}  // namespace

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  const std::string text =
      std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  const py::gil_scoped_acquire acquired;
  PyErr_SetString(cuda_error_type, text.c_str());
  throw py::error_already_set();
}

void bind_device(py::module_& module) {
  using namespace py::literals;
  cuda_error_type = PyErr_NewException("ualm.runtime._cuda.CudaError", PyExc_RuntimeError, nullptr);
  module.add_object("CudaError", py::handle(cuda_error_type));
  module.def("device_count", &device_count);
  module.def("device_properties", &device_properties, "device"_a);
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("driver_version", [] { return version(cudaDriverGetVersion); }, released);
  module.def("runtime_version", [] { return version(cudaRuntimeGetVersion); });
  module.def("set_device", [](int device) { check(cudaSetDevice(device), "choose the device"); }, "device"_a, released);
  bind_memory(module);
  bind_streams(module);
  bind_graphs(module);
}

}  // namespace ualm::cuda
