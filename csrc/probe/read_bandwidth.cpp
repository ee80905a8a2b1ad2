#include "probe/read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

namespace ualm {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kLineWords = 8;

}  // namespace

ReadPass read_once(const uint64_t* words, int64_t count, int32_t threads, const ReadKernel& kernel) {
  const int64_t lines = count / kLineWords;
  std::vector<uint64_t> sums(threads, 0);
  std::vector<Clock::time_point> ends(threads);
  std::vector<std::thread> workers;
  std::atomic<int32_t> ready{0};
  std::atomic<int32_t> go{0};  // 1: read, -1: leave

  const auto work = [&](int32_t index) {
    const int64_t begin = lines * index / threads * kLineWords;
    const int64_t end = index + 1 == threads ? count : lines * (index + 1) / threads * kLineWords;
    ready.fetch_add(1);
    int32_t command;
    while ((command = go.load(std::memory_order_acquire)) == 0) std::this_thread::yield();
    if (command < 0) return;
    sums[index] = kernel.sum(words + begin, end - begin);
    ends[index] = Clock::now();
  };

  bool started = true;
  workers.reserve(threads);
  try {
    for (int32_t index = 0; index < threads; ++index) workers.emplace_back(work, index);
  } catch (const std::system_error&) {  // the machine gives no more threads
    started = false;
  }
  while (started && ready.load() < threads) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  go.store(started ? 1 : -1, std::memory_order_release);
  for (std::thread& worker : workers) worker.join();
  if (!started) return {0, -1.0};

  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return {sum, std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - start).count()};
}

}  // namespace ualm
