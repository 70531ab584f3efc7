// Codes in registers: four of each of sixteen rows in a vector of bytes (a word), and their products with x.
#pragma once

#include "vec.h"

namespace gristmill {
namespace {

// Measured: 1 KB ahead 13 GB/s a thread, 4 KB 17, 12 KB 20, 32 KB no more.
constexpr size_t kFetchAhead = 12288;
template <size_t Bytes>
inline void fetch(const uint8_t* at) {
#if defined(__GNUC__)
  UNROLL for (size_t i = 0; i < Bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
#else
  (void)at;
#endif
}

// The code of input k of a block in one lane; of 8 bits it is signed.
template <int Bits>
inline int one_code(const uint8_t* codes, int lane, int k) {
  const int word = k / 4, i = k % 4;
  if (Bits == 8) return int8_t(codes[64 * word + 4 * lane + i]);
  const int byte = codes[64 * (word % 4) + 4 * lane + i];
  int code = word < 4 ? byte & 15 : byte >> 4;
  if (Bits == 5) code |= (codes[256 + 4 * lane + i] >> word & 1) << 4;
  if (Bits == 6) code |= (codes[256 + 64 * (word / 4) + 4 * lane + i] >> 2 * (word % 4) & 3) << 4;
  return code;
}

#if defined(__AVX512F__) || defined(__AVX2__)

#if defined(__AVX512F__)
using IPart = __m512i;
constexpr bool kUnsignedCodes = true;  // VNNI takes signed bytes on one side only
inline IPart ipart_zero() { return _mm512_setzero_si512(); }
inline IPart ipart(int32_t x) { return _mm512_set1_epi32(x); }
inline IPart ipart_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
template <int N>
inline IPart ipart_right(IPart a) { return N ? _mm512_srli_epi32(a, N) : a; }
template <int N>
inline IPart ipart_left(IPart a) { return N ? _mm512_slli_epi32(a, N) : a; }
inline IPart ipart_shift(IPart a, int n) { return _mm512_srai_epi32(a, unsigned(n)); }
inline IPart ipart_and(IPart a, IPart b) { return _mm512_and_si512(a, b); }
inline IPart ipart_or(IPart a, IPart b) { return _mm512_or_si512(a, b); }
inline IPart ipart_xor(IPart a, IPart b) { return _mm512_xor_si512(a, b); }
inline Part ipart_floats(IPart a) { return _mm512_cvtepi32_ps(a); }
#else
using IPart = __m256i;
constexpr bool kUnsignedCodes = false;
inline IPart ipart_zero() { return _mm256_setzero_si256(); }
inline IPart ipart(int32_t x) { return _mm256_set1_epi32(x); }
inline IPart ipart_load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
template <int N>
inline IPart ipart_right(IPart a) { return N ? _mm256_srli_epi32(a, N) : a; }
template <int N>
inline IPart ipart_left(IPart a) { return N ? _mm256_slli_epi32(a, N) : a; }
inline IPart ipart_shift(IPart a, int n) { return _mm256_srai_epi32(a, n); }
inline IPart ipart_and(IPart a, IPart b) { return _mm256_and_si256(a, b); }
inline IPart ipart_or(IPart a, IPart b) { return _mm256_or_si256(a, b); }
inline IPart ipart_xor(IPart a, IPart b) { return _mm256_xor_si256(a, b); }
inline Part ipart_floats(IPart a) { return _mm256_cvtepi32_ps(a); }
#endif
constexpr size_t kPartBytes = sizeof(IPart);

// Word W of a block as bytes, part p of the sixteen rows; of 8 bits they are signed.
template <int Bits, int W>
inline IPart word(const uint8_t* codes, int p) {
  codes += size_t(p) * kPartBytes;
  if (Bits == 8) return ipart_load(codes + 64 * W);
  const IPart nibble = ipart(0x0F0F0F0F);
  IPart packed = ipart_load(codes + 64 * (W % 4));
#if defined(__GNUC__)
  __asm__("" : "+v"(packed));  // or it is read from memory once for each half
#endif
  IPart code = ipart_and(ipart_right<W < 4 ? 0 : 4>(packed), nibble);
  if (Bits == 5) {
    const IPart high = ipart_load(codes + 256);
    const IPart moved = W <= 4 ? ipart_left<W <= 4 ? 4 - W : 0>(high) : ipart_right<W <= 4 ? 0 : W - 4>(high);
    code = ipart_or(code, ipart_and(moved, ipart(0x10101010)));
  }
  if (Bits == 6) {
    constexpr int s = W % 4;
    const IPart high = ipart_load(codes + 256 + 64 * (W / 4));
    const IPart moved = s <= 2 ? ipart_left<s <= 2 ? 4 - 2 * s : 0>(high) : ipart_right<2>(high);
    code = ipart_or(code, ipart_and(moved, ipart(0x30303030)));
  }
  return code;
}

// The code of input 4W + i of each row.
template <int Bits>
inline V code_floats(const uint8_t* codes, int w, int i) {
  V r;
  UNROLL for (int p = 0; p < kParts; ++p) {
    const uint8_t* mine = codes + size_t(p) * kPartBytes;
    IPart all;
    if (Bits == 8) {
      all = ipart_load(mine + 64 * w);
    } else {
      all = ipart_load(mine + 64 * (w % 4));
      if (w >= 4) all = ipart_right<4>(all);
      all = ipart_and(all, ipart(0x0F0F0F0F));
      if (Bits == 5)
        for (int bit = 0; bit < 8; ++bit)
          if (bit == w) {
            const IPart high = ipart_load(mine + 256);
            const IPart one = ipart(0x01010101);
            IPart moved = high;
            for (int n = 0; n < bit; ++n) moved = ipart_right<1>(moved);
            all = ipart_or(all, ipart_left<4>(ipart_and(moved, one)));
          }
      if (Bits == 6) {
        IPart moved = ipart_load(mine + 256 + 64 * (w / 4));
        for (int n = 0; n < w % 4; ++n) moved = ipart_right<2>(moved);
        all = ipart_or(all, ipart_left<4>(ipart_and(moved, ipart(0x03030303))));
      }
    }
    for (int n = 0; n < 3 - i; ++n) all = ipart_left<8>(all);  // the byte to the top, then down with its sign
    all = Bits == 8 ? ipart_shift(all, 24) : ipart_right<24>(all);
    r.p[p] = ipart_floats(all);
  }
  return r;
}

#if defined(__AVX512VNNI__)

template <int Bits, int W, int M>
inline void dot_word(const uint8_t* codes, int p, const int32_t* x, IPart (&total)[M]) {
  IPart code = word<Bits, W>(codes, p);
  if (Bits == 8) code = ipart_xor(code, ipart(int(0x80808080)));
  UNROLL for (int m = 0; m < M; ++m) total[m] = _mm512_dpbusd_epi32(total[m], code, ipart(x[W * M + m]));
}
// total += the products of words [first, first + 4 or 8) with x. Few rows of x go in two chains: one would be as long
// as the products take to come.
template <int Bits, int M>
inline void dot_words(const uint8_t* codes, int p, int first, int count, const int32_t* x, IPart (&total)[M]) {
  if (first == 0) {
    dot_word<Bits, 0>(codes, p, x, total), dot_word<Bits, 1>(codes, p, x, total);
    dot_word<Bits, 2>(codes, p, x, total), dot_word<Bits, 3>(codes, p, x, total);
  }
  if (count == 8 && M <= 2) {
    IPart second[M];
    UNROLL for (int m = 0; m < M; ++m) second[m] = ipart_zero();
    dot_word<Bits, 4>(codes, p, x, second), dot_word<Bits, 5>(codes, p, x, second);
    dot_word<Bits, 6>(codes, p, x, second), dot_word<Bits, 7>(codes, p, x, second);
    UNROLL for (int m = 0; m < M; ++m) total[m] = _mm512_add_epi32(total[m], second[m]);
  } else if (first == 4 || count == 8) {
    dot_word<Bits, 4>(codes, p, x, total), dot_word<Bits, 5>(codes, p, x, total);
    dot_word<Bits, 6>(codes, p, x, total), dot_word<Bits, 7>(codes, p, x, total);
  }
}

#else

// Products of bytes add up in pairs of 16 bits: so many words fit (15, 31, 63 and 128 times 127, twice a word).
constexpr int words_that_fit(int bits) { return bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1; }

template <int Bits, int M, int W, int Count>
inline void dot_run(const uint8_t* codes, int p, const int32_t* x, IPart (&total)[M], IPart (&pairs)[M]) {
  const IPart code = word<Bits, W>(codes, p);
  const IPart size = Bits == 8 ? _mm256_abs_epi8(code) : code;
  UNROLL for (int m = 0; m < M; ++m) {
    const IPart now = ipart(x[W * M + m]);
    const IPart product = _mm256_maddubs_epi16(size, Bits == 8 ? _mm256_sign_epi8(now, code) : now);
    pairs[m] = W % Count == 0 ? product : _mm256_add_epi16(pairs[m], product);
    if (W % Count == Count - 1)
      total[m] = _mm256_add_epi32(total[m], _mm256_madd_epi16(pairs[m], _mm256_set1_epi16(1)));
  }
}
template <int Bits, int M>
inline void dot_words(const uint8_t* codes, int p, int first, int count, const int32_t* x, IPart (&total)[M]) {
  constexpr int fit = words_that_fit(Bits);
  IPart pairs[M];
  if (first == 0) {
    dot_run<Bits, M, 0, fit>(codes, p, x, total, pairs), dot_run<Bits, M, 1, fit>(codes, p, x, total, pairs);
    dot_run<Bits, M, 2, fit>(codes, p, x, total, pairs), dot_run<Bits, M, 3, fit>(codes, p, x, total, pairs);
  }
  if (first == 4 || count == 8) {
    dot_run<Bits, M, 4, fit>(codes, p, x, total, pairs), dot_run<Bits, M, 5, fit>(codes, p, x, total, pairs);
    dot_run<Bits, M, 6, fit>(codes, p, x, total, pairs), dot_run<Bits, M, 7, fit>(codes, p, x, total, pairs);
  }
}

#endif

// 32 floats times `inverse`, rounded half to even.
inline void to_codes(const float* x, float inverse, int8_t* codes) {
#if defined(__AVX512F__)
  for (int i = 0; i < 2; ++i) {
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(inverse)));
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + 16 * i), _mm512_cvtsepi32_epi8(whole));
  }
