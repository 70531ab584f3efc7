// Memory that grows and is kept, aligned to cache lines.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace gristmill {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least so many floats, of any value; what was there before is lost when they are more than ever.
  float* floats(size_t count) {
    if (count > size_) {
      std::free(data_);
      size_ = 0;
      const size_t size = count + count / 2, bytes = (size * sizeof(float) + 63) / 64 * 64;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      if (!data_) throw std::bad_alloc();
      size_ = size;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gristmill
