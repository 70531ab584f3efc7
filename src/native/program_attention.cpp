// Attention in a program: turn queries and keys, put keys and values into the cache, attend.
#include <algorithm>
#include <cstring>
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
  const size_t C = cache.head_dim, width = cache.value_width();
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
      for (size_t h = 0; h < cache.heads; ++h) {
        float* lane = cache.key_group(block, h, offset / kLanes * kLanes) + offset % kLanes;
        for (size_t c = 0; c < C; ++c) lane[c * kLanes] = k[h * C + c];
        float* row = cache.value_row(block, h, offset);
        std::memcpy(row, v + h * C, C * sizeof(float));
        std::memset(row + C, 0, (width - C) * sizeof(float));
      }
    }
  });
}

}  // namespace

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
      float* scratch = memory.floats(size_t(step.k.query_rows) * (seen + cache.value_width()));
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
