// The last of the sampler's operations: temperature, min-p, top-k, top-p and the draw, or the likeliest token.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gristmill {

// One row's parameters. top_k 0 and top_p 1 and min_p 0 leave everything in.
struct Sampling {
  double temperature;  // below 1e-5: greedy, the lowest id of equals
  double min_p, top_p;
  int64_t top_k;
  uint64_t seed, position;
};

// For each row of logits [rows, vocabulary]: the token, and the log of its share among what was left (greedy: 0).
// A row's results depend on that row alone. A row where nothing is finite gives token 0 and -infinity.
void sample(const float* logits, size_t rows, size_t vocabulary, const Sampling* params, int64_t* tokens,
            double* logprobs, int threads);

}  // namespace gristmill
