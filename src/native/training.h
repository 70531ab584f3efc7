// What a training step computes beside matrix products, forward and backward. Element types are fp32 or bf16 (all of
// an argument list the same, `T` below), statistics and sums fp32. Every result is the same whatever the threads.
// gristmill/kernels/training.py says what each function is.
#pragma once

#include "types.h"

namespace gristmill {

struct NormPass {
  Type type;
  size_t rows, width;
  const void* x;        // T [rows][width]
  const float* weight;  // [width]
  float* factor;        // [rows], 1 / rms: written forward, read backward
  float eps;
  const void* dy;  // backward: T [rows][width]
  void* out;       // T [rows][width]: y, or the gradient of x
  float* dweight;  // backward: [kParts][width], summed by parts of the rows; part 0 has the sum in the end
};
// Rows are summed in so many parts, however many threads there are.
constexpr size_t kNormParts = 16;

struct TurnPass {  // rotary positions; backward turns back
  Type type;
  size_t tokens, heads, width, half;  // x, out: T [tokens][heads][width], of which 2 · half turn
  const void *x, *cos, *sin;          // T [tokens][half]
  void* out;
  bool back;
};

struct SwigluPass {
  Type type;
  size_t count;
  const void *gate, *up, *dy;  // T [count]; dy null: forward
  void *out, *dup;             // T [count]; y, or the gradients of gate and up
};

struct LossPass {
  Type type;
  size_t rows, width;
  void* logits;            // T [rows][width]; their gradient takes their place, where it is wanted
  const int64_t* targets;  // [rows]
  float softcap, z_loss;   // softcap 0: none
  bool gradient;
  float *loss, *lse;  // [rows]
};

// Causal attention of fp32 rows of heads, [B][T][heads][width] with the heads of a token side by side.
struct AttendPass {
  size_t batch, tokens, heads, kv_heads, width;
  float scale;
  const float *q, *k, *v;
  const int32_t* first;  // [B][T]: the first key that a query sees; never less than its predecessor's. Null: key 0
  float *out, *lse;      // lse [B][heads][T]: written forward, read backward
  const float* dout;     // backward, and all below
  float *dq, *dk, *dv;
};

struct TrainingKernels {
  void (*norm)(const NormPass&, size_t begin, size_t end);                       // rows
  void (*norm_back)(const NormPass&, size_t part, size_t begin, size_t end);     // rows, a part's
  void (*turn)(const TurnPass&, size_t begin, size_t end);                       // tokens
  void (*swiglu)(const SwigluPass&, size_t begin, size_t end);                   // elements
  void (*loss)(const LossPass&, size_t begin, size_t end);                       // rows
  size_t (*attend_scratch)(const AttendPass&);                                   // floats
  void (*attend)(const AttendPass&, size_t row, size_t kv_head, float* scratch);  // forward, or backward with dout
};

const TrainingKernels& training_kernels(Isa isa);

void norm(Isa isa, const NormPass& pass, int threads);
void turn(Isa isa, const TurnPass& pass, int threads);
void swiglu(Isa isa, const SwigluPass& pass, int threads);
void loss(Isa isa, const LossPass& pass, int threads);
void attend(Isa isa, const AttendPass& pass, int threads);

// Loops run on the team of this GOMP_parallel from then on. PyTorch's own threads wait in a loop of their own for the
// next piece of work, and a second set of threads would have to share the cores with that.
void use_openmp(uintptr_t gomp_parallel);

}  // namespace gristmill
