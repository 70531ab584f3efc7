#include "program.h"

#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "linear.h"
#include "loops.h"

namespace gristmill {
namespace {

constexpr size_t kGrain = 16 * 1024;  // floats of simple work that are worth another thread

// body(row) for all rows of the step, each of `width` floats.
template <class F>
void each_row(const Step& step, size_t width, const F& body) {
  parallel_ranges(step.threads, step.rows, kGrain / (width + 1) + 1, [&](size_t begin, size_t end) {
    for (size_t row = begin; row < end; ++row) body(row);
  });
}

}  // namespace

const float* Floats::read(const Kernels& k) {
  if (copy_.empty()) return static_cast<const float*>(array_.data);
  k.widen[int(array_.type)](array_.data, copy_.data(), copy_.size());
  return copy_.data();
}

Program::Program(Isa isa) : isa_(isa), kernels_(*kernels_of(isa)) {}

int Program::buffer(size_t width) {
  strides_.push_back(whole_lanes(width));
  return int(strides_.size()) - 1;
}

int Program::rope(RopeSpec spec) {
  ropes_.push_back(std::move(spec));
  return int(ropes_.size()) - 1;
}

void Program::embed(int to, Table table, size_t width, float factor, Array places, size_t places_count) {
  push("embed", [=](Step& step) {
    for (size_t i = 0; i < step.rows; ++i)
      if (step.batch.tokens[i] < 0 || size_t(step.batch.tokens[i]) >= table.rows)
        throw std::out_of_range("a token id is not in the vocabulary");
      else if (places && size_t(step.batch.positions[i]) >= places_count)
        throw std::out_of_range("a position is beyond the model's context");
    each_row(step, width, [&](size_t i) {
      float* x = step.row(to, i);
      const size_t token = size_t(step.batch.tokens[i]);
      if (table.coded.data) {
        coded_kernels_of(step.isa).row(table.coded, token, x);
      } else {
        const Array row = table.plain.from(token * width);
        step.k.widen[int(row.type)](row.data, x, width);
      }
      if (factor != 1.0f) step.k.scale(x, factor, width);
      if (!places) return;
      static thread_local Scratch scratch;
      float* place = scratch.floats(width);
      const Array at = places.from(size_t(step.batch.positions[i]) * width);
      step.k.widen[int(at.type)](at.data, place, width);
      step.k.add(place, x, width);
    });
  });
}

void Program::norm(Norm kind, int from, int to, Array weight, Array bias, size_t width, size_t groups, float eps) {
  push("norm", [=, w = Floats(weight, width), b = Floats(bias, width)](Step& step) mutable {
    const float *weights = w.read(step.k), *biases = b.read(step.k);
    each_row(step, width * groups, [&](size_t i) {
      for (size_t g = 0; g < groups; ++g)
        step.k.norm(kind, step.row(from, i) + g * width, weights, biases, eps, step.row(to, i) + g * width, width);
    });
  });
}

void Program::linear(int from, std::vector<LinearSpec> specs) {
  // Those of one kind go in one loop over the threads.
  std::vector<LinearSpec> plain, coded;
  for (const LinearSpec& spec : specs) (spec.coded.data ? coded : plain).push_back(spec);
  if (!plain.empty()) {
    std::vector<Floats> biases;
    for (const LinearSpec& spec : plain) biases.emplace_back(spec.bias, spec.out);
    push("linear", [=, biases = std::move(biases), layers = std::vector<Linear>(plain.size())](Step& step) mutable {
      for (size_t i = 0; i < plain.size(); ++i) {
        const size_t to = size_t(plain[i].to);
        layers[i] = {plain[i].weight,    plain[i].scale,   biases[i].read(step.k), plain[i].out,
                     step.buffers[to], step.strides[to], plain[i].add};
      }
      gristmill::linear(step.k, layers.data(), layers.size(), step.row(from, 0), step.strides[size_t(from)],
                        plain[0].in, step.rows, step.threads);
    });
  }
  if (coded.empty()) return;
  std::vector<Floats> biases;
  for (const LinearSpec& spec : coded) biases.emplace_back(spec.bias, spec.out);
  push("linear", [=, biases = std::move(biases), layers = std::vector<CodedLinear>(coded.size())](Step& step) mutable {
    for (size_t i = 0; i < coded.size(); ++i) {
      const size_t to = size_t(coded[i].to);
      layers[i] = {coded[i].coded, biases[i].read(step.k), step.buffers[to], step.strides[to], coded[i].add};
    }
    coded_linear(step.isa, layers.data(), layers.size(), step.row(from, 0), step.strides[size_t(from)], step.rows,
                 coded[0].rounded, step.threads);
  });
}

void Program::gather(int from, int to, std::vector<int32_t> order) {
  push("gather", [=, order = std::move(order)](Step& step) {
    each_row(step, order.size(), [&](size_t i) {
      const float* x = step.row(from, i);
      float* y = step.row(to, i);
      for (size_t c = 0; c < order.size(); ++c) y[c] = x[order[c]];
    });
  });
}

void Program::lora(int from, int to, int low, size_t in, size_t out, std::map<int, LoraSpec> adapters) {
  push("lora", [=](Step& step) {
    if (!step.batch.adapters) return;
    const auto adapter = [&](size_t row) { return step.batch.adapters[step.owner[row]]; };
    for (size_t begin = 0, end; begin < step.rows; begin = end) {
      for (end = begin + 1; end < step.rows && adapter(end) == adapter(begin);) ++end;
      const auto found = adapters.find(adapter(begin));
      if (found == adapters.end()) continue;
      const LoraSpec& lora = found->second;
      const size_t low_stride = step.strides[size_t(low)];
      const Linear down{lora.a, nullptr, nullptr, lora.rank, step.row(low, begin), low_stride, false};
      gristmill::linear(step.k, &down, 1, step.row(from, begin), step.strides[size_t(from)], in, end - begin,
                        step.threads);
      for (size_t row = begin; row < end; ++row) step.k.scale(step.row(low, row), lora.factor, lora.rank);
      const Linear up{lora.b, nullptr, nullptr, out, step.row(to, begin), step.strides[size_t(to)], true};
      gristmill::linear(step.k, &up, 1, step.row(low, begin), low_stride, lora.rank, end - begin, step.threads);
    }
  });
}

void Program::activate(Activation kind, int gate, int up, int to, size_t width) {
  push("activate", [=](Step& step) {
    each_row(step, 4 * width, [&](size_t i) {
      step.k.activate(kind, gate < 0 ? nullptr : step.row(gate, i), step.row(up, i), step.row(to, i), width);
    });
  });
}

void Program::add(int from, int to, size_t width) {
  push("add", [=](Step& step) {
    each_row(step, width, [&](size_t i) { step.k.add(step.row(from, i), step.row(to, i), width); });
  });
}

void Program::keep_wanted(std::vector<int> buffers) {
  push("keep_wanted", [=](Step& step) {
    const Batch& batch = step.batch;
    // They are ascending, so that a row is never overwritten before it is moved.
    for (size_t i = 0; i < batch.wanted_count; ++i) {
      const size_t from = size_t(batch.wanted[i]);
      if (from == i) continue;
      for (int buffer : buffers)
        std::memcpy(step.row(buffer, i), step.row(buffer, from), step.strides[size_t(buffer)] * sizeof(float));
      step.owner[i] = step.owner[from];
    }
    step.rows = batch.wanted_count;
  });
}

void Program::result(int from, size_t width) {
  push("result", [=](Step& step) {
    for (size_t i = 0; i < step.rows; ++i)
      std::memcpy(step.out + i * width, step.row(from, i), width * sizeof(float));
  });
}

// What all operations need: memory, owners of rows, and the turns of rotary positions.
void Program::prepare(Step& step) const {
  const Batch& batch = step.batch;
  for (size_t r = 0; r < batch.requests; ++r)
    step.owner.insert(step.owner.end(), size_t(batch.starts[r + 1] - batch.starts[r]), int32_t(r));
  for (const RopeSpec& rope : ropes_) {
    const size_t half = rope.short_frequencies.size();
    std::vector<float> cos(batch.tokens_count * half), sin(cos.size());
    parallel_ranges(step.threads, batch.tokens_count, 1024 / half + 1, [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) {
        const bool longer = !rope.long_frequencies.empty() && batch.lengths[step.owner[i]] > rope.switch_length;
        const float* frequencies = (longer ? rope.long_frequencies : rope.short_frequencies).data();
        for (size_t c = 0; c < half; ++c) {
          const float angle = float(batch.positions[i]) * frequencies[c];
          cos[i * half + c] = std::cos(angle) * rope.factor;
          sin[i * half + c] = std::sin(angle) * rope.factor;
        }
      }
    });
    step.cos.push_back(std::move(cos));
    step.sin.push_back(std::move(sin));
  }
}

