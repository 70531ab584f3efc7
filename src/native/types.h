// What the kernels read: arrays of one of four element types, and the instruction sets they are compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gristmill {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2 };

// Elements of a stored array. Their order is part of the Python side (gristmill.kernels.linear).
enum class Type : int { f32 = 0, bf16 = 1, f16 = 2, int8 = 3 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline size_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::int8 ? 1 : 2; }

// A dense array that somebody else owns.
struct Array {
  const void* data = nullptr;
  Type type = Type::f32;
  explicit operator bool() const { return data != nullptr; }
  Array from(size_t element) const {
    return {static_cast<const char*>(data) + element * bytes_of(type), type};
  }
};

constexpr size_t kLanes = 16;
constexpr size_t whole_lanes(size_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

}  // namespace gristmill
