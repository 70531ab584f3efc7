// exp, tanh, erf and the activations of sixteen floats at once; errors in tests/kernels/test_functions.py.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace gristmill {
namespace {

// Within 2 units in the last place; 0 below -87.3 (the smallest normal float), and stays at exp(88) above.
// Cephes' expf (Moshier 1992): x = n ln 2 + r, and a polynomial in r.
inline V exp(V x) {
  const V lowest = set(-87.3365448f), magic = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole
  const V at = min(set(88.0f), max(lowest, x));  // in this order NaN stays NaN
  const V n = fma(at, set(1.44269504f), magic) - magic;
  V r = fma(n, set(-0.693359375f), at);
  r = fma(n, set(2.12194440e-4f), r);
  V p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  const V y = (fma(p, r * r, r) + set(1.0f)) * pow2(n);
  return select(x < lowest, set(0.0f), y);
}

inline V magnitude(V x) { return with_sign(x, set(0.0f)); }

// Cephes' tanhf: a polynomial near 0, exp beyond.
inline V tanh(V x) {
  const V size = magnitude(x), square = x * x;
  V p = set(-5.70498872745e-3f);
  p = fma(p, square, set(2.06390887954e-2f));
  p = fma(p, square, set(-5.37397155531e-2f));
  p = fma(p, square, set(1.33314422036e-1f));
  p = fma(p, square, set(-3.33332819422e-1f));
  const V near = fma(p * square, x, x);
  const V far = set(1.0f) - set(2.0f) / (exp(size + size) + set(1.0f));
  return select(size < set(0.625f), near, with_sign(far, x));
}

// N. Juffa's erff (published under the BSD license): a polynomial near 0, 1 - exp(polynomial) beyond.
inline V erf(V x) {
  const V size = magnitude(x), square = x * x;
  V far = fma(set(-1.72853470e-5f), size, set(3.83197126e-4f));
  far = fma(far, square, fma(set(-3.88396438e-3f), size, set(2.42546219e-2f)));
  far = fma(far, size, set(-1.06777877e-1f));
  far = fma(far, size, set(-6.34846687e-1f));
  far = fma(far, size, set(-1.28717512e-1f));
  far = fma(far, size, set(0.0f) - size);
  far = with_sign(set(1.0f) - exp(far), x);
  V near = set(-5.96761703e-4f);
  near = fma(near, square, set(4.99119423e-3f));
  near = fma(near, square, set(-2.67681349e-2f));
  near = fma(near, square, set(1.12819925e-1f));
  near = fma(near, square, set(-3.76125336e-1f));
  near = fma(near, square, set(1.28379166e-1f));
  near = fma(near, x, x);
  return select(set(0.927734375f) < size, far, near);
}

inline V sigmoid(V x) { return set(1.0f) / (set(1.0f) + exp(set(0.0f) - x)); }

template <Activation kind>
inline V activated(V x) {
  if (kind == Activation::silu) return x / (set(1.0f) + exp(set(0.0f) - x));
  if (kind == Activation::gelu) return x * set(0.5f) * (set(1.0f) + erf(x * set(0.707106781f)));
  const V inner = fma(set(0.044715f) * x * x, x, x) * set(0.797884561f);
  return x * set(0.5f) * (set(1.0f) + tanh(inner));
}

template <Activation kind>
inline V gated(V gate, V up) {
  if (kind != Activation::swiglu_clamped) return activated<kind>(gate) * up;
  gate = min(gate, set(7.0f));
  up = min(max(up, set(-7.0f)), set(7.0f));
  return gate * sigmoid(set(1.702f) * gate) * (up + set(1.0f));
}

}  // namespace
}  // namespace gristmill
