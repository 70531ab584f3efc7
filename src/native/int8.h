// 8-bit weights times fp32 activations.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gristmill {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

// Whether this build holds the instruction set's code and this machine can run it.
bool supported(Isa isa);
// The widest one supported.
Isa best_isa();

// y[m, o] = scale[o] * sum_i weight[o, i] * x[m, i], with weight [out, in] int8, scale [out], x [rows, in],
// y [rows, out], all dense row-major.
//
// The order of every sum depends on `in` alone: not on threads, rows or the place of a row among others.
// avx2 and avx512 give equal bits (16 lanes, fused multiply-add, one tree); scalar rounds each product.
void int8_linear(const int8_t* weight, const float* scale, const float* x, float* y, size_t out, size_t in,
                 size_t rows, int threads, Isa isa);

}  // namespace gristmill
