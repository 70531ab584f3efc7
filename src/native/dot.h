// Tiles of R weight rows times M rows of x: R * M running sums of sixteen lanes in registers.
//
// Decoding (M small) is bound by the bytes of the weights, so each is read and widened once and lines are fetched
// ahead as one stream; prefill (M large) is bound by the multiply-adds, so a tile is as large as the registers
// allow. Both operands are read along their rows, which is how they lie in memory: weights are never repacked.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace gristmill {
namespace {

// Weight rows of a tile for M rows of x.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr int weight_rows(int M) { return M <= 2 ? 8 : M <= 4 ? 6 : M == 5 ? 5 : 4; }
#elif defined(__AVX2__)
constexpr int kTileRows = 3;
constexpr int weight_rows(int M) { return M == 1 ? 4 : M == 2 ? 3 : 2; }
#else
constexpr int kTileRows = 2;
constexpr int weight_rows(int M) { return M == 1 ? 4 : 2; }
#endif

// Rows lie end to end, so a group of R rows is one stretch of memory, though it is read at R places at once, which
// the hardware follows poorly. Fetching the stretch that comes next in its order of addresses, into the second-level
// cache, reads at the speed of memory whatever the type and length of the rows (docs/decisions.md); the 4 KB beyond
// matter where rows are short. Past the end of the matrix it does nothing.
template <int R, class T>
inline void fetch_ahead(const T* group, size_t at, size_t in) {
#if defined(__GNUC__)
  const char* stretch = reinterpret_cast<const char*>(group + R * in + R * at) + 4096;
  constexpr int lines = (R * int(kLanes * sizeof(T)) + 63) / 64;
  UNROLL for (int line = 0; line < lines; ++line) __builtin_prefetch(stretch + 64 * line, 0, 2);
#endif
}

template <class T, int R, int M>
inline void step(const T* const (&w)[R], const float* x, V (&sum)[R][M]) {
  UNROLL for (int i = 0; i < kParts; ++i) {  // a part after the other: avx2 has too few registers for both
    Part x_now[M];
    UNROLL for (int m = 0; m < M; ++m) x_now[m] = part(x + m * kLanes + i * kPartLanes);
    UNROLL for (int r = 0; r < R; ++r) {
      const Part w_now = part(w[r] + i * kPartLanes);
      UNROLL for (int m = 0; m < M; ++m) sum[r][m].p[i] = part_fma(w_now, x_now[m], sum[r][m].p[i]);
    }
  }
}

inline void finish(const Dot& d, float sum, size_t row, int m) {
  float y = d.scale ? sum * d.scale[row] : sum;
  if (d.bias) y += d.bias[row];
  float* to = d.y + m * d.y_stride + row;
  *to = d.add ? *to + y : y;
}

template <class T, int R, int M>
void tile(const Dot& d, size_t row) {
  const T* const group = static_cast<const T*>(d.weight) + row * d.in;
  const T* w[R];
  UNROLL for (int r = 0; r < R; ++r) w[r] = group + r * d.in;
  V sum[R][M];
  UNROLL for (int r = 0; r < R; ++r) UNROLL for (int m = 0; m < M; ++m) sum[r][m] = set(0.0f);
  const float* x = d.x;
  size_t i = 0;
  for (; i + kLanes <= d.in; i += kLanes, x += M * kLanes) {
    fetch_ahead<R>(group, i, d.in);
    step<T, R, M>(w, x, sum);
    UNROLL for (int r = 0; r < R; ++r) w[r] += kLanes;
  }
  if (i < d.in) {
    alignas(64) T ends[R][kLanes];
    std::memset(static_cast<void*>(ends), 0, sizeof ends);
    for (int r = 0; r < R; ++r) std::memcpy(ends[r], w[r], (d.in - i) * sizeof(T)), w[r] = ends[r];
    step<T, R, M>(w, x, sum);
  }
  alignas(64) float sums[M][(R + 3) / 4 * 4];
  UNROLL for (int m = 0; m < M; ++m) {
    UNROLL for (int r = 0; r + 4 <= R; r += 4)
      sum_lanes(sum[r][m], sum[r + 1][m], sum[r + 2][m], sum[r + 3][m], sums[m] + r);
    if (R % 4) {
      constexpr int r = R / 4 * 4, last = R - 1;
      sum_lanes(sum[r][m], sum[r + 1 < R ? r + 1 : last][m], sum[r + 2 < R ? r + 2 : last][m], sum[last][m],
                sums[m] + r);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) finish(d, sums[m][r], row + r, m);
}

template <class T, int M>
void dot_rows(const Dot& d, size_t begin, size_t end) {
  constexpr int R = weight_rows(M);
  size_t row = begin;
  for (; row + R <= end; row += R) tile<T, R, M>(d, row);
  for (; row < end; ++row) tile<T, 1, M>(d, row);
}

template <class T>
void dot(const Dot& d, size_t begin, size_t end) {
  switch (d.rows) {
    case 1: return dot_rows<T, 1>(d, begin, end);
    case 2: return dot_rows<T, 2>(d, begin, end);
#if defined(__AVX2__) || defined(__AVX512F__)
    case 3: return dot_rows<T, 3>(d, begin, end);
#endif
#if defined(__AVX512F__)
    case 4: return dot_rows<T, 4>(d, begin, end);
    case 5: return dot_rows<T, 5>(d, begin, end);
    case 6: return dot_rows<T, 6>(d, begin, end);
#endif
  }
}

}  // namespace
}  // namespace gristmill
