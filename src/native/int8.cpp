// Sixteen running sums a dot product: element i goes to lane i mod 16, a short last step is padded with zeros,
// and the lanes are added in the tree (i, i+8), (i, i+4), (i, i+2), (i, i+1). Decoding is bound by the bytes
// of `weight`, so each byte is read and widened once for up to four rows of x; eight independent accumulator
// registers hide the latency of the multiply-add, and lines are fetched ahead as one stream.
#include "int8.h"

#include <algorithm>
#include <cstring>

#include "pool.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define GRISTMILL_X86 1
#include <immintrin.h>
#else
#define GRISTMILL_X86 0
#endif

namespace gristmill {
namespace {

constexpr size_t kLanes = 16;
// A chunk smaller than this costs more to hand to another thread than to compute.
constexpr size_t kChunkBytes = 32 * 1024;

// Sizes and arrays of one call; `tile` computes weight rows [row, row + R) times x rows [m, m + M).
struct Problem {
  const int8_t* weight;
  const float* scale;
  const float* x;
  float* y;
  size_t out, in, rows;
};

// The last in % 16 elements of a row, padded with zeros to a whole step.
inline void pad(const int8_t* from, size_t count, int8_t* to) {
  std::memset(to, 0, kLanes);
  std::memcpy(to, from, count);
}
inline void pad(const float* from, size_t count, float* to) {
  std::memset(to, 0, kLanes * sizeof(float));
  std::memcpy(to, from, count * sizeof(float));
}

void scalar_rows(const Problem& p, size_t begin, size_t end) {
  for (size_t o = begin; o < end; ++o) {
    const int8_t* w = p.weight + o * p.in;
    for (size_t m = 0; m < p.rows; ++m) {
      const float* x = p.x + m * p.in;
      float sum[kLanes] = {};
      size_t i = 0;
      for (; i + kLanes <= p.in; i += kLanes)
        for (size_t lane = 0; lane < kLanes; ++lane) sum[lane] += float(w[i + lane]) * x[i + lane];
      for (size_t lane = 0; i + lane < p.in; ++lane) sum[lane] += float(w[i + lane]) * x[i + lane];
      for (size_t width = kLanes / 2; width > 0; width /= 2)
        for (size_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
      p.y[m * p.out + o] = sum[0] * p.scale[o];
    }
  }
}

#if GRISTMILL_X86
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define UNROLL _Pragma("GCC unroll 8")

// Rows lie end to end, so a group of R rows is one stretch of memory, though it is read at R places at once.
// The hardware follows R short streams poorly: fetching the stretch in its order of addresses, eight rows
// ahead, doubled the bandwidth from memory (docs/decisions.md). Past the end of the matrix it does nothing.
template <int R>
inline void fetch_ahead(const int8_t* row, size_t at, size_t in) {
  const char* stretch = reinterpret_cast<const char*>(row) + 8 * in + R * at;
  UNROLL for (int line = 0; line < (R + 3) / 4; ++line) _mm_prefetch(stretch + 64 * line, _MM_HINT_T0);
}

AVX2 inline float add_lanes(__m256 v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps(sum, sum, 1)));
}

template <int R, int M>
AVX2 inline void avx2_step(const int8_t* const (&w)[R], const float* const (&x)[M], size_t at,
                           __m256 (&low)[R][M], __m256 (&high)[R][M]) {
  __m256 x_low[M], x_high[M];
  UNROLL for (int m = 0; m < M; ++m) {
    x_low[m] = _mm256_loadu_ps(x[m] + at);
    x_high[m] = _mm256_loadu_ps(x[m] + at + 8);
  }
  UNROLL for (int r = 0; r < R; ++r) {
    const __m128i* bytes = reinterpret_cast<const __m128i*>(w[r] + at);
    const __m256 w_low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)));
    const __m256 w_high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w[r] + at + 8))));
    UNROLL for (int m = 0; m < M; ++m) {
      low[r][m] = _mm256_fmadd_ps(w_low, x_low[m], low[r][m]);
      high[r][m] = _mm256_fmadd_ps(w_high, x_high[m], high[r][m]);
    }
  }
}

template <int R, int M>
AVX2 void avx2_tile(const Problem& p, size_t row, size_t m0) {
  const int8_t* w[R];
  const float* x[M];
  __m256 low[R][M], high[R][M];
  for (int r = 0; r < R; ++r) w[r] = p.weight + (row + r) * p.in;
  for (int m = 0; m < M; ++m) x[m] = p.x + (m0 + m) * p.in;
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) low[r][m] = high[r][m] = _mm256_setzero_ps();
  size_t i = 0;
  for (; i + kLanes <= p.in; i += kLanes) {
    fetch_ahead<R>(w[0], i, p.in);
    avx2_step<R, M>(w, x, i, low, high);
  }
  if (i < p.in) {
    alignas(64) int8_t w_end[R][kLanes];
    alignas(64) float x_end[M][kLanes];
    for (int r = 0; r < R; ++r) pad(w[r] + i, p.in - i, w_end[r]), w[r] = w_end[r];
    for (int m = 0; m < M; ++m) pad(x[m] + i, p.in - i, x_end[m]), x[m] = x_end[m];
    avx2_step<R, M>(w, x, 0, low, high);
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m)
      p.y[(m0 + m) * p.out + row + r] =
          add_lanes(_mm256_add_ps(low[r][m], high[r][m])) * p.scale[row + r];
}

