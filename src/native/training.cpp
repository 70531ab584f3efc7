#include "training.h"

#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "loops.h"
#include "scratch.h"

namespace gristmill {

extern const TrainingKernels training_plain;
#if defined(GRISTMILL_X86)
extern const TrainingKernels training_avx2;
extern const TrainingKernels training_avx512;
#endif

const TrainingKernels& training_kernels(Isa isa) {
#if defined(GRISTMILL_X86)
  if (isa == Isa::avx2) return training_avx2;
  if (isa == Isa::avx512) return training_avx512;
#endif
  (void)isa;
  return training_plain;
}

namespace {

using Gomp = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<Gomp> gomp{nullptr};

// body(chunk) for each of [0, chunks), by whoever is free.
template <class F>
void share(int threads, size_t chunks, const F& body) {
  const Gomp team = gomp.load(std::memory_order_relaxed);
  if (!team || threads <= 1 || chunks <= 1) return parallel(threads, chunks, body);
  struct Work {
    const F& body;
    size_t chunks;
    std::atomic<size_t> next;
  } work{body, chunks, {0}};
  team(
      [](void* context) {
        Work& w = *static_cast<Work*>(context);
        for (size_t chunk; (chunk = w.next.fetch_add(1, std::memory_order_relaxed)) < w.chunks;) w.body(chunk);
      },
      &work, unsigned(threads), 0);
}

constexpr size_t kGrain = 16 * 1024;  // elements that are worth handing to another thread

// body(begin, end) for ranges that cover [0, count) items of `width` elements.
template <class F>
void share_ranges(int threads, size_t count, size_t width, const F& body) {
  const size_t least = std::max<size_t>(1, kGrain / std::max<size_t>(1, width));
  const size_t even = count / (4 * size_t(std::max(threads, 1))) + 1, size = std::max(least, even);
  share(threads, (count + size - 1) / size,
        [&](size_t chunk) { body(chunk * size, std::min(count, (chunk + 1) * size)); });
}

}  // namespace

void use_openmp(uintptr_t gomp_parallel) { gomp.store(reinterpret_cast<Gomp>(gomp_parallel)); }

void norm(Isa isa, const NormPass& pass, int threads) {
  const TrainingKernels& k = training_kernels(isa);
  if (!pass.dy)
    return share_ranges(threads, pass.rows, pass.width, [&](size_t begin, size_t end) { k.norm(pass, begin, end); });
  const size_t size = (pass.rows + kNormParts - 1) / kNormParts;
  share(threads, kNormParts, [&](size_t part) {
    k.norm_back(pass, part, std::min(pass.rows, part * size), std::min(pass.rows, (part + 1) * size));
  });
  for (size_t part = 1; part < kNormParts; ++part)
    for (size_t i = 0; i < pass.width; ++i) pass.dweight[i] += pass.dweight[part * pass.width + i];
}

void turn(Isa isa, const TurnPass& pass, int threads) {
  const TrainingKernels& k = training_kernels(isa);
  share_ranges(threads, pass.tokens, pass.heads * pass.width,
               [&](size_t begin, size_t end) { k.turn(pass, begin, end); });
}

void swiglu(Isa isa, const SwigluPass& pass, int threads) {
  const TrainingKernels& k = training_kernels(isa);
  const size_t pieces = (pass.count + kLanes - 1) / kLanes;
  share_ranges(threads, pieces, kLanes, [&](size_t begin, size_t end) {
    k.swiglu(pass, begin * kLanes, std::min(pass.count, end * kLanes));
  });
}

void loss(Isa isa, const LossPass& pass, int threads) {
  const TrainingKernels& k = training_kernels(isa);
  share_ranges(threads, pass.rows, pass.width, [&](size_t begin, size_t end) { k.loss(pass, begin, end); });
}

void attend(Isa isa, const AttendPass& pass, int threads) {
  const TrainingKernels& k = training_kernels(isa);
  share(threads, pass.batch * pass.kv_heads, [&](size_t task) {
    static thread_local Scratch scratch;
    k.attend(pass, task / pass.kv_heads, task % pass.kv_heads, scratch.floats(k.attend_scratch(pass)));
  });
}

}  // namespace gristmill
