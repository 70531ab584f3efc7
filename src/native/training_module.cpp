#include "training_module.h"

#include "kernels.h"
#include "training.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gristmill {

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// For tests; below 0: the widest.
int wanted_isa = -1;
Isa chosen() { return wanted_isa < 0 ? best_isa() : Isa(wanted_isa); }

}  // namespace

void bind_training(nb::module_& m) {
  m.def("training_isa", [](int isa) { wanted_isa = isa; }, "isa"_a);
  m.def("use_openmp", &use_openmp, "gomp_parallel"_a);
  m.attr("NORM_PARTS") = kNormParts;
  m.def(
      "train_norm",
      [](int type, size_t rows, size_t width, uintptr_t x, uintptr_t weight, uintptr_t factor, float eps, uintptr_t dy,
         uintptr_t out, uintptr_t dweight, int threads) {
        nb::gil_scoped_release released;
        norm(chosen(),
             {Type(type), rows, width, at<void>(x), at<float>(weight), at<float>(factor), eps, at<void>(dy),
              at<void>(out), at<float>(dweight)},
             threads);
      },
      "type"_a, "rows"_a, "width"_a, "x"_a, "weight"_a, "factor"_a, "eps"_a, "dy"_a, "out"_a, "dweight"_a, "threads"_a);
  m.def(
      "train_turn",
      [](int type, size_t tokens, size_t heads, size_t width, size_t half, uintptr_t x, uintptr_t cos, uintptr_t sin,
         uintptr_t out, bool back, int threads) {
        nb::gil_scoped_release released;
        turn(chosen(),
             {Type(type), tokens, heads, width, half, at<void>(x), at<void>(cos), at<void>(sin), at<void>(out), back},
             threads);
      },
      "type"_a, "tokens"_a, "heads"_a, "width"_a, "half"_a, "x"_a, "cos"_a, "sin"_a, "out"_a, "back"_a, "threads"_a);
  m.def(
      "train_swiglu",
      [](int type, size_t count, uintptr_t gate, uintptr_t up, uintptr_t dy, uintptr_t out, uintptr_t dup, int threads) {
        nb::gil_scoped_release released;
        swiglu(chosen(),
               {Type(type), count, at<void>(gate), at<void>(up), at<void>(dy), at<void>(out), at<void>(dup)}, threads);
      },
      "type"_a, "count"_a, "gate"_a, "up"_a, "dy"_a, "out"_a, "dup"_a, "threads"_a);
  m.def(
      "train_loss",
      [](int type, size_t rows, size_t width, uintptr_t logits, uintptr_t targets, float softcap, float z_loss,
         bool gradient, uintptr_t loss_to, uintptr_t lse, int threads) {
        nb::gil_scoped_release released;
        loss(chosen(),
             {Type(type), rows, width, at<void>(logits), at<int64_t>(targets), softcap, z_loss, gradient,
              at<float>(loss_to), at<float>(lse)},
             threads);
      },
      "type"_a, "rows"_a, "width"_a, "logits"_a, "targets"_a, "softcap"_a, "z_loss"_a, "gradient"_a, "loss"_a, "lse"_a,
      "threads"_a);
  m.def(
      "train_attend",
      [](size_t batch, size_t tokens, size_t heads, size_t kv_heads, size_t width, float scale, uintptr_t q,
         uintptr_t k, uintptr_t v, uintptr_t first, uintptr_t out, uintptr_t lse, uintptr_t dout, uintptr_t dq,
         uintptr_t dk, uintptr_t dv, int threads) {
        nb::gil_scoped_release released;
        attend(chosen(),
               {batch, tokens, heads, kv_heads, width, scale, at<float>(q), at<float>(k), at<float>(v),
                at<int32_t>(first), at<float>(out), at<float>(lse), at<float>(dout), at<float>(dq), at<float>(dk),
                at<float>(dv)},
               threads);
      },
      "batch"_a, "tokens"_a, "heads"_a, "kv_heads"_a, "width"_a, "scale"_a, "q"_a, "k"_a, "v"_a, "first"_a, "out"_a,
      "lse"_a, "dout"_a, "dq"_a, "dk"_a, "dv"_a, "threads"_a);
}

}  // namespace gristmill
