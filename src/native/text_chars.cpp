#include "text_chars.h"

#include <algorithm>
#include <cstring>

namespace gristmill::text {

std::vector<uint32_t> Chars::missing(std::string_view text) const {
  std::vector<uint32_t> pages;
  if (!pages_[0]) pages.push_back(0);
  const char *p = text.data(), *end = p + text.size();
  while (p < end) {
    uint64_t eight;
    if (end - p >= 8 && (std::memcpy(&eight, p, 8), !(eight & 0x8080808080808080u))) {
      p += 8;
      continue;
    }
    const uint32_t c = next_char(p);
    if (c >= 0x80 && !has(c) && std::find(pages.begin(), pages.end(), c >> 8) == pages.end())
      pages.push_back(c >> 8);
  }
  return pages;
}

std::string_view strip(const Chars& chars, std::string_view s) {
  const char *p = s.data(), *end = p + s.size();
  while (p < end) {
    const char* q = p;
    if (!next_is_space(chars, q)) break;
    p = q;
  }
  while (end > p) {
    const char* q = end;
    if (!(chars[char_before(q)].bits & kSpace)) break;
    end = q;
  }
  return {p, size_t(end - p)};
}

uint64_t hash_bytes(std::string_view s) {
  constexpr uint64_t k0 = 0x9e3779b97f4a7c15u, k1 = 0xd1b54a32d192ed03u, k2 = 0x8bb84b93962eacc9u;
  const char* p = s.data();
  size_t n = s.size();
  uint64_t h = k0 ^ n;
  while (n >= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    h = folded_product(h ^ word, k1);
    p += 8, n -= 8;
  }
  uint64_t word = 0;
  std::memcpy(&word, p, n);
  return folded_product(h ^ word ^ k2, k1 ^ (h << 1));
}

}  // namespace gristmill::text
