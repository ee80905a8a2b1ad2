// The runtime's calls on the CPU: memory is the host's, a stream runs what it is given at once, a graph records it.
// Environment variables describe the simulated machine: UALM_SHIM_DEVICES (1), UALM_SHIM_DRIVER (13000; 0: none),
// UALM_SHIM_CAPABILITY (9.0), UALM_SHIM_MEMORY (bytes, 8 GiB), UALM_SHIM_INTEGRATED (0), UALM_SHIM_WAIT (milliseconds
// that each call takes that may wait on a device, 0).
// Device memory is initialised to NaN, and a write beyond the end of an allocation is an error when it is freed.
#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

struct ShimGraph {
  std::vector<std::function<void()>> work;
};
struct ShimStream {
  ShimGraph* captured = nullptr;
};
struct ShimEvent {
  std::chrono::steady_clock::time_point recorded;
};

namespace {

constexpr int kRuntime = 13000;
constexpr size_t kGuard = 64;
constexpr unsigned char kFresh = 0xFF, kGuarded = 0xA7;

std::mutex lock;
std::map<void*, size_t> allocations;
size_t allocated = 0;
cudaError_t last_error = cudaSuccess;

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// For calls that wait for the device, or keep the driver busy for long.
void wait() {
  if (const int milliseconds = std::stoi(setting("UALM_SHIM_WAIT", "0"))) {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  }
}

size_t memory_bytes() { return std::stoull(setting("UALM_SHIM_MEMORY", "8589934592")); }

cudaError_t start() {
  if (std::stoi(setting("UALM_SHIM_DRIVER", "13000")) < kRuntime) return remember(cudaErrorInsufficientDriver);
  if (std::stoi(setting("UALM_SHIM_DEVICES", "1")) < 1) return remember(cudaErrorNoDevice);
  return cudaSuccess;
}

cudaError_t allocate(void** pointer, size_t bytes, bool device) {
  wait();
  if (const cudaError_t error = start()) return error;
  const std::lock_guard<std::mutex> guard(lock);
  if (device && allocated + bytes > memory_bytes()) return remember(cudaErrorMemoryAllocation);
  char* memory = static_cast<char*>(std::aligned_alloc(256, (bytes + kGuard + 255) / 256 * 256));
  if (memory == nullptr) return remember(cudaErrorMemoryAllocation);
  std::memset(memory, kFresh, bytes);
  std::memset(memory + bytes, kGuarded, kGuard);
  allocations[memory] = bytes;
  allocated += bytes;
  *pointer = memory;
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  wait();
  if (pointer == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> guard(lock);
  const auto found = allocations.find(pointer);
  if (found == allocations.end()) return remember(cudaErrorInvalidValue);
  const size_t bytes = found->second;
  bool intact = true;
  for (size_t i = 0; i < kGuard; ++i) intact = intact && static_cast<unsigned char*>(pointer)[bytes + i] == kGuarded;
  allocations.erase(found);
  allocated -= bytes;
  std::free(pointer);
  return intact ? cudaSuccess : remember(cudaErrorIllegalAddress);
}

}  // namespace

namespace ualm_shim {

void submit(void* stream, std::function<void()> work) {
  ShimStream* const on = static_cast<ShimStream*>(stream);
  if (on != nullptr && on->captured != nullptr) {
    on->captured->work.push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace ualm_shim

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : cudaGetErrorName(error);
}

cudaError_t cudaGetDeviceCount(int* count) {
  wait();
  if (const cudaError_t error = start()) return error;
  *count = std::stoi(setting("UALM_SHIM_DEVICES", "1"));
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count)) return error;
  if (device < 0 || device >= count) return remember(cudaErrorInvalidDevice);
  std::strcpy(properties->name, "host shim");
  const std::string capability = setting("UALM_SHIM_CAPABILITY", "9.0");
  properties->major = std::stoi(capability);
  properties->minor = std::stoi(capability.substr(capability.find('.') + 1));
  properties->multiProcessorCount = 1;
  properties->l2CacheSize = 1 << 20;
  properties->integrated = std::stoi(setting("UALM_SHIM_INTEGRATED", "0"));
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return start();
}
cudaError_t cudaSetDevice(int device) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count)) return error;
  return device >= 0 && device < count ? cudaSuccess : remember(cudaErrorInvalidDevice);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const std::lock_guard<std::mutex> guard(lock);
  *total_bytes = memory_bytes();
  *free_bytes = *total_bytes > allocated ? *total_bytes - allocated : 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  wait();
  *version = std::stoi(setting("UALM_SHIM_DRIVER", "13000"));
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntime;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) { return allocate(pointer, bytes, true); }
cudaError_t cudaFree(void* pointer) { return release(pointer); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return allocate(pointer, bytes, false); }
cudaError_t cudaHostGetDevicePointer(void** seen, void* pointer, unsigned) {
  *seen = pointer;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  wait();
  ualm_shim::submit(stream, [=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  wait();
  ualm_shim::submit(stream, [=] { std::memset(pointer, value, bytes); });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  wait();
  if (const cudaError_t error = start()) return error;
  *stream = new ShimStream;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  wait();
  if (stream == nullptr) return remember(cudaErrorInvalidResourceHandle);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  wait();
  return stream != nullptr && stream->captured != nullptr ? remember(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  // as CUDA: the default stream cannot be captured, nor one that already is
  if (stream == nullptr || stream->captured != nullptr) return remember(cudaErrorStreamCaptureUnsupported);
  stream->captured = new ShimGraph;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->captured == nullptr) return remember(cudaErrorInvalidValue);
  *graph = stream->captured;
  stream->captured = nullptr;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  if (const cudaError_t error = start()) return error;
  *event = new ShimEvent;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (event == nullptr) return remember(cudaErrorInvalidResourceHandle);
  ualm_shim::submit(stream, [=] { event->recorded = std::chrono::steady_clock::now(); });
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  wait();
  return event != nullptr ? cudaSuccess : remember(cudaErrorInvalidResourceHandle);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (from == nullptr || to == nullptr) return remember(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(to->recorded - from->recorded).count();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  wait();
  *executable = new ShimGraph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  wait();
  return cudaGraphDestroy(executable);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (executable == nullptr) return remember(cudaErrorInvalidResourceHandle);
  for (const std::function<void()>& work : executable->work) ualm_shim::submit(stream, work);
  return cudaSuccess;
}
