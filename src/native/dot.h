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

constexpr size_t kHalfStep = 512;  // elements

// Most rows of x in a tile, elements at once when x has many (Kernels::piece), and weight rows for M rows of x.
#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr size_t kPiece = 16 * 1024;
constexpr int weight_rows(int M) { return M <= 2 ? 8 : M <= 4 ? 6 : M == 5 ? 5 : 4; }
#elif defined(__AVX2__)
constexpr int kTileRows = 4;
constexpr size_t kPiece = 1024;
constexpr int weight_rows(int M) { return M == 1 || M == 3 ? 4 : 3; }
#else
constexpr int kTileRows = 2;
constexpr size_t kPiece = 1024;
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

// The multiply-adds of parts [First, First + Count) of the sixteen lanes, over elements [begin, end). Either the
// weights of a step or its x stay in registers, whichever are fewer.
template <class T, int R, int M, int First, int Count>
inline void run(const Dot& d, const T* group, size_t begin, size_t end, Part (&sum)[kParts][R][M]) {
  const T* w[R];
  UNROLL for (int r = 0; r < R; ++r) w[r] = group + r * d.in + begin;
  const float* x = d.x + begin * M;
  const auto step = [&] {
    UNROLL for (int i = First; i < First + Count; ++i) {
      Part held[R < M ? R : M];
      if (R < M) {
        UNROLL for (int r = 0; r < R; ++r) held[r] = part(w[r] + i * kPartLanes);
        UNROLL for (int m = 0; m < M; ++m) {
          const Part now = part(x + m * kLanes + i * kPartLanes);
          UNROLL for (int r = 0; r < R; ++r) sum[i][r][m] = part_fma(held[r], now, sum[i][r][m]);
        }
      } else {
        UNROLL for (int m = 0; m < M; ++m) held[m] = part(x + m * kLanes + i * kPartLanes);
        UNROLL for (int r = 0; r < R; ++r) {
          const Part now = part(w[r] + i * kPartLanes);
          UNROLL for (int m = 0; m < M; ++m) sum[i][r][m] = part_fma(now, held[m], sum[i][r][m]);
        }
      }
    }
  };
  size_t i = begin;
  for (; i + kLanes <= end; i += kLanes, x += M * kLanes) {
    if (First == 0) fetch_ahead<R>(group, i, d.in);
    step();
    UNROLL for (int r = 0; r < R; ++r) w[r] += kLanes;
  }
  if (i < end) {
    alignas(64) T ends[R][kLanes];
    std::memset(static_cast<void*>(ends), 0, sizeof ends);
    for (int r = 0; r < R; ++r) std::memcpy(ends[r], w[r], (end - i) * sizeof(T)), w[r] = ends[r];
    step();
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
  const T* group = static_cast<const T*>(d.weight) + row * d.in;
  float* carried = d.carry ? d.carry + (row - d.carry_row) * M * kLanes : nullptr;
  Part sum[kParts][R][M];
  UNROLL for (int i = 0; i < kParts; ++i) UNROLL for (int r = 0; r < R; ++r) UNROLL for (int m = 0; m < M; ++m)
    sum[i][r][m] = d.begin ? part(carried + (r * M + m) * kLanes + i * kPartLanes) : part(0.0f);
  if (kParts > 1 && R * M > 6) {
    // avx2 has sixteen registers: one half of the lanes, then the other, while what they read is in the first cache.
    for (size_t begin = d.begin; begin < d.end; begin += kHalfStep) {
      const size_t end = begin + kHalfStep < d.end ? begin + kHalfStep : d.end;
      run<T, R, M, 0, 1>(d, group, begin, end, sum);
      run<T, R, M, kParts - 1, 1>(d, group, begin, end, sum);
    }
  } else {
    run<T, R, M, 0, kParts>(d, group, d.begin, d.end, sum);
  }
  if (d.end < d.in) {
    UNROLL for (int i = 0; i < kParts; ++i) UNROLL for (int r = 0; r < R; ++r) UNROLL for (int m = 0; m < M; ++m)
      part_store(carried + (r * M + m) * kLanes + i * kPartLanes, sum[i][r][m]);
    return;
  }
  V whole[R + 3][M];
  UNROLL for (int r = 0; r < R + 3; ++r) UNROLL for (int m = 0; m < M; ++m) UNROLL for (int i = 0; i < kParts; ++i)
    whole[r][m].p[i] = sum[i][r < R ? r : R - 1][m];
  alignas(64) float sums[M][(R + 3) / 4 * 4];
  UNROLL for (int m = 0; m < M; ++m) UNROLL for (int r = 0; r < R; r += 4)
    sum_lanes(whole[r][m], whole[r + 1][m], whole[r + 2][m], whole[r + 3][m], sums[m] + r);
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
    case 4: return dot_rows<T, 4>(d, begin, end);
#endif
#if defined(__AVX512F__)
    case 5: return dot_rows<T, 5>(d, begin, end);
    case 6: return dot_rows<T, 6>(d, begin, end);
#endif
  }
}

}  // namespace
}  // namespace gristmill
