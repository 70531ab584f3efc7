// Writing a token's key and value into the cache (cache.h). The twin is gristmill.engine.kept.encode: what is read
// back are the same bits there and for every instruction set.
#pragma once

#include "functions.h"
#include "kernels.h"
#include "strips.h"

namespace gristmill {
namespace {

// Rounded to nearest, ties to even; beyond 65504 infinite.
inline void store(f16* to, V x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x.p[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  UNROLL for (int i = 0; i < kParts; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * kPartLanes),
                                                           _mm256_cvtps_ph(x.p[i], _MM_FROUND_TO_NEAREST_INT));
#else
  for (size_t i = 0; i < kLanes; ++i) {
    const uint32_t bits = bits_of(x.p[0].v[i]), size = bits & 0x7FFFFFFF;
    uint32_t half;
    if (size > 0x7F800000)
      half = 0x7E00;  // not a number
    else if (size >= 0x477FF000)
      half = 0x7C00;
    else if (size < 0x38800000)  // below 2^-14: adding 0.5 rounds to multiples of 2^-24
      half = bits_of(from_bits(size) + 0.5f) - 0x3F000000;
    else
      half = (size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13;
    to[i].bits = uint16_t(half | (bits >> 16 & 0x8000));
  }
#endif
}

inline V load_up_to(const float* from, size_t n) { return n < kLanes ? load_first(from, n) : load(from); }

// Whole numbers of x from `lowest` to `highest`; `lowest` where x is not a number. Ties to even.
inline V whole(V x, float lowest, float highest) {
  const V magic = set(12582912.0f);  // 1.5 * 2^23
  return (min(max(x, set(lowest)), set(highest)) + magic) - magic;
}

// 0 where x is finite, else not a number.
inline V finite(V x) { return x - x; }

// Where a vector goes: position `lane` of a strip, of keys or of rows of `stride` elements.
struct Place {
  unsigned char* strip;
  size_t lane;
  bool key;
  size_t stride;
};

template <class T>
inline void put(const Place& place, size_t begin, size_t at, const T* codes, size_t n) {
  T* strip = reinterpret_cast<T*>(place.strip + begin);
  if (place.key)
    for (size_t i = 0; i < n; ++i) strip[(at + i) * kLanes + place.lane] = codes[i];
  else
    std::memcpy(strip + place.lane * place.stride + at, codes, n * sizeof(T));
}

inline void keep_float16(const Place& place, const float* x, size_t n) {
  f16 codes[kLanes];
  for (size_t i = 0; i < n; i += kLanes) {
    const size_t count = least(kLanes, n - i);
    store(codes, load_up_to(x + i, count));
    put(place, 0, i, codes, count);
  }
}

// scale = largest magnitude / 127. Zeros have a scale of zero; where one number is not finite, none of them is.
inline void keep_int8(const Place& place, const float* x, size_t n) {
  V top = set(0.0f), bad = top;
  for (size_t i = 0; i < n; i += kLanes) {
    const V part = load_up_to(x + i, least(kLanes, n - i));
    top = max(magnitude(part), top), bad = bad + finite(part);
  }
  const float scale = max_lanes(top) / 127.0f + sum_lanes(bad);
  reinterpret_cast<float*>(place.strip)[place.lane] = scale;
  const V step = set(scale == 0.0f ? 1.0f : scale);
  float wide[kLanes];
  int8_t codes[kLanes];
  for (size_t i = 0; i < n; i += kLanes) {
    const size_t count = least(kLanes, n - i);
    store(wide, whole(load_up_to(x + i, count) / step, -127.0f, 127.0f));
    for (size_t j = 0; j < kLanes; ++j) codes[j] = int8_t(wide[j]);
    put(place, Keys<Kept::int8>::begin(n), i, codes, count);
  }
}

// Of each 32 elements scale = (most - least) / 15, both rounded to fp16 before codes are chosen. Where one number is
// not finite or fp16 cannot hold the two, none of the 32 is a number.
inline void keep_int4(const Place& place, const float* x, size_t n) {
  for (size_t at = 0; at < n; at += kGroup) {
    const size_t count = least(kGroup, n - at);
    alignas(64) float wide[kGroup];
    for (size_t i = 0; i < kGroup; ++i) wide[i] = x[at + (i < count ? i : 0)];
    const V a = load(wide), b = load(wide + kLanes);
    const float most = max_lanes(max(a, b)), fewest = -max_lanes(max(set(0.0f) - a, set(0.0f) - b));
    const float bad = sum_lanes(finite(a) + finite(b));
    f16 scales[kLanes], leasts[kLanes];
    store(scales, set((most - fewest) / 15.0f + bad));
    store(leasts, set(fewest));
    const V low = load(leasts), scale = load(scales) + (finite(load(scales)) + finite(low));
    store(scales, scale);
    f16* grid = reinterpret_cast<f16*>(place.strip) + at / kGroup * 2 * kLanes + place.lane;
    grid[0] = scales[0], grid[kLanes] = leasts[0];
    const V step = select(set(0.0f) < scale, scale, set(1.0f));
    store(wide, whole((a - low) / step, 0.0f, 15.0f));
    store(wide + kLanes, whole((b - low) / step, 0.0f, 15.0f));
    unsigned char codes[kGroup / 2];
    const size_t next = place.key ? 1 : kLanes;  // what shares a byte with element i
    for (size_t i = 0; i < kGroup / 2; ++i) {
      const size_t low_half = place.key ? 2 * i : i;
      codes[i] = static_cast<unsigned char>(int(wide[low_half]) | int(wide[low_half + next]) << 4);
    }
    const Place bytes = {place.strip, place.lane, place.key, place.stride / 2};
    put(bytes, Keys<Kept::int4>::begin(n), at / 2, codes, place.key ? (count + 1) / 2 : kGroup / 2);
  }
}

void remember(const Cache& cache, const float* key, const float* value, size_t block, size_t head, size_t offset) {
  const size_t C = cache.head_dim, lane = offset % kLanes;
  const Place places[2] = {{cache.strip_of_keys(block, head, offset), lane, true, 0},
                           {cache.strip_of_values(block, head, offset), lane, false, cache.value_width}};
  for (const Place& place : places) {
    const float* x = place.key ? key : value;
    switch (cache.kept) {
      case Kept::float32: put(place, 0, 0, x, C); break;
      case Kept::float16: keep_float16(place, x, C); break;
      case Kept::int8: keep_int8(place, x, C); break;
      case Kept::int4: keep_int4(place, x, C); break;
    }
  }
}

}  // namespace
}  // namespace gristmill
