// gristmill._native: kernels and programs as functions of raw addresses and sizes. gristmill.kernels and
// gristmill.engine own the checks (dtype, contiguity, shape); nothing here knows what a tensor is. Every call that
// computes releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>

#include "coded.h"
#include "linear.h"
#include "program.h"
#include "sampling.h"
#include "text_module.h"
#include "training_module.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace gristmill;

namespace {

const char* const kIsaNames[] = {"scalar", "avx2", "avx512"};

Isa parse(const std::string& name) {
  if (name == "best") return best_isa();
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    if (name == kIsaNames[int(isa)] && supported(isa)) return isa;
  throw std::invalid_argument("instruction set " + name + " is not one that this machine can run");
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_kernels(nb::module_& m) {
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
      if (supported(isa)) names.push_back(kIsaNames[int(isa)]);
    return names;
  });
  m.def(
      "linear",
      [](Array weight, uintptr_t scale, uintptr_t x, uintptr_t y, size_t out, size_t in, size_t rows, int threads,
         const std::string& isa) {
        const Kernels& k = *kernels_of(parse(isa));
        nb::gil_scoped_release released;
        const Linear layer{weight, at<const float>(scale), nullptr, out, at<float>(y), out, false};
        linear(k, &layer, 1, at<const float>(x), in, in, rows, threads);
      },
      "weight"_a, "scale"_a, "x"_a, "y"_a, "out"_a, "in_"_a, "rows"_a, "threads"_a, "isa"_a);
  m.def(
      "map",
      [](int function, uintptr_t x, uintptr_t y, size_t n, const std::string& isa) {
        kernels_of(parse(isa))->map(Function(function), at<const float>(x), at<float>(y), n);
      },
      "function"_a, "x"_a, "y"_a, "n"_a, "isa"_a);
}

void bind_coded(nb::module_& m) {
  nb::class_<Coded>(m, "Coded").def(
      "__init__",
      [](Coded* self, uintptr_t address, int coding, size_t out, size_t in, size_t group, bool wide_scales) {
        new (self) Coded{at<const uint8_t>(address), Coding(coding), out, in, group, wide_scales};
      },
      "address"_a, "coding"_a, "out"_a, "in_"_a, "group"_a, "wide_scales"_a);
  m.def(
      "coded_linear",
      [](const Coded& matrix, uintptr_t x, uintptr_t y, size_t rows, bool rounded, int threads,
         const std::string& isa) {
        const Isa set = parse(isa);
        nb::gil_scoped_release released;
        const CodedLinear layer{matrix, nullptr, at<float>(y), matrix.out, false};
        coded_linear(set, &layer, 1, at<const float>(x), matrix.in, rows, rounded, threads);
      },
      "matrix"_a, "x"_a, "y"_a, "rows"_a, "rounded"_a, "threads"_a, "isa"_a);
  m.def(
      "pack_blocks",
      [](const Coded& matrix, uintptr_t blocks, size_t row_bytes, uintptr_t to, int threads) {
        nb::gil_scoped_release released;
        pack_blocks(matrix, at<const uint8_t>(blocks), row_bytes, at<uint8_t>(to), threads);
      },
      "matrix"_a, "blocks"_a, "row_bytes"_a, "to"_a, "threads"_a);
  m.def("strip_bytes", [](const Coded& matrix) { return layout_of(matrix).strip; }, "matrix"_a);
}

void bind_sampling(nb::module_& m) {
  m.def(
      "sample",
      [](uintptr_t logits, size_t rows, size_t vocabulary, uintptr_t params, uintptr_t tokens, uintptr_t logprobs,
         int threads) {
        nb::gil_scoped_release released;
        sample(at<const float>(logits), rows, vocabulary, at<const Sampling>(params), at<int64_t>(tokens),
               at<double>(logprobs), threads);
      },
      "logits"_a, "rows"_a, "vocabulary"_a, "params"_a, "tokens"_a, "logprobs"_a, "threads"_a);
}

