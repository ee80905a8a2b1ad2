// Runs a block's threads: as fibers that take turns, or as threads of the operating system (UALM_SHIM_THREADS).
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

thread_local uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim, gridDim;

namespace ualm_shim {

namespace {

constexpr unsigned kWarp = 32;

unsigned lane() { return threadIdx.x % kWarp; }
unsigned warp() { return threadIdx.x / kWarp; }

// Shuffled values alternate between two sets of slots, so that writing the next one cannot race with reading the last.
struct Slots {
  uint64_t values[2][kWarp];
};
Slots slots[32];
int counts[3];  // of votes, used in rotation; the one after next is cleared

}  // namespace

#if defined(UALM_SHIM_THREADS)

void fail(const char* what) {
  std::fprintf(stderr, "host shim: %s\n", what);
  std::abort();
}

}  // namespace ualm_shim

#include <pthread.h>

#include <memory>
#include <thread>

namespace ualm_shim {

namespace {

pthread_barrier_t block_waits, warp_waits[32];
thread_local unsigned shuffles, votes;

}  // namespace

void block_barrier() { pthread_barrier_wait(&block_waits); }
void warp_barrier() { pthread_barrier_wait(&warp_waits[warp()]); }

uint64_t exchange(uint64_t mine, int distance) {
  Slots& shared = slots[warp()];
  const unsigned set = shuffles++ % 2;
  shared.values[set][lane()] = mine;
  warp_barrier();
  return shared.values[set][lane() ^ static_cast<unsigned>(distance)];
}

int block_count(int predicate) {
  const unsigned turn = votes++;
  __atomic_fetch_add(&counts[turn % 3], predicate != 0, __ATOMIC_RELAXED);
  block_barrier();
  if (threadIdx.x == 0) __atomic_store_n(&counts[(turn + 1) % 3], 0, __ATOMIC_RELAXED);
  const int count = __atomic_load_n(&counts[turn % 3], __ATOMIC_RELAXED);
  block_barrier();
  return count;
}

void run_grid(dim3 grid, dim3 block, const std::function<void()>& thread) {
  gridDim = grid;
  blockDim = block;
  for (unsigned at = 0; at < grid.x * grid.y; ++at) {
    blockIdx = {at % grid.x, at / grid.x, 0};
    std::memset(counts, 0, sizeof counts);
    pthread_barrier_init(&block_waits, nullptr, block.x);
    for (unsigned w = 0; w < block.x / kWarp; ++w) pthread_barrier_init(&warp_waits[w], nullptr, kWarp);
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < block.x; ++t) {
      threads.emplace_back([&, t] {
        threadIdx = {t, 0, 0};
        shuffles = votes = 0;
        thread();
      });
    }
    for (std::thread& each : threads) each.join();
    pthread_barrier_destroy(&block_waits);
    for (unsigned w = 0; w < block.x / kWarp; ++w) pthread_barrier_destroy(&warp_waits[w]);
  }
}

#else

void fail(const char* what) { throw std::runtime_error(std::string("host shim: ") + what); }

}  // namespace ualm_shim

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <string>

namespace ualm_shim {

namespace {

constexpr size_t kStack = 256 * 1024;  // address space; a page is taken when touched
constexpr unsigned kMaxThreads = 1024;

struct Meeting {
  unsigned arrived = 0, generation = 0;
};

struct Fiber {
  jmp_buf resume;
  bool begun, done;
  unsigned shuffles;
};

Fiber fibers[kMaxThreads];
jmp_buf scheduler;
ucontext_t first_context[2];  // of the scheduler and of the fiber that begins: used for the first switch only
char* stacks = nullptr;
unsigned current;
unsigned long long progress;  // barriers passed and threads ended: a round without any is a deadlock
Meeting block_meeting, warp_meetings[32];
unsigned votes;
const std::function<void()>* body;
bool running = false;

void yield() {
  if (_setjmp(fibers[current].resume) == 0) _longjmp(scheduler, 1);
}

void fiber_main() {
  (*body)();
  fibers[current].done = true;
  ++progress;
  _longjmp(scheduler, 1);
}

void meet(Meeting& meeting, unsigned size) {
  const unsigned generation = meeting.generation;
  if (++meeting.arrived == size) {
    meeting.arrived = 0;
    ++meeting.generation;
    ++progress;
    return;
  }
  while (meeting.generation == generation) yield();
}

void resume(unsigned at) {
  Fiber& fiber = fibers[at];
  current = at;
  threadIdx = {at, 0, 0};
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.resume, 1);
  fiber.begun = true;
  getcontext(&first_context[1]);
  first_context[1].uc_stack.ss_sp = stacks + at * kStack;
  first_context[1].uc_stack.ss_size = kStack;
  first_context[1].uc_link = nullptr;
  makecontext(&first_context[1], fiber_main, 0);
  swapcontext(&first_context[0], &first_context[1]);
}

void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) fibers[t] = {};
  block_meeting = {};
  for (Meeting& meeting : warp_meetings) meeting = {};
  std::memset(counts, 0, sizeof counts);
  votes = 0;
  for (unsigned alive = threads; alive > 0;) {
    const unsigned long long before = progress;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].done) continue;
      resume(t);
      alive -= fibers[t].done;
    }
    if (progress == before) fail("a barrier, a shuffle or a vote was not reached by all threads");
  }
}

}  // namespace

void block_barrier() { meet(block_meeting, blockDim.x); }
void warp_barrier() { meet(warp_meetings[warp()], kWarp); }

uint64_t exchange(uint64_t mine, int distance) {
  Slots& shared = slots[warp()];
  const unsigned set = fibers[current].shuffles++ % 2;
  shared.values[set][lane()] = mine;
  warp_barrier();
  return shared.values[set][lane() ^ static_cast<unsigned>(distance)];
}

int block_count(int predicate) {
  const unsigned turn = block_meeting.generation % 3;
  counts[turn] += predicate != 0;
  block_barrier();
  const int count = counts[turn];
  block_barrier();
  counts[turn] = 0;
  return count;
}

void run_grid(dim3 grid, dim3 block, const std::function<void()>& thread) {
  if (block.x % kWarp != 0 && block.x != 1) fail("a block must consist of whole warps");
  if (block.x > kMaxThreads || block.y != 1 || block.z != 1 || grid.z != 1)
    fail("a launch of this shape is not supported");
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535) fail("a grid of this shape cannot be launched");
  if (stacks == nullptr) {
    void* mapped =
        mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) fail("no address space for the stacks");
    stacks = static_cast<char*>(mapped);
  }
  if (running) fail("launched from two threads at once");
  struct Running {
    Running() { running = true; }
    ~Running() { running = false; }
  } const mark;
  gridDim = grid;
  blockDim = block;
  body = &thread;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {x, y, 0};
      run_block(block.x);
    }
  }
}

#endif

}  // namespace ualm_shim
