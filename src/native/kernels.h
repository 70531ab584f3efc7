// The kernels of one instruction set as a table. kernels_*.cpp each compile kernels.inc for one of them.
//
// Every result is a function of one row (of x, or of a query and the keys it sees) in a fixed order of additions:
// it does not depend on other rows, on threads, or on how work is cut into calls. avx2 and avx512 agree in every bit.
#pragma once

#include "cache.h"
#include "types.h"

namespace gristmill {

enum class Activation : int { silu = 0, gelu = 1, gelu_tanh = 2, swiglu_clamped = 3 };
enum class Norm : int { rms = 0, rms_plus_one = 1, layer = 2 };
enum class Function : int { exp = 0, tanh = 1, erf = 2 };

// y[m, o] = scale[o] * sum_i weight[o, i] * x[m, i] + bias[o], or that added to y. Element i goes to lane i mod 16,
// one fused multiply-add a step; then the lanes are added in a tree (vec.h).
struct Dot {
  const void* weight;  // [out, in]
  size_t in;
  const float* x;  // packed [steps of 16 elements][rows][16], the last step padded with zeros
  int rows;        // 1 to Kernels::tile_rows
  float* y;
  size_t y_stride;
  const float* scale;  // [out]; null: 1
  const float* bias;   // [out]; null: 0
  bool add;
  // Elements [begin, end) of the rows are computed with, multiples of 16 but for in itself. Unless that is all, sums
  // are kept from one call to the next in `carry`: [weight rows from carry_row on][rows][16].
  size_t begin, end;
  float* carry;
  size_t carry_row;
};

// Scores are scale * (q · k), a chain over the elements; softmax in two passes with sums by position mod 16; then
// the values in the order of positions.
struct Attend {
  Cache cache;
  size_t window;        // positions that a query sees, its own included; 0: all
  float scale, softcap;  // softcap 0: none
};

// A query of one head: its position, where its vector lies and where the result goes.
struct Query {
  const float* q;
  float* out;
  size_t position;
  const float* sink;  // a score without a value; null: none
};

struct Kernels {
  int tile_rows;   // most rows of x in a Dot
  // Elements at once of longer rows when x has many: so much of a tile of x stays in the first-level cache while a
  // block of weight rows passes by. avx512 has registers for larger tiles and the second level is fast enough.
  size_t piece;
  int query_rows;  // queries that `attend` takes at once
  void (*dot[4])(const Dot&, size_t begin, size_t end);  // by Type: weight rows [begin, end)
  void (*widen[4])(const void* from, float* to, size_t n);
  void (*norm)(Norm kind, const float* x, const float* weight, const float* bias, float eps, float* y, size_t n);
  // x is [head_dim]; pairs (i, i + half) are rotated.
  void (*rotate)(float* x, const float* cos, const float* sin, size_t half);
  void (*activate)(Activation kind, const float* gate, const float* up, float* y, size_t n);  // gate may be null
  void (*add)(const float* x, float* y, size_t n);                       // y += x
  void (*add_scaled)(const float* x, float factor, float* y, size_t n);  // y += factor x, rounded twice
  void (*scale)(float* x, float factor, size_t n);
  void (*softcap)(float* x, float cap, size_t n);
  void (*map)(Function f, const float* x, float* y, size_t n);
  // Put a head's key and value of a position into its block. Their form depends on nothing but themselves.
  void (*remember)(const Cache& cache, const float* key, const float* value, size_t block, size_t head, size_t offset);
  // Up to query_rows queries of one request and key-value head. scratch: query_rows * (positions + 32 + head_dim
  // rounded up) floats, positions rounded up to 16.
  void (*attend)(const Attend& a, const int32_t* table, size_t head, const Query* queries, int count, float* scratch);
};

// Whether this build holds the instruction set's code and this machine can run it.
bool supported(Isa isa);
// The widest one supported.
Isa best_isa();
// Null where not built.
const Kernels* kernels_of(Isa isa);

}  // namespace gristmill
