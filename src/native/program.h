// A whole forward pass as a flat list of operations over numbered buffers, run by one call a step.
//
// Python builds it from the network's modules (gristmill.engine.native_program) and passes where tensors lie; nothing is
// copied, so weights that change in place are seen by the next step. Activations, cache and sums are fp32.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "coded.h"
#include "kernels.h"
#include "scratch.h"

namespace gristmill {

// gristmill.engine.ragged.RaggedBatch.
struct Batch {
  size_t tokens_count, requests, table_width, wanted_count;
  const int32_t *tokens, *positions, *slots, *starts, *tables, *lengths, *wanted;
  const int32_t* adapters;  // of each request, -1 for none; null when no request has one
};

// A small vector of a network (norm weight, bias), as fp32 when it is used.
class Floats {
 public:
  Floats(Array array, size_t size) : array_(array), copy_(array && array.type != Type::f32 ? size : 0) {}
  const float* read(const Kernels& k);

 private:
  Array array_;
  std::vector<float> copy_;
};

struct LinearSpec {
  Array weight;
  const float* scale;  // of int8
  Array bias;
  size_t out, in;
  int to;  // buffer
  bool add;
  Coded coded{};  // where it has data, in place of the weight
  bool rounded = true;  // x, for coded weights
};

// Rows that tokens stand for.
struct Table {
  Array plain;
  Coded coded{};  // where it has data
  size_t rows;
};

// One adapter of one layer: y += B (factor * A x).
struct LoraSpec {
  Array a, b;
  size_t rank;
  float factor;
};

struct RopeSpec {
  std::vector<float> short_frequencies, long_frequencies;  // the long ones may be missing
  int32_t switch_length;                                    // sequences longer than this use them
  float factor;                                             // on cos and sin
};

struct AttentionSpec {
  int q, k, v, out;  // buffers
  int rope;          // number of a RopeSpec; -1: positions are learned
  size_t heads;
  Cache cache;
  size_t window;
  float scale, softcap;
  Array sinks;
};

struct MoeSpec {
  int x, out;
  Array router, router_bias, correction;
  Array gate, up, down, gate_bias, up_bias, down_bias;
  Coded coded_gate{}, coded_up{}, coded_down{};  // of all experts; those with data stand in place of the arrays
  bool rounded = true;  // x, for coded weights
  Activation activation;
  size_t experts, chosen, width, size;
  int scoring;  // 0 softmax, 1 softmax_chosen, 2 sigmoid
  bool normalize;
  float factor;
  size_t groups, groups_kept;
};

// What operations see of the step that runs.
struct Step {
  const Kernels& k;
  Isa isa;
  const Batch& batch;
  int threads;
  size_t rows;  // of every buffer: the step's tokens, and after `keep_wanted` the wanted ones
  float* out;
  const std::vector<size_t>& strides;
  std::vector<float*> buffers;
  std::vector<int32_t> owner;                // request of each row
  std::vector<std::vector<float>> cos, sin;  // by RopeSpec, [tokens, half]
  float* row(int buffer, size_t row) const { return buffers[size_t(buffer)] + row * strides[size_t(buffer)]; }
};

class Program {
 public:
  explicit Program(Isa isa);

  // Add a buffer of so many floats a row; returns its number.
  int buffer(size_t width);
  // Add frequencies; returns their number.
  int rope(RopeSpec spec);

  // Operations, in the order in which they will run.
  // Rows of `table` [vocabulary, width] times `factor`, plus rows of `places` [places_count, width] if given.
  void embed(int to, Table table, size_t width, float factor, Array places, size_t places_count);
  void norm(Norm kind, int from, int to, Array weight, Array bias, size_t width, size_t groups, float eps);
  void linear(int from, std::vector<LinearSpec> layers);
  // The columns of `from` in another order.
  void gather(int from, int to, std::vector<int32_t> order);
  void lora(int from, int to, int low, size_t in, size_t out, std::map<int, LoraSpec> adapters);
  void attention(AttentionSpec spec);
  void activate(Activation kind, int gate, int up, int to, size_t width);
  void add(int from, int to, size_t width);
  void moe(MoeSpec spec);
  // From here on only the wanted rows of these buffers.
  void keep_wanted(std::vector<int> buffers);
  // What `run` gives back.
  void result(int from, size_t width);

  // hidden [wanted, width of the result], dense.
  void run(const Batch& batch, float* hidden, int threads);
  // logits [rows, out] of hidden [rows, in], dense.
  void logits(const LinearSpec& head, float softcap, const float* hidden, float* logits, size_t rows, int threads);

  // Seconds spent in each kind of operation since the program was made.
  std::map<std::string, double> seconds() const;

 private:
  struct Operation {
    const char* name;
    std::function<void(Step&)> run;
    double seconds = 0;
  };
  void push(const char* name, std::function<void(Step&)> run) { operations_.push_back({name, std::move(run)}); }
  void prepare(Step& step) const;

  Isa isa_;
  const Kernels& kernels_;
  std::vector<size_t> strides_;
  std::vector<RopeSpec> ropes_;
  std::vector<Operation> operations_;
  Scratch arena_;
};

}  // namespace gristmill