#else
  const __m256 factor = _mm256_set1_ps(inverse);
  __m256i whole[4];
  for (int i = 0; i < 4; ++i) whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), factor));
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_store_si256(reinterpret_cast<__m256i*>(codes), _mm256_permutevar8x32_epi32(bytes, order));
#endif
}

#else

struct IPart {
  int32_t v[kLanes];
};
constexpr bool kUnsignedCodes = false;
inline IPart ipart_zero() { return {}; }
inline IPart ipart(int32_t x) {
  IPart r;
  for (int32_t& lane : r.v) lane = x;
  return r;
}
inline IPart ipart_shift(IPart a, int n) {
  for (int32_t& lane : a.v) lane >>= n;
  return a;
}
inline Part ipart_floats(IPart a) {
  Part r;
  for (size_t i = 0; i < kLanes; ++i) r.v[i] = float(a.v[i]);
  return r;
}
template <int Bits>
inline V code_floats(const uint8_t* codes, int w, int i) {
  V r;
  for (int lane = 0; lane < int(kLanes); ++lane) r.p[0].v[lane] = float(one_code<Bits>(codes, lane, 4 * w + i));
  return r;
}
template <int Bits, int M>
inline void dot_words(const uint8_t* codes, int, int first, int count, const int32_t* x, IPart (&total)[M]) {
  for (int w = first; w < first + count; ++w)
    for (int lane = 0; lane < int(kLanes); ++lane)
      for (int i = 0; i < 4; ++i) {
        const int code = one_code<Bits>(codes, lane, 4 * w + i);
        for (int m = 0; m < M; ++m) {
          int8_t four[4];
          std::memcpy(four, x + w * M + m, 4);
          total[m].v[lane] += code * four[i];
        }
      }
}
inline void to_codes(const float* x, float inverse, int8_t* codes) {
  for (size_t i = 0; i < 32; ++i) {
    const float scaled = x[i] * inverse;
    codes[i] = scaled == scaled ? int8_t((scaled + 12582912.0f) - 12582912.0f) : int8_t(0);  // half to even
  }
}

#endif

}  // namespace
}  // namespace gristmill
