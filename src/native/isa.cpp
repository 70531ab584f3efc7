// Which instruction sets this build holds and this machine can run.
#include "kernels.h"

namespace gristmill {

extern const Kernels kernels_plain;
#if defined(GRISTMILL_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

bool supported(Isa isa) {
  if (isa == Isa::scalar) return true;
#if defined(GRISTMILL_X86)
  __builtin_cpu_init();
  // f16c, which __builtin_cpu_supports does not know in every compiler, came before avx2 in every processor.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

Isa best_isa() {
  static const Isa best = supported(Isa::avx512) ? Isa::avx512
                          : supported(Isa::avx2) ? Isa::avx2
                                                 : Isa::scalar;
  return best;
}

const Kernels* kernels_of(Isa isa) {
#if defined(GRISTMILL_X86)
  if (isa == Isa::avx2) return &kernels_avx2;
  if (isa == Isa::avx512) return &kernels_avx512;
#endif
  return isa == Isa::scalar ? &kernels_plain : nullptr;
}

}  // namespace gristmill
