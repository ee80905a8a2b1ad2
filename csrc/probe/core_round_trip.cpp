#include "probe/core_round_trip.h"

#include <atomic>
#include <chrono>
#include <system_error>
#include <thread>

namespace ualm {

namespace {

// Turns before the clock starts: the second thread is on its way until the first of them.
constexpr int64_t kWarmUp = 100;
// Looks at the line before the core is given up, far more than a line takes between any two cores.
constexpr int kLooks = 10000;

void wait_for(const std::atomic<int64_t>& line, int64_t value) {
  for (int looks = 0; line.load(std::memory_order_acquire) != value;) {
    if (++looks == kLooks) {
      looks = 0;
      std::this_thread::yield();
    }
  }
}

}  // namespace

double core_round_trip(int64_t turns) {
  using Clock = std::chrono::steady_clock;
  // 128: some processors fetch lines of 64 bytes in pairs
  alignas(128) std::atomic<int64_t> line{0};
  std::thread partner;
  try {
    partner = std::thread([&] {
      for (int64_t turn = 0; turn < kWarmUp + turns; ++turn) {
        wait_for(line, 2 * turn + 1);
        line.store(2 * turn + 2, std::memory_order_release);
      }
    });
  } catch (const std::system_error&) {
    return -1.0;
  }
  Clock::time_point start;
  for (int64_t turn = 0; turn < kWarmUp + turns; ++turn) {
    if (turn == kWarmUp) start = Clock::now();
    line.store(2 * turn + 1, std::memory_order_release);
    wait_for(line, 2 * turn + 2);
  }
  const std::chrono::duration<double> spent = Clock::now() - start;
  partner.join();
  return spent.count() / static_cast<double>(turns);
}

}  // namespace ualm
