// Sixteen floats, the same operations for every instruction set. A `V` is one or two registers (`Part`s); lane i of
// every operation is a correctly rounded function of the operands' lane i, so avx2 and avx512 give equal bits.
// The plain set has no fused multiply-add: there `fma` rounds twice.
//
// Included once by each file that is compiled for one instruction set. All is in an unnamed namespace: a function
// shared between files could be linked in the version that this machine cannot run. For the same reason nothing
// from the standard library's templates is used here.
#pragma once

#include <cstring>

#include "types.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define UNROLL _Pragma("GCC unroll 32")

namespace gristmill {
namespace {

#if defined(__AVX512F__)
constexpr int kParts = 1;
using Part = __m512;
using MaskPart = __mmask16;

inline Part part(float x) { return _mm512_set1_ps(x); }
inline Part part(const float* p) { return _mm512_loadu_ps(p); }
inline Part part(const bf16* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Part part(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Part part(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void part_store(float* p, Part x) { _mm512_storeu_ps(p, x); }
inline Part part_add(Part a, Part b) { return _mm512_add_ps(a, b); }
inline Part part_sub(Part a, Part b) { return _mm512_sub_ps(a, b); }
inline Part part_mul(Part a, Part b) { return _mm512_mul_ps(a, b); }
inline Part part_div(Part a, Part b) { return _mm512_div_ps(a, b); }
inline Part part_max(Part a, Part b) { return _mm512_max_ps(a, b); }
inline Part part_min(Part a, Part b) { return _mm512_min_ps(a, b); }
inline Part part_fma(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
inline MaskPart part_less(Part a, Part b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Part part_select(MaskPart m, Part a, Part b) { return _mm512_mask_blend_ps(m, b, a); }
inline Part part_pow2(Part n) {
  const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}
inline Part part_with_sign(Part magnitude, Part sign) {
  const __m512i bit = _mm512_set1_epi32(int(0x80000000));
  const __m512i m = _mm512_castps_si512(magnitude), s = _mm512_castps_si512(sign);
  return _mm512_castsi512_ps(_mm512_or_epi32(_mm512_andnot_epi32(bit, m), _mm512_and_epi32(bit, s)));
}

#elif defined(__AVX2__)
constexpr int kParts = 2;
using Part = __m256;
using MaskPart = __m256;

inline Part part(float x) { return _mm256_set1_ps(x); }
inline Part part(const float* p) { return _mm256_loadu_ps(p); }
inline Part part(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Part part(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Part part(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void part_store(float* p, Part x) { _mm256_storeu_ps(p, x); }
inline Part part_add(Part a, Part b) { return _mm256_add_ps(a, b); }
inline Part part_sub(Part a, Part b) { return _mm256_sub_ps(a, b); }
inline Part part_mul(Part a, Part b) { return _mm256_mul_ps(a, b); }
inline Part part_div(Part a, Part b) { return _mm256_div_ps(a, b); }
inline Part part_max(Part a, Part b) { return _mm256_max_ps(a, b); }
inline Part part_min(Part a, Part b) { return _mm256_min_ps(a, b); }
inline Part part_fma(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
inline MaskPart part_less(Part a, Part b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
inline Part part_select(MaskPart m, Part a, Part b) { return _mm256_blendv_ps(b, a, m); }
inline Part part_pow2(Part n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Part part_with_sign(Part magnitude, Part sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}

#else
#include "vec_plain.inc"
#endif

constexpr size_t kPartLanes = kLanes / kParts;

struct V {
  Part p[kParts];
};
struct Mask {
  MaskPart p[kParts];
};

#define EACH(expression)                          \
  V r;                                            \
  UNROLL for (int i = 0; i < kParts; ++i) r.p[i] = expression; \
  return r

inline V set(float x) { EACH(part(x)); }
template <class T>
inline V load(const T* from) { EACH(part(from + i * kPartLanes)); }
inline void store(float* to, V x) {
  UNROLL for (int i = 0; i < kParts; ++i) part_store(to + i * kPartLanes, x.p[i]);
}
inline V operator+(V a, V b) { EACH(part_add(a.p[i], b.p[i])); }
inline V operator-(V a, V b) { EACH(part_sub(a.p[i], b.p[i])); }
inline V operator*(V a, V b) { EACH(part_mul(a.p[i], b.p[i])); }
inline V operator/(V a, V b) { EACH(part_div(a.p[i], b.p[i])); }
// The second operand where one is not a number.
inline V max(V a, V b) { EACH(part_max(a.p[i], b.p[i])); }
inline V min(V a, V b) { EACH(part_min(a.p[i], b.p[i])); }
inline V fma(V a, V b, V c) { EACH(part_fma(a.p[i], b.p[i], c.p[i])); }
inline V select(Mask m, V a, V b) { EACH(part_select(m.p[i], a.p[i], b.p[i])); }
// 2 to whole numbers from -126 to 127.
inline V pow2(V n) { EACH(part_pow2(n.p[i])); }
inline V with_sign(V magnitude, V sign) { EACH(part_with_sign(magnitude.p[i], sign.p[i])); }
inline Mask operator<(V a, V b) {
  Mask r;
  UNROLL for (int i = 0; i < kParts; ++i) r.p[i] = part_less(a.p[i], b.p[i]);
  return r;
}

alignas(64) const float kIota[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// The lanes below n.
inline Mask first_lanes(size_t n) { return load(kIota) < set(float(n)); }

// The first n elements, n < 16, then zeros; nothing beyond is read.
template <class T>
inline V load_first(const T* from, size_t n) {
  alignas(64) T padded[kLanes];
  std::memset(static_cast<void*>(padded), 0, sizeof padded);
  std::memcpy(padded, from, n * sizeof(T));
  return load(padded);
}
inline void store_first(float* to, V x, size_t n) {
  alignas(64) float all[kLanes];
  store(all, x);
  std::memcpy(to, all, n * sizeof(float));
}

// The sum of 16 lanes in the tree (i, i+8), (i, i+4), (i, i+2), (i, i+1), here of four vectors at once.
inline void sum_lanes(V a, V b, V c, V d, float* to) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.p[0], b.p[0], 0x44),
                                  _mm512_shuffle_f32x4(a.p[0], b.p[0], 0xEE));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c.p[0], d.p[0], 0x44),
                                  _mm512_shuffle_f32x4(c.p[0], d.p[0], 0xEE));
  __m512 s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4E));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xB1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(to, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, s)));
#elif defined(__AVX2__)
  const __m256 a8 = _mm256_add_ps(a.p[0], a.p[1]), b8 = _mm256_add_ps(b.p[0], b.p[1]);
  const __m256 c8 = _mm256_add_ps(c.p[0], c.p[1]), d8 = _mm256_add_ps(d.p[0], d.p[1]);
  const __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
  const __m256 cd = _mm256_add_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
  // in each half: the sums of two lanes of a or b, then those of c or d
  const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xEE));
  const __m256 sums = _mm256_add_ps(_mm256_shuffle_ps(s, s, 0x88), _mm256_shuffle_ps(s, s, 0xDD));
  _mm_storeu_ps(to, _mm_unpacklo_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
#else
  const V* each[4] = {&a, &b, &c, &d};
  for (int n = 0; n < 4; ++n) {
    float lanes[kLanes];
    store(lanes, *each[n]);
    for (size_t width = kLanes / 2; width > 0; width /= 2)
      for (size_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    to[n] = lanes[0];
  }
#endif
}
inline float sum_lanes(V x) {
  float sums[4];
  sum_lanes(x, x, x, x, sums);
  return sums[0];
}
inline float max_lanes(V x) {
  alignas(64) float lanes[kLanes];
  store(lanes, x);
  float most = lanes[0];
  for (size_t i = 1; i < kLanes; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

}  // namespace
}  // namespace gristmill
