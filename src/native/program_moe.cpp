// A mixture of experts in a program. Experts take their tokens one after the other, in the order of their numbers,
// so what a token gets is added in an order that no other token changes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "linear.h"
#include "program.h"

namespace gristmill {
namespace {

// Numbers of the `count` highest scores, highest first; of equal ones the lower number.
void highest(const float* scores, size_t n, size_t count, std::vector<size_t>& order) {
  order.resize(n);
  std::iota(order.begin(), order.end(), size_t(0));
  std::partial_sort(order.begin(), order.begin() + long(count), order.end(), [&](size_t a, size_t b) {
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
  });
  order.resize(count);
}

void soften(float* scores, size_t n) {
  const float top = *std::max_element(scores, scores + n);
  float sum = 0;
  for (size_t i = 0; i < n; ++i) sum += scores[i] = std::exp(scores[i] - top);
  for (size_t i = 0; i < n; ++i) scores[i] /= sum;
}

// Scores outside the best groups become -inf; a group counts by the sum of its two best.
void keep_groups(const MoeSpec& spec, std::vector<float>& scores) {
  const size_t size = spec.experts / spec.groups;
  std::vector<float> best(spec.groups);
  std::vector<size_t> order;
  for (size_t g = 0; g < spec.groups; ++g) {
    highest(scores.data() + g * size, size, 2, order);
    best[g] = scores[g * size + order[0]] + scores[g * size + order[1]];
  }
  highest(best.data(), spec.groups, spec.groups_kept, order);
  for (size_t g = 0; g < spec.groups; ++g)
    if (std::find(order.begin(), order.end(), g) == order.end())
      std::fill_n(scores.begin() + long(g * size), size, -std::numeric_limits<float>::infinity());
}

// The chosen experts of one token and their weights, from the router's logits.
void route(const MoeSpec& spec, float* logits, const float* correction, std::vector<size_t>& chosen, float* weights) {
  const size_t E = spec.experts, top = spec.chosen;
  if (spec.scoring == 1) {
    highest(logits, E, top, chosen);
    for (size_t i = 0; i < top; ++i) weights[i] = logits[chosen[i]];
    return soften(weights, top);
  }
  if (spec.scoring == 0) {
    soften(logits, E);
    highest(logits, E, top, chosen);
  } else {
    std::vector<float> steered(E);
    for (size_t e = 0; e < E; ++e) {
      logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
      steered[e] = logits[e] + correction[e];
    }
    if (spec.groups > 1) keep_groups(spec, steered);
    highest(steered.data(), E, top, chosen);
  }
  float sum = 0;
  for (size_t i = 0; i < top; ++i) sum += weights[i] = logits[chosen[i]];
  for (size_t i = 0; i < top; ++i) weights[i] = (spec.normalize ? weights[i] / (sum + 1e-20f) : weights[i]) * spec.factor;
}

struct Place {
  size_t row;
  float weight;
};

}  // namespace

void Program::moe(MoeSpec spec) {
  struct Memory {
    Scratch logits, x, gate, up, down;
  };
  push("moe", [=, memory = std::make_shared<Memory>(), router_bias = Floats(spec.router_bias, spec.experts),
               correction = Floats(spec.correction, spec.experts), gate_bias = Floats(spec.gate_bias, spec.experts * spec.width),
               up_bias = Floats(spec.up_bias, spec.experts * spec.width),
               down_bias = Floats(spec.down_bias, spec.experts * spec.size)](Step& step) mutable {
    const size_t E = spec.experts, D = spec.size, W = spec.width, x_stride = step.strides[size_t(spec.x)];
    float* logits = memory->logits.floats(step.rows * E + 1);
    const Linear router{spec.router, nullptr, router_bias.read(step.k), E, logits, E, false};
    gristmill::linear(step.k, &router, 1, step.row(spec.x, 0), x_stride, D, step.rows, step.threads);
    std::vector<std::vector<Place>> places(E);
    std::vector<size_t> chosen;
    std::vector<float> weights(spec.chosen);
    const float* steering = correction.read(step.k);
    for (size_t row = 0; row < step.rows; ++row) {
      route(spec, logits + row * E, steering, chosen, weights.data());
      for (size_t i = 0; i < spec.chosen; ++i) places[chosen[i]].push_back({row, weights[i]});
      std::memset(step.row(spec.out, row), 0, D * sizeof(float));
    }
    const float *gate_biases = gate_bias.read(step.k), *up_biases = up_bias.read(step.k);
    const float* down_biases = down_bias.read(step.k);
    for (size_t e = 0; e < E; ++e) {
      const size_t n = places[e].size();
      if (n == 0) continue;
      float *x = memory->x.floats(n * D), *gate = memory->gate.floats(n * W), *up = memory->up.floats(n * W);
      float* down = memory->down.floats(n * D);
      for (size_t i = 0; i < n; ++i) std::memcpy(x + i * D, step.row(spec.x, places[e][i].row), D * sizeof(float));
      const Linear in[2] = {
          {spec.gate.from(e * W * D), nullptr, gate_biases ? gate_biases + e * W : nullptr, W, gate, W, false},
          {spec.up.from(e * W * D), nullptr, up_biases ? up_biases + e * W : nullptr, W, up, W, false}};
      gristmill::linear(step.k, in, 2, x, D, D, n, step.threads);
      step.k.activate(spec.activation, gate, up, gate, n * W);
      const Linear out{spec.down.from(e * D * W), nullptr, down_biases ? down_biases + e * D : nullptr, D, down, D, false};
      gristmill::linear(step.k, &out, 1, gate, W, W, n, step.threads);
      for (size_t i = 0; i < n; ++i)
        step.k.add_scaled(down + i * D, places[e][i].weight, step.row(spec.out, places[e][i].row), D);
    }
  });
}

}  // namespace gristmill
