// What a character is, as Python and spaCy see it: one page of 256 characters at a time, filled from Python, so
// that both sides use the same version of Unicode.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace gristmill::text {

// Bits of a character. Their order is part of the Python side (gristmill.data.text.segment).
enum : uint16_t {
  kSpace = 1,       // str.isspace
  kAlpha = 2,       // str.isalpha
  kAlnum = 4,       // str.isalnum
  kUpper = 8,       // str.isupper
  kPunct = 16,      // Unicode category P*
  kSymbol = 32,     // a word of these alone is a symbol (Gopher)
  kTerminal = 64,   // ends a line properly (FineWeb)
  kSentence = 128,  // ends a sentence (spaCy's sentencizer)
  kDigit = 256,     // str.isdecimal
  kBreak = 512,     // str.splitlines breaks here
  kMark = 1024,     // a combining mark (category Mn)
  kUnspaced = 2048  // of a script written without spaces: a word of its own
};

struct Char {
  uint16_t bits;
  uint32_t fold;  // lower case without accents
};

class Chars {
 public:
  bool has(uint32_t c) const { return c < 0x110000 && pages_[c >> 8]; }
  const Char& operator[](uint32_t c) const { return pages_[c >> 8][c & 255]; }
  void fill(uint32_t page, const uint16_t* bits, const uint32_t* folds) {
    pages_[page] = std::make_unique<Char[]>(256);
    for (int i = 0; i < 256; i++) pages_[page][i] = {bits[i], folds[i]};
  }
  // The pages that `text` needs and that are not filled.
  std::vector<uint32_t> missing(std::string_view text) const;

 private:
  std::unique_ptr<Char[]> pages_[0x1100];
};

// The character at `p`, which moves behind it. The bytes are valid UTF-8 (lone surrogates included).
inline uint32_t next_char(const char*& p) {
  const auto* u = reinterpret_cast<const uint8_t*>(p);
  if (u[0] < 0x80) return p += 1, u[0];
  if (u[0] < 0xe0) return p += 2, (u[0] & 31u) << 6 | (u[1] & 63u);
  if (u[0] < 0xf0) return p += 3, (u[0] & 15u) << 12 | (u[1] & 63u) << 6 | (u[2] & 63u);
  return p += 4, (u[0] & 7u) << 18 | (u[1] & 63u) << 12 | (u[2] & 63u) << 6 | (u[3] & 63u);
}

// The character that ends before `p`, which moves onto its first byte.
inline uint32_t char_before(const char*& p) {
  do p--;
  while ((uint8_t(*p) & 0xc0) == 0x80);
  const char* q = p;
  return next_char(q);
}

// str.isspace of the ASCII characters: the most asked question, answered without a page.
inline bool ascii_space(uint8_t c) { return c == ' ' || (c < ' ' && (0xf0003e00u >> c & 1u)); }

// Whether a white space character starts at `p`, which moves behind it.
inline bool next_is_space(const Chars& chars, const char*& p) {
  const auto c = uint8_t(*p);
  if (c < 0x80) return p++, ascii_space(c);
  return chars[next_char(p)].bits & kSpace;
}

inline size_t count_chars(std::string_view s) {
  size_t n = 0;
  for (char c : s) n += (uint8_t(c) & 0xc0) != 0x80;
  return n;
}

// str.strip: without white space at both ends.
std::string_view strip(const Chars& chars, std::string_view s);

// Calls `on(line)` for each line of str.splitlines().
template <class F>
void for_lines(const Chars& chars, std::string_view text, F on) {
  const char *p = text.data(), *end = p + text.size(), *start = p;
  while (p < end) {
    if (uint8_t(*p) >= ' ' && uint8_t(*p) < 0x80) {
      p++;
      continue;
    }
    const char* at = p;
    const uint32_t c = next_char(p);
    if (!(chars[c].bits & kBreak)) continue;
    on(std::string_view(start, size_t(at - start)));
    if (c == '\r' && p < end && *p == '\n') p++;
    start = p;
  }
  if (start < end) on(std::string_view(start, size_t(end - start)));
}

// 64 bits of a run of bytes: eight at a time, multiplied to 128 bits and folded.
uint64_t hash_bytes(std::string_view s);

inline uint64_t folded_product(uint64_t a, uint64_t b) {
  const unsigned __int128 r = static_cast<unsigned __int128>(a) * b;
  return uint64_t(r) ^ uint64_t(r >> 64);
}

}  // namespace gristmill::text
