// Where a layer's keys and values lie, and in what form they are kept.
//
// Position p of a request is in block table[p / block_size]. Sixteen positions of one head are a strip, one of keys
// and one of values, [block][head][block_size / 16] each. In a strip stands first what its codes are read with, then
// the codes: of keys sixteen tokens side by side, a lane each, of values one row after the other. With C = head_dim,
// W = C rounded up to 16, for int4 to 32:
//
//            read with                                    keys              values
//   float32                                               [C][16]           [16][W]
//   float16                                               [C][16]           [16][W]
//   int8     scale fp32[16]                               [C][16]           [16][W]
//   int4     [W / 32] of (scale f16[16], least f16[16])   [(C + 1) / 2][16]  [16][W / 2]
//
// int8 is code * scale, with one scale for a token's key and one for its value; int4 is code * scale + least for each
// 32 elements. A byte of int4 holds elements 2i (the low half) and 2i + 1 of a key, and i and i + 16 of 32 elements of
// a value. What the rounded-up part of a row holds is computed with and dropped.
#pragma once

#include "types.h"

namespace gristmill {

// In the order of gristmill.engine.kept.CACHE_DTYPES.
enum class Kept : int { float32 = 0, float16 = 1, int8 = 2, int4 = 3 };

constexpr size_t kGroup = 32;  // elements that share a scale and a least value in int4

struct Cache {
  unsigned char *keys, *values;
  Kept kept;
  size_t block_size, heads, head_dim;
  size_t value_width;              // elements of a row, the rounded-up part included
  size_t key_strip, value_strip;   // bytes

  Cache(uintptr_t keys, uintptr_t values, Kept kept, size_t block_size, size_t heads, size_t head_dim);
  size_t strips() const { return heads * (block_size / kLanes); }  // of a block
  unsigned char* strip_of_keys(size_t block, size_t head, size_t offset) const {
    return keys + ((block * heads + head) * (block_size / kLanes) + offset / kLanes) * key_strip;
  }
  unsigned char* strip_of_values(size_t block, size_t head, size_t offset) const {
    return values + ((block * heads + head) * (block_size / kLanes) + offset / kLanes) * value_strip;
  }
};

}  // namespace gristmill
