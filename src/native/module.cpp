// gristmill._native: the kernels as functions of raw addresses and sizes. gristmill.kernels owns the checks
// (dtype, contiguity, shape); nothing here knows what a tensor is. Every call releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "int8.h"

namespace nb = nanobind;
using gristmill::Isa;

static Isa parse(const std::string& name) {
  if (name == "best") return gristmill::best_isa();
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    const char* known[] = {"scalar", "avx2", "avx512"};
    if (name == known[int(isa)] && gristmill::supported(isa)) return isa;
  }
  throw std::invalid_argument("instruction set " + name + " is not one that this machine can run");
}

NB_MODULE(_native, m) {
  m.def(
      "int8_linear",
      [](uintptr_t weight, uintptr_t scale, uintptr_t x, uintptr_t y, size_t out, size_t in, size_t rows,
         int threads, const std::string& isa) {
        const Isa chosen = parse(isa);
        nb::gil_scoped_release released;
        gristmill::int8_linear(reinterpret_cast<const int8_t*>(weight), reinterpret_cast<const float*>(scale),
                               reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), out, in, rows,
                               threads, chosen);
      },
      nb::arg("weight"), nb::arg("scale"), nb::arg("x"), nb::arg("y"), nb::arg("out"), nb::arg("in"),
      nb::arg("rows"), nb::arg("threads"), nb::arg("isa") = "best");
  m.def("instruction_sets", [] {
    nb::list names;
    names.append("scalar");
    if (gristmill::supported(Isa::avx2)) names.append("avx2");
    if (gristmill::supported(Isa::avx512)) names.append("avx512");
    return names;
  });
}
