// GGUF's blocks, row after row, to strips of sixteen rows (coded.h). Bits are moved, none is changed; the formulas are
// those of ggml's dequantize_row functions, and gristmill.kernels.coded has them in PyTorch.
#include <algorithm>
#include <cstring>

#include "coded.h"
#include "loops.h"

namespace gristmill {
namespace {

// A record of one row: its header and block header fields in their order, and its codes.
struct Record {
  uint16_t header[2];
  uint8_t fields[8][2];
  uint8_t codes[256];
};

uint16_t half(const uint8_t* at) { return uint16_t(at[0] | at[1] << 8); }

void nibbles(const uint8_t* from, uint8_t* to, size_t n) {  // all low ones, then all high ones
  for (size_t i = 0; i < n; ++i) to[i] = from[i] & 15, to[n + i] = from[i] >> 4;
}

void six_bits(const uint8_t* s, uint8_t (*fields)[2]) {
  for (int j = 0; j < 4; ++j) fields[j][0] = s[j] & 63, fields[j][1] = s[j + 4] & 63;
  for (int j = 4; j < 8; ++j) {
    fields[j][0] = uint8_t((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    fields[j][1] = uint8_t((s[j + 4] >> 4) | (s[j] >> 6) << 4);
  }
}

void take_apart(Coding coding, const uint8_t* b, Record& r) {
  switch (coding) {
    case Coding::q4_0: r.header[0] = half(b), nibbles(b + 2, r.codes, 16); return;
    case Coding::q4_1: r.header[0] = half(b), r.header[1] = half(b + 2), nibbles(b + 4, r.codes, 16); return;
    case Coding::q5_0:
    case Coding::q5_1: {
      const size_t at = coding == Coding::q5_0 ? 2 : 4;
      r.header[0] = half(b), r.header[1] = half(b + 2);
      nibbles(b + at + 4, r.codes, 16);
      for (size_t k = 0; k < 32; ++k) r.codes[k] |= uint8_t((b[at + k / 8] >> k % 8 & 1) << 4);
      return;
    }
    case Coding::q8_0: r.header[0] = half(b), std::memcpy(r.codes, b + 2, 32); return;
    case Coding::q4_k:
    case Coding::q5_k: {
      const bool five = coding == Coding::q5_k;
      r.header[0] = half(b), r.header[1] = half(b + 2);
      six_bits(b + 4, r.fields);
      for (size_t chunk = 0; chunk < 4; ++chunk) nibbles(b + (five ? 48 : 16) + 32 * chunk, r.codes + 64 * chunk, 32);
      if (five)
        for (size_t k = 0; k < 256; ++k) r.codes[k] |= uint8_t((b[16 + k % 32] >> k / 32 & 1) << 4);
      return;
    }
    case Coding::q6_k: {
      r.header[0] = half(b + 208);
      std::memcpy(r.fields, b + 192, 16);
      for (size_t h = 0; h < 2; ++h) nibbles(b + 64 * h, r.codes + 128 * h, 64);
      for (size_t k = 0; k < 256; ++k)
        r.codes[k] |= uint8_t((b[128 + k / 128 * 32 + k % 32] >> 2 * (k / 32 % 4) & 3) << 4);
      return;
    }
    case Coding::i4:
    case Coding::i8: return;  // not GGUF's
  }
}

// The codes of 32 inputs of one row into its lane.
void place(const uint8_t* q, int bits, size_t lane, uint8_t* to) {
  uint8_t* mine = to + 4 * lane;
  if (bits == 8) {
    for (size_t v = 0; v < 8; ++v) std::memcpy(mine + 64 * v, q + 4 * v, 4);
    return;
  }
  for (size_t v = 0; v < 4; ++v)
    for (size_t i = 0; i < 4; ++i) mine[64 * v + i] = uint8_t((q[4 * v + i] & 15) | (q[16 + 4 * v + i] & 15) << 4);
  if (bits == 4) return;
  for (size_t u = 0; u < size_t(bits - 4); ++u)
    for (size_t i = 0; i < 4; ++i) {
      uint8_t high = 0;
      if (bits == 5)
        for (size_t j = 0; j < 8; ++j) high |= uint8_t(q[4 * j + i] >> 4 << j);
      else
        for (size_t s = 0; s < 4; ++s) high |= uint8_t(q[16 * u + 4 * s + i] >> 4 << 2 * s);
      mine[256 + 64 * u + i] = high;
    }
}

}  // namespace

void pack_blocks(const Coded& m, const uint8_t* blocks, size_t row_bytes, uint8_t* to, int threads) {
  const CodedShape shape = shape_of(m.coding);
  const CodedLayout l = layout_of(m);
  const size_t strips = (m.out + kLanes - 1) / kLanes, block_bytes = row_bytes / l.records;
  parallel_ranges(threads, strips, 1, [&](size_t begin, size_t end) {
    for (size_t strip = begin; strip < end; ++strip) {
      uint8_t* start = to + strip * l.strip;
      std::memset(start, 0, l.codes);
      if ((strip + 1) * kLanes > m.out) std::memset(start, 0, l.strip);
      const size_t rows = std::min(kLanes, m.out - strip * kLanes);
      for (size_t record = 0; record < l.records; ++record) {
        uint8_t* fields = start + record * (l.header + l.record_blocks * shape.block_header);
        uint8_t* codes = start + l.codes + record * l.record_blocks * code_bytes(shape.bits);
        for (size_t lane = 0; lane < rows; ++lane) {
          Record r{};
          take_apart(m.coding, blocks + (strip * kLanes + lane) * row_bytes + record * block_bytes, r);
          for (size_t n = 0; n < l.header / 32; ++n) std::memcpy(fields + 32 * n + 2 * lane, &r.header[n], 2);
          for (size_t b = 0; b < l.record_blocks; ++b) {
            for (size_t n = 0; n < shape.block_header / kLanes; ++n)
              fields[l.header + b * shape.block_header + n * kLanes + lane] = r.fields[b][n];
            place(r.codes + kBlock * b, shape.bits, lane, codes + b * code_bytes(shape.bits));
          }
        }
      }
    }
  });
}

}  // namespace gristmill
