// Linear layers: the kernels' tiles shared out over threads.
#pragma once

#include "kernels.h"

namespace gristmill {

// y[m, o] = (scale[o] *) sum_i weight[o, i] x[m, i] (+ bias[o]); with `add` that is added to y.
struct Linear {
  Array weight;  // [out, in]
  const float* scale;
  const float* bias;
  size_t out;
  float* y;
  size_t y_stride;
  bool add;
};

// Several linear layers of the same rows x [rows, in], in one loop over the threads. The order of every sum
// depends on `in` alone (kernels.h).
void linear(const Kernels& k, const Linear* layers, size_t count, const float* x, size_t x_stride, size_t in,
            size_t rows, int threads);

}  // namespace gristmill
