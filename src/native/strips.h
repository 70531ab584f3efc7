// Strips of the cache (cache.h) read as fp32, a part of a vector at a time.
#pragma once

#include "cache.h"
#include "vec.h"

namespace gristmill {
namespace {

// Codes of four bits: the low or the high halves of so many bytes.
inline Part part_nibbles(const unsigned char* p, bool high) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm512_cvtepi32_ps(high ? _mm512_srli_epi32(wide, 4) : _mm512_and_si512(wide, _mm512_set1_epi32(15)));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm256_cvtepi32_ps(high ? _mm256_srli_epi32(wide, 4) : _mm256_and_si256(wide, _mm256_set1_epi32(15)));
#else
  Part r;
  for (size_t i = 0; i < kLanes; ++i) r.v[i] = float(high ? p[i] >> 4 : p[i] & 15);
  return r;
#endif
}

// Bits of an element's code.
constexpr size_t code_bits(Kept kept) {
  return kept == Kept::float32 ? 32 : kept == Kept::float16 ? 16 : kept == Kept::int8 ? 8 : 4;
}

// Keys<kept>: element c + half of sixteen keys, c even, after `group(c / kGroup)`; codes begin `begin(head_dim)` bytes
// into a strip. Values<kept, W>: W * 16 elements of a row from `width` on, W even for int4; rows have `stride` elements.
template <class T>
struct PlainKeys {
  const T* codes;
  PlainKeys() = default;
  PlainKeys(const unsigned char* strip, size_t) : codes(reinterpret_cast<const T*>(strip)) {}
  void group(size_t) {}
  Part at(size_t c, int half, int i) const { return part(codes + (c + half) * kLanes + i * kPartLanes); }
  static size_t begin(size_t) { return 0; }
};
template <class T, int W>
struct PlainValues {
  const T* codes;
  size_t stride;
  PlainValues(const unsigned char* strip, size_t width, size_t stride)
      : codes(reinterpret_cast<const T*>(strip) + width), stride(stride) {}
  Part at(size_t row, int w, int i) const { return part(codes + row * stride + w * kLanes + i * kPartLanes); }
};

template <Kept kept>
struct Keys;
template <Kept kept, int W>
struct Values;

template <>
struct Keys<Kept::float32> : PlainKeys<float> {
  using PlainKeys::PlainKeys;
};
template <int W>
struct Values<Kept::float32, W> : PlainValues<float, W> {
  using PlainValues<float, W>::PlainValues;
};
template <>
struct Keys<Kept::float16> : PlainKeys<f16> {
  using PlainKeys::PlainKeys;
};
template <int W>
struct Values<Kept::float16, W> : PlainValues<f16, W> {
  using PlainValues<f16, W>::PlainValues;
};

constexpr size_t kScales = kLanes * sizeof(float);  // before the codes of an int8 strip

template <>
struct Keys<Kept::int8> {
  const int8_t* codes;
  V scale;
  Keys() = default;
  Keys(const unsigned char* strip, size_t)
      : codes(reinterpret_cast<const int8_t*>(strip + kScales)), scale(load(reinterpret_cast<const float*>(strip))) {}
  void group(size_t) {}
  Part at(size_t c, int half, int i) const {
    return part_mul(part(codes + (c + half) * kLanes + i * kPartLanes), scale.p[i]);
  }
  static size_t begin(size_t) { return kScales; }
};
template <int W>
struct Values<Kept::int8, W> {
  const float* scales;
  const int8_t* codes;
  size_t stride;
  Values(const unsigned char* strip, size_t width, size_t stride)
      : scales(reinterpret_cast<const float*>(strip)),
        codes(reinterpret_cast<const int8_t*>(strip + kScales) + width),
        stride(stride) {}
  Part at(size_t row, int w, int i) const {
    return part_mul(part(codes + row * stride + w * kLanes + i * kPartLanes), part(scales[row]));
  }
};

template <>
struct Keys<Kept::int4> {
  const f16* grid;
  const unsigned char* codes;
  V scale, least;
  Keys() = default;
  Keys(const unsigned char* strip, size_t width)
      : grid(reinterpret_cast<const f16*>(strip)), codes(strip + begin(width)) {}
  void group(size_t g) { scale = load(grid + 2 * kLanes * g), least = load(grid + 2 * kLanes * g + kLanes); }
  Part at(size_t c, int half, int i) const {
    return part_fma(part_nibbles(codes + c / 2 * kLanes + i * kPartLanes, half), scale.p[i], least.p[i]);
  }
  static size_t begin(size_t width) { return (width + kGroup - 1) / kGroup * 2 * kLanes * sizeof(f16); }
};
template <int W>
struct Values<Kept::int4, W> {
  float scales[W / 2][kLanes], leasts[W / 2][kLanes];
  const unsigned char* codes;
  size_t stride;
  Values(const unsigned char* strip, size_t width, size_t stride)
      : codes(strip + Keys<Kept::int4>::begin(stride) + width / 2), stride(stride / 2) {
    const f16* grid = reinterpret_cast<const f16*>(strip) + width / kGroup * 2 * kLanes;
    for (int g = 0; g < W / 2; ++g) {
      store(scales[g], load(grid + 2 * kLanes * g));
      store(leasts[g], load(grid + 2 * kLanes * g + kLanes));
    }
  }
  Part at(size_t row, int w, int i) const {
    const Part code = part_nibbles(codes + row * stride + w / 2 * kLanes + i * kPartLanes, w % 2);
    return part_fma(code, part(scales[w / 2][row]), part(leasts[w / 2][row]));
  }
};

}  // namespace
}  // namespace gristmill
