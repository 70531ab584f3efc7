// Attention of a few queries over the paged cache (kernels.h says in which order everything is added).
//
// Queries that see the same keys are taken together, so that keys and values are loaded once for all of them.
// What a query does not see is not computed with: its sums are the same as if it were alone.
#pragma once

#include "functions.h"

namespace gristmill {
namespace {

#if defined(__AVX512F__)
constexpr int kQueries = 4, kGroups = 4, kWidths = 4;
#elif defined(__AVX2__)
constexpr int kQueries = 2, kGroups = 2, kWidths = 2;
#else
constexpr int kQueries = 1, kGroups = 1, kWidths = 1;
#endif
constexpr size_t kFar = size_t(-1);

struct Seen {
  size_t begin, end;  // positions
};

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
inline size_t most(size_t a, size_t b) { return a > b ? a : b; }

inline const float* keys_at(const Attend& a, const int32_t* table, size_t head, size_t p) {
  return a.cache.key_group(size_t(table[p / a.cache.block_size]), head, p % a.cache.block_size);
}

inline void fetch(const float* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line, 0, 2);
#endif
}

// Scores of Q queries and G groups of sixteen keys from position `at` on. Blocks lie anywhere, which the hardware
// cannot foresee: the groups that come next, before `end`, are fetched meanwhile.
template <int Q, int G>
inline void score(const Attend& a, const int32_t* table, size_t head, const Query* queries, size_t at, size_t end,
                  float* const* to) {
  const float *keys[G], *next[G];
  UNROLL for (int g = 0; g < G; ++g) {
    const size_t p = at + g * kLanes, then = p + G * kLanes;
    keys[g] = keys_at(a, table, head, p);
    next[g] = then < end ? keys_at(a, table, head, then) : keys[g];
  }
  V sum[Q][G];
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int g = 0; g < G; ++g) sum[q][g] = set(0.0f);
  for (size_t c = 0; c < a.cache.head_dim; ++c) {
    UNROLL for (int i = 0; i < kParts; ++i) {
      Part k[G];
      UNROLL for (int g = 0; g < G; ++g) k[g] = part(keys[g] + c * kLanes + i * kPartLanes);
      if (i == 0) UNROLL for (int g = 0; g < G; ++g) fetch(next[g] + c * kLanes);
      UNROLL for (int q = 0; q < Q; ++q) {
        const Part x = part(queries[q].q[c]);
        UNROLL for (int g = 0; g < G; ++g) sum[q][g].p[i] = part_fma(x, k[g], sum[q][g].p[i]);
      }
    }
  }
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int g = 0; g < G; ++g) {
    V s = sum[q][g] * set(a.scale);
    if (a.softcap != 0.0f) s = set(a.softcap) * tanh(s / set(a.softcap));
    store(to[q] + g * kLanes, s);
  }
}

// Scores to shares of the softmax, unnormalized; returns their sum. `first` is the position of scores[0].
inline float soften(float* scores, size_t first, Seen seen, const float* sink) {
  const V hidden = set(-__builtin_inff());
  const size_t begin = seen.begin - first, end = seen.end - first;
  const size_t from = begin / kLanes * kLanes, last = (end - 1) / kLanes * kLanes;
  store(scores + from, select(first_lanes(begin - from), hidden, load(scores + from)));
  store(scores + last, select(first_lanes(end - last), load(scores + last), hidden));
  V highest = hidden;
  for (size_t i = from; i < end; i += kLanes) highest = max(load(scores + i), highest);
  float top = max_lanes(highest);
  if (sink && *sink > top) top = *sink;
  V sum = set(0.0f);
  for (size_t i = from; i < end; i += kLanes) {
    const V share = exp(load(scores + i) - set(top));
    store(scores + i, share);
    sum = sum + share;
  }
  float all = sum_lanes(sum);
  if (sink) {
    float lanes[kLanes];
    store(lanes, exp(set(*sink - top)));
    all += lanes[0];
  }
  return all;
}

