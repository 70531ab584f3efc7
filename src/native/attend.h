// Attention of a few queries over the paged cache (kernels.h says in which order everything is added).
//
// Queries that see the same keys are taken together, so that keys and values are loaded once for all of them.
// What a query does not see is not computed with: its sums are the same as if it were alone.
#pragma once

#include "functions.h"
#include "strips.h"

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
constexpr size_t kLine = 64;                        // bytes
constexpr size_t kKeysAhead = 8, kValuesAhead = 4;  // strips; 4 and 1 took 7 to 11% longer

struct Seen {
  size_t begin, end;  // positions
};

inline size_t least(size_t a, size_t b) { return a < b ? a : b; }
inline size_t most(size_t a, size_t b) { return a > b ? a : b; }

inline const unsigned char* keys_at(const Attend& a, const int32_t* table, size_t head, size_t p) {
  return a.cache.strip_of_keys(size_t(table[p / a.cache.block_size]), head, p % a.cache.block_size);
}
inline const unsigned char* values_at(const Attend& a, const int32_t* table, size_t head, size_t p) {
  return a.cache.strip_of_values(size_t(table[p / a.cache.block_size]), head, p % a.cache.block_size);
}

inline void fetch(const void* line) {
#if defined(__GNUC__)
  __builtin_prefetch(line, 0, 2);
#endif
}

// Scores of Q queries and G strips of keys from position `at` on. Blocks lie anywhere, which the hardware cannot
// foresee: strips of the positions in `all` that come later are fetched meanwhile, after the last keys the first values.
template <Kept kept, int Q, int G>
inline void score(const Attend& a, const int32_t* table, size_t head, const Query* queries, size_t at, Seen all,
                  float* const* to) {
  constexpr size_t bytes = kLanes * code_bits(kept) / 8;  // of one element
  const size_t C = a.cache.head_dim, begin = Keys<kept>::begin(C);
  Keys<kept> keys[G];
  const unsigned char* next[G];
  UNROLL for (int g = 0; g < G; ++g) {
    const size_t p = at + g * kLanes, then = p + kKeysAhead * kLanes, value = all.begin + (then - all.end);
    keys[g] = Keys<kept>(keys_at(a, table, head, p), C);
    next[g] = then < all.end    ? keys_at(a, table, head, then)
              : value < all.end ? values_at(a, table, head, value)
                                : keys_at(a, table, head, p);
    for (size_t line = 0; line < begin; line += kLine) fetch(next[g] + line);
    next[g] += begin;
  }
  V sum[Q][G];
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int g = 0; g < G; ++g) sum[q][g] = set(0.0f);
  const auto add = [&](size_t c, int half) {
    if ((c + half) * bytes % kLine == 0) UNROLL for (int g = 0; g < G; ++g) fetch(next[g] + (c + half) * bytes);
    UNROLL for (int i = 0; i < kParts; ++i) {
      Part k[G];
      UNROLL for (int g = 0; g < G; ++g) k[g] = keys[g].at(c, half, i);
      UNROLL for (int q = 0; q < Q; ++q) {
        const Part x = part(queries[q].q[c + half]);
        UNROLL for (int g = 0; g < G; ++g) sum[q][g].p[i] = part_fma(x, k[g], sum[q][g].p[i]);
      }
    }
  };
  for (size_t from = 0; from < C; from += kGroup) {
    UNROLL for (int g = 0; g < G; ++g) keys[g].group(from / kGroup);
    const size_t stop = least(C, from + kGroup);
    size_t c = from;
    for (; c + 2 <= stop; c += 2) add(c, 0), add(c, 1);
    if (c < stop) add(c, 0);
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
template <Kept kept, int Q, int W>
inline void gather(const Attend& a, const int32_t* table, size_t head, const float* const* shares, Seen seen,
                   float* const* sums, size_t width) {
  V sum[Q][W];
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int w = 0; w < W; ++w) sum[q][w] = load(sums[q] + width + w * kLanes);
  const size_t all = a.cache.value_width, begin = Keys<kept>::begin(all);
  constexpr size_t bytes = W * kLanes * code_bits(kept) / 8;
  for (size_t p = seen.begin; p < seen.end;) {
    const size_t strip = p / kLanes * kLanes, stop = least(seen.end, strip + kLanes);
    const Values<kept, W> values(values_at(a, table, head, p), width, all);
    const size_t then = strip + kValuesAhead * kLanes;
    const unsigned char* next = values_at(a, table, head, then < seen.end ? then : p);
    for (size_t line = 0; line < begin; line += kLine) fetch(next + line);
    next += begin + (width + (p - strip) * all) * code_bits(kept) / 8;
    for (; p < stop; ++p, next += all * code_bits(kept) / 8) {
      UNROLL for (size_t line = 0; line < bytes; line += kLine) fetch(next + line);
      UNROLL for (int i = 0; i < kParts; ++i) {
        Part v[W];
        UNROLL for (int w = 0; w < W; ++w) v[w] = values.at(p - strip, w, i);
        UNROLL for (int q = 0; q < Q; ++q) {
          const Part share = part(shares[q][p]);
          UNROLL for (int w = 0; w < W; ++w) sum[q][w].p[i] = part_fma(share, v[w], sum[q][w].p[i]);
        }
      }
    }
  }
  UNROLL for (int q = 0; q < Q; ++q) UNROLL for (int w = 0; w < W; ++w) store(sums[q] + width + w * kLanes, sum[q][w]);
}

