// The loop's state is one 64-bit word, [generation:32 | chunks:16 | next chunk:16]. A thread takes a chunk by
// compare-and-swap on the whole word, so a thread that slept through a loop can never touch the next one's
// data: taking a chunk proves that the loop it belongs to is not finished, hence its `body` still stands.
//
// Decoding calls a kernel every few tens of microseconds; waking a sleeping thread costs as much. So workers
// spin for about 100 microseconds after a loop before they sleep.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace gristmill {
namespace {

constexpr int kSpins = 4000;
constexpr uint32_t kMaxChunks = 0xFFFF;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

struct Pool {
  std::mutex loop;  // held by the thread whose loop is being shared out
  std::atomic<uint64_t> state{0};
  std::atomic<uint32_t> done{0};
  void (*body)(void*, uint32_t) = nullptr;
  void* context = nullptr;
  int workers = 0;  // guarded by `loop`

  std::mutex sleep;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};

  // Takes and runs chunks until none is left; returns the state seen last.
  uint64_t work() {
    uint64_t seen = state.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t chunks = uint32_t(seen >> 16) & 0xFFFF, next = uint32_t(seen) & 0xFFFF;
      if (next >= chunks) return seen;
      if (state.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) {
        body(context, next);
        done.fetch_add(1, std::memory_order_release);
        seen = state.load(std::memory_order_acquire);
      }
    }
  }

  void serve() {
    for (;;) {
      const uint64_t seen = work();
      bool fresh = false;
      for (int spin = 0; spin < kSpins && !fresh; ++spin) {
        relax();
        fresh = state.load(std::memory_order_relaxed) != seen;
      }
      if (fresh) continue;
      std::unique_lock<std::mutex> lock(sleep);
      sleepers.fetch_add(1);
      wake.wait(lock, [&] { return state.load() != seen; });
      sleepers.fetch_sub(1);
    }
  }

  void share(int threads, uint32_t chunks, void (*run)(void*, uint32_t), void* with) {
    for (; workers < threads - 1; ++workers) std::thread([this] { serve(); }).detach();
    body = run;
    context = with;
    done.store(0, std::memory_order_relaxed);
    const uint64_t generation = (state.load(std::memory_order_relaxed) >> 32) + 1;
    state.store(generation << 32 | uint64_t(chunks) << 16);  // sequentially consistent, as is `sleepers`
    if (sleepers.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep);
      wake.notify_all();
    }
    work();
    // A worker that lost its core in the middle of a chunk gets it back sooner when we give up ours.
    for (int spin = 0; done.load(std::memory_order_acquire) != chunks; ++spin)
      spin < kSpins ? relax() : std::this_thread::yield();
  }
};

// Never destroyed: its detached threads may be waiting on it while the process ends.
std::atomic<Pool*> pool{nullptr};

Pool* current() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool.store(new Pool);
#if !defined(_WIN32)
    // A forked child has none of its parent's workers: it starts with a pool of its own.
    pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });
#endif
  });
  return pool.load();
}

}  // namespace

void parallel_chunks(int threads, uint32_t chunks, void (*body)(void*, uint32_t), void* context) {
  if (threads > 1 && chunks > 1 && chunks <= kMaxChunks) {
    Pool* shared = current();
    std::unique_lock<std::mutex> lock(shared->loop, std::try_to_lock);
    if (lock.owns_lock()) {
      shared->share(std::min(threads, int(chunks)), chunks, body, context);
      return;
    }
  }
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) body(context, chunk);
}

}  // namespace gristmill