// sum[q] += share * value of the positions seen, elements [0, W * 16) from `width` on.
template <int Q, int W>
inline void gather(const Attend& a, const int32_t* table, size_t head, const float* const* shares, Seen seen,
                   float* const* sums, size_t width) {
  V sum[Q][W];
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int w = 0; w < W; ++w) sum[q][w] = load(sums[q] + width + w * kLanes);
  const size_t size = a.cache.block_size, stride = a.cache.value_width();
  for (size_t p = seen.begin; p < seen.end;) {
    const size_t stop = least(seen.end, (p / size + 1) * size);
    const float* value = a.cache.value_row(size_t(table[p / size]), head, p % size) + width;
    const float* next = stop < seen.end ? a.cache.value_row(size_t(table[stop / size]), head, 0) + width : value;
    for (; p < stop; ++p, value += stride, next += stride) {
      UNROLL for (int w = 0; w < W; ++w) fetch(next + w * kLanes);
      UNROLL for (int i = 0; i < kParts; ++i) {
        Part v[W];
        UNROLL for (int w = 0; w < W; ++w) v[w] = part(value + w * kLanes + i * kPartLanes);
        UNROLL for (int q = 0; q < Q; ++q) {
          const Part share = part(shares[q][p]);
          UNROLL for (int w = 0; w < W; ++w) sum[q][w].p[i] = part_fma(share, v[w], sum[q][w].p[i]);
        }
      }
    }
  }
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int w = 0; w < W; ++w) store(sums[q] + width + w * kLanes, sum[q][w]);
}

template <int Q>
inline void gather_all(const Attend& a, const int32_t* table, size_t head, const float* const* shares, Seen seen,
                       float* const* sums) {
  if (seen.begin >= seen.end) return;
  size_t width = 0;
  const size_t all = a.cache.value_width();
  for (; width + kWidths * kLanes <= all; width += kWidths * kLanes)
    gather<Q, kWidths>(a, table, head, shares, seen, sums, width);
  for (; width < all; width += kLanes) gather<Q, 1>(a, table, head, shares, seen, sums, width);
}

template <int Q>
void attend_queries(const Attend& a, const int32_t* table, size_t head, const Query* queries, float* scratch) {
  Seen seen[Q], common = {0, kFar};
  size_t begin = kFar, end = 0;
  for (int q = 0; q < Q; ++q) {
    const size_t stop = queries[q].position + 1;
    seen[q] = {a.window && stop > a.window ? stop - a.window : 0, stop};
    common = {most(common.begin, seen[q].begin), least(common.end, stop)};
    begin = least(begin, seen[q].begin), end = most(end, stop);
  }
  const size_t first = begin / kLanes * kLanes, width = a.cache.value_width();
  const size_t padded = whole_lanes(end - first);
  float *scores[Q], *at[Q], *sums[Q], total[Q];
  const float* shares[Q];
  for (int q = 0; q < Q; ++q) {
    scores[q] = scratch + q * (padded + width);
    sums[q] = scores[q] + padded;
    shares[q] = scores[q] - first;
  }
  size_t p = first;
  for (; p + kGroups * kLanes <= first + padded; p += kGroups * kLanes) {
    for (int q = 0; q < Q; ++q) at[q] = scores[q] + (p - first);
    score<Q, kGroups>(a, table, head, queries, p, end, at);
  }
  for (; p < first + padded; p += kLanes) {
    for (int q = 0; q < Q; ++q) at[q] = scores[q] + (p - first);
    score<Q, 1>(a, table, head, queries, p, end, at);
  }
  for (int q = 0; q < Q; ++q) {
    total[q] = soften(scores[q], first, seen[q], queries[q].sink);
    for (size_t i = 0; i < width; i += kLanes) store(sums[q] + i, set(0.0f));
  }
  if (common.begin >= common.end) common = {end, end};  // windows that do not overlap: one by one
  for (int q = 0; q < Q; ++q)
    gather_all<1>(a, table, head, shares + q, {seen[q].begin, least(common.begin, seen[q].end)}, sums + q);
  gather_all<Q>(a, table, head, shares, common, sums);
  for (int q = 0; q < Q; ++q) {
    gather_all<1>(a, table, head, shares + q, {most(common.end, seen[q].begin), seen[q].end}, sums + q);
    const size_t C = a.cache.head_dim;
    size_t i = 0;
    for (; i + kLanes <= C; i += kLanes) store(queries[q].out + i, load(sums[q] + i) / set(total[q]));
    if (i < C) store_first(queries[q].out + i, load(sums[q] + i) / set(total[q]), C - i);
  }
}

void attend(const Attend& a, const int32_t* table, size_t head, const Query* queries, int count, float* scratch) {
  while (count >= kQueries) {
    attend_queries<kQueries>(a, table, head, queries, scratch);
    queries += kQueries, count -= kQueries;
  }
  for (; count > 0; ++queries, --count) attend_queries<1>(a, table, head, queries, scratch);
}

}  // namespace
}  // namespace gristmill
