// Attention in a program: turn queries and keys, put keys and values into the cache, attend.
#include <algorithm>
#include <vector>

#include "loops.h"
#include "program.h"

namespace gristmill {
namespace {

constexpr size_t kTaskQueries = 16;          // heads times tokens that one thread takes at once
constexpr size_t kWorthSharing = 64 * 1024;  // multiply-adds below which one thread does it all

// Tokens [begin, end) of a request.
struct Task {
  size_t request, begin, end;
};

void remember(const AttentionSpec& spec, Step& step) {
  const Cache& cache = spec.cache;
  const size_t C = cache.head_dim;
  parallel_ranges(step.threads, step.rows, 16, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      float *q = step.row(spec.q, i), *k = step.row(spec.k, i), *v = step.row(spec.v, i);
      if (spec.rope >= 0) {
        const std::vector<float>&cos = step.cos[size_t(spec.rope)], &sin = step.sin[size_t(spec.rope)];
        const size_t half = cos.size() / step.batch.tokens_count;
        for (size_t h = 0; h < spec.heads; ++h)
          step.k.rotate(q + h * C, cos.data() + i * half, sin.data() + i * half, half);
        for (size_t h = 0; h < cache.heads; ++h)
          step.k.rotate(k + h * C, cos.data() + i * half, sin.data() + i * half, half);
      }
      const size_t slot = size_t(step.batch.slots[i]);
      const size_t block = slot / cache.block_size, offset = slot % cache.block_size;
      for (size_t h = 0; h < cache.heads; ++h) step.k.remember(cache, k + h * C, v + h * C, block, h, offset);
    }
  });
}

}  // namespace

Cache::Cache(uintptr_t keys, uintptr_t values, Kept kept, size_t block_size, size_t heads, size_t head_dim)
    : keys(reinterpret_cast<unsigned char*>(keys)),
      values(reinterpret_cast<unsigned char*>(values)),
      kept(kept),
      block_size(block_size),
      heads(heads),
      head_dim(head_dim) {
  const size_t groups = (head_dim + kGroup - 1) / kGroup;
  value_width = kept == Kept::int4 ? groups * kGroup : whole_lanes(head_dim);
  switch (kept) {
    case Kept::float32: key_strip = 64 * head_dim, value_strip = 64 * value_width; break;
    case Kept::float16: key_strip = 32 * head_dim, value_strip = 32 * value_width; break;
    case Kept::int8: key_strip = 64 + 16 * head_dim, value_strip = 64 + 16 * value_width; break;
    case Kept::int4: key_strip = 64 * groups + 16 * ((head_dim + 1) / 2), value_strip = 64 * groups + 8 * value_width;
  }
}

void Program::attention(AttentionSpec spec) {
  push("remember", [=](Step& step) { remember(spec, step); });
  push("attend", [=, sinks = Floats(spec.sinks, spec.heads)](Step& step) mutable {
    const Batch& batch = step.batch;
    const Cache& cache = spec.cache;
    const size_t C = cache.head_dim, group = spec.heads / cache.heads;
    const size_t tokens = std::max<size_t>(1, kTaskQueries / group);
    const Attend attend{cache, spec.window, spec.scale, spec.softcap};
    const float* sink = sinks.read(step.k);
    std::vector<Task> tasks;
    size_t work = 0;
    for (size_t r = 0; r < batch.requests; ++r) {
      const size_t begin = size_t(batch.starts[r]), end = size_t(batch.starts[r + 1]);
      // Backwards: late tokens see the most, and whoever is last should be last with little.
      for (size_t stop = end; stop > begin;) {
        const size_t start = stop - begin > tokens ? stop - tokens : begin;
        tasks.push_back({r, start, stop});
        work += (stop - start) * size_t(batch.positions[stop - 1] + 1);
        stop = start;
      }
    }
    const int threads = work * spec.heads * C * 2 < kWorthSharing ? 1 : step.threads;
    parallel(threads, tasks.size() * cache.heads, [&](size_t chunk) {
      const Task& task = tasks[chunk / cache.heads];
      const size_t head = chunk % cache.heads;
      const size_t seen = whole_lanes(size_t(batch.positions[task.end - 1]) + 1) + 2 * kLanes;
      static thread_local Scratch memory;
      float* scratch = memory.floats(size_t(step.k.query_rows) * (seen + cache.value_width));
      static thread_local std::vector<Query> queries;
      queries.clear();
      for (size_t i = task.begin; i < task.end; ++i)
        for (size_t h = head * group; h < (head + 1) * group; ++h)
          queries.push_back({step.row(spec.q, i) + h * C, step.row(spec.out, i) + h * C, size_t(batch.positions[i]),
                             sink ? sink + h : nullptr});
      step.k.attend(attend, batch.tables + task.request * batch.table_width, head, queries.data(),
                    int(queries.size()), scratch);
    });
  });
}

}  // namespace gristmill