void Program::run(const Batch& batch, float* hidden, int threads) {
  size_t width = 0;
  for (size_t stride : strides_) width += stride;
  float* memory = arena_.floats(width * batch.tokens_count);
  Step step{kernels_, isa_, batch, threads, batch.tokens_count, hidden, strides_, {}, {}, {}, {}};
  for (size_t stride : strides_) {
    step.buffers.push_back(memory);
    memory += stride * batch.tokens_count;
  }
  prepare(step);
  using Clock = std::chrono::steady_clock;
  Clock::time_point begun = Clock::now();
  for (Operation& operation : operations_) {
    operation.run(step);
    const Clock::time_point ended = Clock::now();
    operation.seconds += std::chrono::duration<double>(ended - begun).count();
    begun = ended;
  }
}

void Program::logits(const LinearSpec& head, float softcap, const float* hidden, float* logits, size_t rows,
                     int threads) {
  Floats bias(head.bias, head.out);
  if (head.coded.data) {
    const CodedLinear layer{head.coded, bias.read(kernels_), logits, head.out, false};
    coded_linear(isa_, &layer, 1, hidden, head.in, rows, head.rounded, threads);
  } else {
    const Linear layer{head.weight, head.scale, bias.read(kernels_), head.out, logits, head.out, false};
    gristmill::linear(kernels_, &layer, 1, hidden, head.in, head.in, rows, threads);
  }
  if (softcap == 0.0f) return;
  parallel_ranges(threads, rows * head.out, kGrain, [&](size_t begin, size_t end) {
    kernels_.softcap(logits + begin, softcap, end - begin);
  });
}

std::map<std::string, double> Program::seconds() const {
  std::map<std::string, double> by_name;
  for (const Operation& operation : operations_) by_name[operation.name] += operation.seconds;
  return by_name;
}

}  // namespace gristmill