template <int R, int M>
AVX512 inline void avx512_step(const int8_t* const (&w)[R], const float* const (&x)[M], size_t at,
                               __m512 (&sum)[R][M]) {
  __m512 x_now[M];
  UNROLL for (int m = 0; m < M; ++m) x_now[m] = _mm512_loadu_ps(x[m] + at);
  UNROLL for (int r = 0; r < R; ++r) {
    const __m512 w_now = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(w[r] + at))));
    UNROLL for (int m = 0; m < M; ++m) sum[r][m] = _mm512_fmadd_ps(w_now, x_now[m], sum[r][m]);
  }
}

template <int R, int M>
AVX512 void avx512_tile(const Problem& p, size_t row, size_t m0) {
  const int8_t* w[R];
  const float* x[M];
  __m512 sum[R][M];
  for (int r = 0; r < R; ++r) w[r] = p.weight + (row + r) * p.in;
  for (int m = 0; m < M; ++m) x[m] = p.x + (m0 + m) * p.in;
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) sum[r][m] = _mm512_setzero_ps();
  size_t i = 0;
  for (; i + kLanes <= p.in; i += kLanes) {
    fetch_ahead<R>(w[0], i, p.in);
    avx512_step<R, M>(w, x, i, sum);
  }
  if (i < p.in) {
    alignas(64) int8_t w_end[R][kLanes];
    alignas(64) float x_end[M][kLanes];
    for (int r = 0; r < R; ++r) pad(w[r] + i, p.in - i, w_end[r]), w[r] = w_end[r];
    for (int m = 0; m < M; ++m) pad(x[m] + i, p.in - i, x_end[m]), x[m] = x_end[m];
    avx512_step<R, M>(w, x, 0, sum);
  }
  for (int r = 0; r < R; ++r)
    for (int m = 0; m < M; ++m) {
      const __m256 low = _mm512_castps512_ps256(sum[r][m]);
      const __m256 high = _mm512_extractf32x8_ps(sum[r][m], 1);
      p.y[(m0 + m) * p.out + row + r] = add_lanes(_mm256_add_ps(low, high)) * p.scale[row + r];
    }
}

// Weight rows in groups of R while they last, then one by one; every tile has R * M running sums.
#define ROWS(tile, R, M)                                  \
  {                                                       \
    size_t o = begin;                                     \
    for (; o + R <= end; o += R) tile<R, M>(p, o, m);     \
    for (; o < end; ++o) tile<1, M>(p, o, m);             \
  }

void avx2_rows(const Problem& p, size_t begin, size_t end) {
  size_t m = 0;
  for (; m + 4 <= p.rows; m += 4) ROWS(avx2_tile, 1, 4)
  for (; m + 2 <= p.rows; m += 2) ROWS(avx2_tile, 2, 2)
  for (; m < p.rows; ++m) ROWS(avx2_tile, 4, 1)
}

void avx512_rows(const Problem& p, size_t begin, size_t end) {
  size_t m = 0;
  for (; m + 4 <= p.rows; m += 4) ROWS(avx512_tile, 4, 4)
  for (; m + 2 <= p.rows; m += 2) ROWS(avx512_tile, 4, 2)
  for (; m < p.rows; ++m) ROWS(avx512_tile, 8, 1)
}
#endif

}  // namespace

bool supported(Isa isa) {
  if (isa == Isa::scalar) return true;
#if GRISTMILL_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
  return false;
}

Isa best_isa() {
  static const Isa best = supported(Isa::avx512) ? Isa::avx512
                          : supported(Isa::avx2) ? Isa::avx2
                                                 : Isa::scalar;
  return best;
}

void int8_linear(const int8_t* weight, const float* scale, const float* x, float* y, size_t out, size_t in,
                 size_t rows, int threads, Isa isa) {
  if (out == 0 || rows == 0) return;
  struct Call {
    Problem problem;
    size_t chunk_rows;
    void (*compute)(const Problem&, size_t, size_t);
  } call{{weight, scale, x, y, out, in, rows}, 0, scalar_rows};
#if GRISTMILL_X86
  if (isa == Isa::avx2) call.compute = avx2_rows;
  if (isa == Isa::avx512) call.compute = avx512_rows;
#endif
  // At most about four chunks a thread: enough to even out a busy core, few enough to cost nothing.
  const size_t least = std::max<size_t>(1, kChunkBytes / std::max<size_t>(1, in));
  const size_t even = out / (4 * size_t(std::max(threads, 1))) + 1;
  call.chunk_rows = (std::max(least, even) + 7) / 8 * 8;
  const size_t chunks = (out + call.chunk_rows - 1) / call.chunk_rows;
  parallel_chunks(
      threads, uint32_t(chunks),
      [](void* context, uint32_t chunk) {
        const Call& c = *static_cast<Call*>(context);
        const size_t begin = chunk * c.chunk_rows;
        c.compute(c.problem, begin, std::min(begin + c.chunk_rows, c.problem.out));
      },
      &call);
}

}  // namespace gristmill