template <Kept kept, int Q>
inline void gather_all(const Attend& a, const int32_t* table, size_t head, const float* const* shares, Seen seen,
                       float* const* sums) {
  if (seen.begin >= seen.end) return;
  constexpr int few = kept == Kept::int4 ? kGroup / kLanes : 1, many = kWidths < few ? few : kWidths;
  size_t width = 0;
  const size_t all = a.cache.value_width;
  for (; width + many * kLanes <= all; width += many * kLanes)
    gather<kept, Q, many>(a, table, head, shares, seen, sums, width);
  for (; width < all; width += few * kLanes) gather<kept, Q, few>(a, table, head, shares, seen, sums, width);
}

template <Kept kept, int Q>
void attend_queries(const Attend& a, const int32_t* table, size_t head, const Query* queries, float* scratch) {
  Seen seen[Q], common = {0, kFar};
  size_t begin = kFar, end = 0;
  for (int q = 0; q < Q; ++q) {
    const size_t stop = queries[q].position + 1;
    seen[q] = {a.window && stop > a.window ? stop - a.window : 0, stop};
    common = {most(common.begin, seen[q].begin), least(common.end, stop)};
    begin = least(begin, seen[q].begin), end = most(end, stop);
  }
  const size_t first = begin / kLanes * kLanes, width = a.cache.value_width;
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
    score<kept, Q, kGroups>(a, table, head, queries, p, {first, first + padded}, at);
  }
  for (; p < first + padded; p += kLanes) {
    for (int q = 0; q < Q; ++q) at[q] = scores[q] + (p - first);
    score<kept, Q, 1>(a, table, head, queries, p, {first, first + padded}, at);
  }
  for (int q = 0; q < Q; ++q) {
    total[q] = soften(scores[q], first, seen[q], queries[q].sink);
    for (size_t i = 0; i < width; i += kLanes) store(sums[q] + i, set(0.0f));
  }
  if (common.begin >= common.end) common = {end, end};  // windows that do not overlap: one by one
  for (int q = 0; q < Q; ++q)
    gather_all<kept, 1>(a, table, head, shares + q, {seen[q].begin, least(common.begin, seen[q].end)}, sums + q);
  gather_all<kept, Q>(a, table, head, shares, common, sums);
  for (int q = 0; q < Q; ++q) {
    gather_all<kept, 1>(a, table, head, shares + q, {most(common.end, seen[q].begin), seen[q].end}, sums + q);
    const size_t C = a.cache.head_dim;
    size_t i = 0;
    for (; i + kLanes <= C; i += kLanes) store(queries[q].out + i, load(sums[q] + i) / set(total[q]));
    if (i < C) store_first(queries[q].out + i, load(sums[q] + i) / set(total[q]), C - i);
  }
}

template <Kept kept>
void attend_all(const Attend& a, const int32_t* table, size_t head, const Query* queries, int count, float* scratch) {
  while (count >= kQueries) {
    attend_queries<kept, kQueries>(a, table, head, queries, scratch);
    queries += kQueries, count -= kQueries;
  }
  for (; count > 0; ++queries, --count) attend_queries<kept, 1>(a, table, head, queries, scratch);
}

void attend(const Attend& a, const int32_t* table, size_t head, const Query* queries, int count, float* scratch) {
  switch (a.cache.kept) {
    case Kept::float32: return attend_all<Kept::float32>(a, table, head, queries, count, scratch);
    case Kept::float16: return attend_all<Kept::float16>(a, table, head, queries, count, scratch);
    case Kept::int8: return attend_all<Kept::int8>(a, table, head, queries, count, scratch);
    case Kept::int4: return attend_all<Kept::int4>(a, table, head, queries, count, scratch);
  }
}

}  // namespace
}  // namespace gristmill
