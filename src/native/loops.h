// Loops over the pool with a lambda for a body.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "pool.h"

namespace gristmill {

// body(chunk) for each of [0, chunks).
template <class F>
void parallel(int threads, size_t chunks, const F& body) {
  parallel_chunks(
      threads, uint32_t(chunks),
      [](void* context, uint32_t chunk) { (*static_cast<const F*>(context))(size_t(chunk)); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// body(begin, end) for ranges that cover [0, count), each of at least `grain` elements: a shorter one costs more to
// hand to another thread than to compute.
template <class F>
void parallel_ranges(int threads, size_t count, size_t grain, const F& body) {
  const size_t even = count / (4 * size_t(std::max(threads, 1))) + 1;
  const size_t size = std::max(std::max<size_t>(grain, 1), even), chunks = (count + size - 1) / size;
  if (chunks <= 1) {
    if (count) body(size_t(0), count);
    return;
  }
  parallel(threads, chunks, [&](size_t chunk) { body(chunk * size, std::min(count, (chunk + 1) * size)); });
}

}  // namespace gristmill
