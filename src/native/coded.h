// Matrices of coded weights: small whole numbers with scales, as GGUF, GPTQ and their kin store them.
//
// Sixteen output rows lie side by side (a strip), so that a lane of a register is a row and what is read are two
// streams. A record is so many inputs as share their first scales, in blocks of 32 inputs. A strip has
//   of each record  header [fields][16 rows], and of each of its blocks a block header [fields][16 rows];
//   padding to 64 bytes, which codes are aligned to;
//   of each block   its codes.
// Codes of 4 bits: 4 vectors [16 rows][4 inputs], inputs 4v + i in the low nibbles of vector v and 16 + 4v + i in
// the high ones. Fifth bits: one more vector, bit j for input 4j + i. Bits five and six: two more, bits 2s and 2s + 1
// of vector u for input 16u + 4s + i. Codes of 8 bits, signed: 8 vectors, input 4v + i in vector v.
// GGUF's blocks are brought into this layout by coded_pack.cpp, other codes by gristmill.kernels.coded.
#pragma once

#include "types.h"

namespace gristmill {

enum class Coding : int { q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, i4, i8 };
constexpr int kCodings = 10;
constexpr size_t kBlock = 32;

struct Coded {
  const uint8_t* data;
  Coding coding;
  size_t out, in;
  size_t group;      // inputs of a record of i4 and i8
  bool wide_scales;  // of i4 and i8: fp32 and not f16
};

// How records are made. W = scale * (code - offset) + minimum, where scale and minimum are products of the fields.
struct CodedShape {
  int bits, offset;
  size_t record_blocks;  // 0: group / 32
  size_t header, block_header;
};
constexpr CodedShape shape_of(Coding c) {
  switch (c) {
    case Coding::q4_0: return {4, 8, 1, 32, 0};      // f16 d
    case Coding::q4_1: return {4, 0, 1, 64, 0};      // f16 d, m
    case Coding::q5_0: return {5, 16, 1, 32, 0};     // f16 d
    case Coding::q5_1: return {5, 0, 1, 64, 0};      // f16 d, m
    case Coding::q8_0: return {8, 0, 1, 32, 0};      // f16 d
    case Coding::q4_k: return {4, 0, 8, 64, 32};     // f16 d, dmin; u8 scale, min
    case Coding::q5_k: return {5, 0, 8, 64, 32};     // f16 d, dmin; u8 scale, min
    case Coding::q6_k: return {6, 32, 8, 32, 32};    // f16 d; i8 scale of either half of the block
    case Coding::i4: return {4, 0, 0, 48, 0};        // f16 scale (or fp32), i8 zero
    case Coding::i8: return {8, 0, 0, 48, 0};        // f16 scale (or fp32), i8 zero - 128
  }
  return {};
}
constexpr size_t code_bytes(int bits) { return bits == 8 ? 512 : size_t(bits) * 64; }

struct CodedLayout {
  size_t records, record_blocks, header, codes, strip;  // the last three in bytes: codes is where they begin
};
inline CodedLayout layout_of(const Coded& m) {
  const CodedShape s = shape_of(m.coding);
  const size_t blocks = s.record_blocks ? s.record_blocks : (m.group + kBlock - 1) / kBlock;
  const size_t records = s.record_blocks ? (m.in + kBlock * blocks - 1) / (kBlock * blocks) : m.in / m.group;
  const size_t header = s.header + (m.wide_scales ? 32 : 0);
  const size_t codes = (records * (header + blocks * s.block_header) + 63) / 64 * 64;
  return {records, blocks, header, codes, codes + records * blocks * code_bytes(s.bits)};
}

// x in blocks of 32, `width` rows side by side (rows beyond the last are zeros). Rounded to 8 bits, a block is
// int32 [8][width] of four inputs each, [3][width] -128 times the sum of all of them, of the first and of the second
// half, then fp32 [width] scales and [width] scale times sum. As floats it is [32][width] and [width] sums.
constexpr size_t rounded_block(size_t width) { return 13 * width; }
constexpr size_t float_block(size_t width) { return 33 * width; }

struct CodedDot {
  Coded matrix;
  CodedLayout layout;
  const float* x;  // packed
  int width, rows;
  float* y;
  size_t y_stride;
  const float* bias;
  bool add;
};

// y[m, o] = sum_i W[o, i] x[m, i] (+ bias[o]), a chain of multiply-adds over the blocks of a row; avx2 and avx512 agree
// in every bit.
struct CodedKernels {
  int widths[8];  // of a tile, ascending, 0 beyond
  // The scale of a block is its largest magnitude / 127.
  void (*round)(const float* x, size_t stride, size_t in, int rows, int width, float* to);
  void (*spread)(const float* x, size_t stride, size_t in, int rows, int width, float* to);
  void (*dot[kCodings])(const CodedDot&, size_t begin, size_t end);        // strips, rounded x
  void (*dot_float[kCodings])(const CodedDot&, size_t begin, size_t end);  // strips, x as floats
  // One row of the matrix as floats.
  void (*row)(const Coded& m, size_t row, float* to);
};

// Of an instruction set that this machine can run; avx512 without VNNI has avx2's.
const CodedKernels& coded_kernels_of(Isa isa);

// The rows of a GGUF tensor, each `row_bytes`, in that layout; `to` has a strip for every sixteen rows.
void pack_blocks(const Coded& matrix, const uint8_t* blocks, size_t row_bytes, uint8_t* to, int threads);


struct CodedLinear {
  Coded matrix;
  const float* bias;
  float* y;
  size_t y_stride;
  bool add;
};
// Several layers of the same x [rows, in], as `linear` (linear.h); x is rounded to 8 bits or multiplied as it is.
void coded_linear(Isa isa, const CodedLinear* layers, size_t count, const float* x, size_t x_stride, size_t rows,
                  bool rounded, int threads);

}  // namespace gristmill
