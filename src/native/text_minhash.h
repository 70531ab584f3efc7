// MinHash: for each of many hash functions, the smallest value over the shingles of a text.
#pragma once

#include <cstddef>
#include <cstdint>

#include "types.h"

namespace gristmill::text {

// Function i of a shingle x is bits 32..63 of (a[i] * fold(x) + b[i]) mod 2^64, where fold is the exclusive or of
// x's halves: a multiply-shift hash of 32 bits to 32 bits. `least` [count] holds the smallest so far and is lowered.
// count is a multiple of kLanes. Every instruction set gives the same numbers.
struct MinHash {
  void (*lower)(const uint64_t* shingles, size_t n, const uint64_t* a, const uint64_t* b, uint32_t* least,
                size_t count);
};

const MinHash& minhash_of(Isa isa);

}  // namespace gristmill::text