void bind_program(nb::module_& m) {
  m.def(
      "block_bytes",
      [](int kept, size_t block_size, size_t heads, size_t head_dim) {
        const Cache cache(0, 0, Kept(kept), block_size, heads, head_dim);
        return std::vector<size_t>{cache.strips() * cache.key_strip, cache.strips() * cache.value_strip};
      },
      "kept"_a, "block_size"_a, "heads"_a, "head_dim"_a);
  nb::class_<LinearSpec>(m, "Linear")
      .def(
          "__init__",
          [](LinearSpec* self, Array weight, uintptr_t scale, Array bias, size_t out, size_t in, int to, bool add) {
            new (self) LinearSpec{weight, at<const float>(scale), bias, out, in, to, add};
          },
          "weight"_a, "scale"_a, "bias"_a, "out"_a, "in_"_a, "to"_a, "add"_a)
      .def(
          "__init__",
          [](LinearSpec* self, const Coded& coded, bool rounded, Array bias, int to, bool add) {
            new (self) LinearSpec{{}, nullptr, bias, coded.out, coded.in, to, add, coded, rounded};
          },
          "coded"_a, "rounded"_a, "bias"_a, "to"_a, "add"_a);
  nb::class_<Table>(m, "Table")
      .def(
          "__init__", [](Table* self, Array plain, size_t rows) { new (self) Table{plain, {}, rows}; }, "plain"_a,
          "rows"_a)
      .def("__init__", [](Table* self, const Coded& coded) { new (self) Table{{}, coded, coded.out}; }, "coded"_a);
  nb::class_<LoraSpec>(m, "Lora").def(
      "__init__",
      [](LoraSpec* self, Array a, Array b, size_t rank, float factor) { new (self) LoraSpec{a, b, rank, factor}; },
      "a"_a, "b"_a, "rank"_a, "factor"_a);
  nb::class_<MoeSpec>(m, "Moe")
      .def(nb::init<>())
      .def_rw("x", &MoeSpec::x)
      .def_rw("out", &MoeSpec::out)
      .def_rw("router", &MoeSpec::router)
      .def_rw("router_bias", &MoeSpec::router_bias)
      .def_rw("correction", &MoeSpec::correction)
      .def_rw("gate", &MoeSpec::gate)
      .def_rw("up", &MoeSpec::up)
      .def_rw("down", &MoeSpec::down)
      .def_rw("coded_gate", &MoeSpec::coded_gate)
      .def_rw("coded_up", &MoeSpec::coded_up)
      .def_rw("coded_down", &MoeSpec::coded_down)
      .def_rw("rounded", &MoeSpec::rounded)
      .def_rw("gate_bias", &MoeSpec::gate_bias)
      .def_rw("up_bias", &MoeSpec::up_bias)
      .def_rw("down_bias", &MoeSpec::down_bias)
      .def_prop_rw(
          "activation", [](MoeSpec& s) { return int(s.activation); },
          [](MoeSpec& s, int kind) { s.activation = Activation(kind); })
      .def_rw("experts", &MoeSpec::experts)
      .def_rw("chosen", &MoeSpec::chosen)
      .def_rw("width", &MoeSpec::width)
      .def_rw("size", &MoeSpec::size)
      .def_rw("scoring", &MoeSpec::scoring)
      .def_rw("normalize", &MoeSpec::normalize)
      .def_rw("factor", &MoeSpec::factor)
      .def_rw("groups", &MoeSpec::groups)
      .def_rw("groups_kept", &MoeSpec::groups_kept);
  nb::class_<Program>(m, "Program")
      .def("__init__", [](Program* self, const std::string& isa) { new (self) Program(parse(isa)); }, "isa"_a = "best")
      .def("buffer", &Program::buffer, "width"_a)
      .def(
          "rope",
          [](Program& p, std::vector<float> near, std::vector<float> far, int32_t switch_length, float factor) {
            return p.rope({std::move(near), std::move(far), switch_length, factor});
          },
          "short_frequencies"_a, "long_frequencies"_a, "switch_length"_a, "factor"_a)
      .def("embed", &Program::embed, "to"_a, "table"_a, "width"_a, "factor"_a, "places"_a, "places_count"_a)
      .def(
          "norm",
          [](Program& p, int kind, int from, int to, Array weight, Array bias, size_t width, size_t groups,
             float eps) { p.norm(Norm(kind), from, to, weight, bias, width, groups, eps); },
          "kind"_a, "source"_a, "to"_a, "weight"_a, "bias"_a, "width"_a, "groups"_a, "eps"_a)
      .def("linear", &Program::linear, "source"_a, "layers"_a)
      .def("gather", &Program::gather, "source"_a, "to"_a, "order"_a)
      .def("lora", &Program::lora, "source"_a, "to"_a, "low"_a, "in_"_a, "out"_a, "adapters"_a)
      .def(
          "attention",
          [](Program& p, int q, int k, int v, int out, int rope, size_t heads, size_t kv_heads, size_t head_dim,
             uintptr_t keys, uintptr_t values, int kept, size_t block_size, size_t window, float scale,
             float softcap, Array sinks) {
            const Cache cache(keys, values, Kept(kept), block_size, kv_heads, head_dim);
            p.attention({q, k, v, out, rope, heads, cache, window, scale, softcap, sinks});
          },
          "q"_a, "k"_a, "v"_a, "out"_a, "rope"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "keys"_a, "values"_a, "kept"_a,
          "block_size"_a, "window"_a, "scale"_a, "softcap"_a, "sinks"_a)
      .def(
          "activate",
          [](Program& p, int kind, int gate, int up, int to, size_t width) {
            p.activate(Activation(kind), gate, up, to, width);
          },
          "kind"_a, "gate"_a, "up"_a, "to"_a, "width"_a)
      .def("add", &Program::add, "source"_a, "to"_a, "width"_a)
      .def("moe", &Program::moe, "spec"_a)
      .def("keep_wanted", &Program::keep_wanted, "buffers"_a)
      .def("result", &Program::result, "source"_a, "width"_a)
      .def(
          "run",
          [](Program& p, size_t tokens_count, size_t requests, size_t table_width, size_t wanted_count,
             uintptr_t tokens, uintptr_t positions, uintptr_t slots, uintptr_t starts, uintptr_t tables,
             uintptr_t lengths, uintptr_t wanted, uintptr_t adapters, uintptr_t hidden, int threads) {
            const Batch batch{tokens_count,           requests,
                              table_width,            wanted_count,
                              at<const int32_t>(tokens), at<const int32_t>(positions),
                              at<const int32_t>(slots),  at<const int32_t>(starts),
                              at<const int32_t>(tables), at<const int32_t>(lengths),
                              at<const int32_t>(wanted), at<const int32_t>(adapters)};
            nb::gil_scoped_release released;
            p.run(batch, at<float>(hidden), threads);
          },
          "tokens_count"_a, "requests"_a, "table_width"_a, "wanted_count"_a, "tokens"_a, "positions"_a, "slots"_a,
          "starts"_a, "tables"_a, "lengths"_a, "wanted"_a, "adapters"_a, "hidden"_a, "threads"_a)
      .def(
          "logits",
          [](Program& p, const LinearSpec& head, float softcap, uintptr_t hidden, uintptr_t logits, size_t rows,
             int threads) {
            nb::gil_scoped_release released;
            p.logits(head, softcap, at<const float>(hidden), at<float>(logits), rows, threads);
          },
          "head"_a, "softcap"_a, "hidden"_a, "logits"_a, "rows"_a, "threads"_a)
      .def("seconds", &Program::seconds);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // caches of the modules live until the process ends
  nb::class_<Array>(m, "Array").def(
      "__init__",
      [](Array* self, uintptr_t address, int type) { new (self) Array{at<const void>(address), Type(type)}; },
      "address"_a = 0, "type"_a = 0);
  bind_kernels(m);
  bind_coded(m);
  bind_sampling(m);
  bind_program(m);
  text::bind_text(m);
  bind_training(m);
}
