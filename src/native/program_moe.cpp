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

// One expert's layer: rows [e * out, (e + 1) * out) of a stack.
void expert_linear(const Step& step, const MoeSpec& spec, const Array& plain, const Coded& coded, const float* bias,
                   size_t e, size_t out, size_t in, const float* x, float* y, size_t n) {
  const float* mine = bias ? bias + e * out : nullptr;
  if (coded.data) {
    Coded part = coded;
    part.data += e * (out / kLanes) * layout_of(coded).strip;
    part.out = out;
    const CodedLinear layer{part, mine, y, out, false};
    coded_linear(step.isa, &layer, 1, x, in, n, spec.rounded, step.threads);
  } else {
    const Linear layer{plain.from(e * out * in), nullptr, mine, out, y, out, false};
    linear(step.k, &layer, 1, x, in, in, n, step.threads);
  }
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
      expert_linear(step, spec, spec.gate, spec.coded_gate, gate_biases, e, W, D, x, gate, n);
      expert_linear(step, spec, spec.up, spec.coded_up, up_biases, e, W, D, x, up, n);
      step.k.activate(spec.activation, gate, up, gate, n * W);
      expert_linear(step, spec, spec.down, spec.coded_down, down_biases, e, D, W, gate, down, n);
      for (size_t i = 0; i < n; ++i)
        step.k.add_scaled(down + i * D, places[e][i].weight, step.row(spec.out, places[e][i].row), D);
    }
  });
}

}  // namespace gristmill
