// Words of a text: what lies between white space, cut further by a rule (spaCy's, or none) that sees one such
// chunk at a time. A chunk is cut once and remembered with the hashes of its words.
#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "text_chars.h"

namespace gristmill::text {

// Bits of a word.
enum : uint8_t { kWordAlpha = 1, kWordPlain = 2, kWordPunct = 4, kWordSentence = 8, kWordStop = 16 };

struct Word {
  uint64_t hash;  // polynomial of its bytes mod 2^61-1, so that hashes of joined words follow from theirs
  uint64_t power;  // the polynomial's base to the number of its bytes
  uint64_t norm;   // of the word in lower case without accents, punctuation and digits' values; 0 = nothing left
  uint32_t at, bytes;  // in the chunk, or in the text
  uint32_t chars;
  uint32_t char_at;
  uint8_t bits, stop;  // stop: which of the stop words it is
};

constexpr uint64_t kPrime = (uint64_t(1) << 61) - 1;
inline uint64_t times(uint64_t a, uint64_t b) {
  const unsigned __int128 r = static_cast<unsigned __int128>(a) * b;
  const uint64_t s = (uint64_t(r) & kPrime) + uint64_t(r >> 61);
  return s >= kPrime ? s - kPrime : s;
}
inline uint64_t plus(uint64_t a, uint64_t b) {
  const uint64_t s = a + b;
  return s >= kPrime ? s - kPrime : s;
}

// What cuts chunks.
enum class Cut : int {
  whitespace = 0,  // not at all; a character of an unspaced script is a word of its own
  asked = 1,       // Python is asked for every chunk
  english = 2      // spaCy's English rules for plain shapes, Python is asked for the others
};

class Words {
 public:
  Words(Cut cut, size_t limit, const std::vector<std::string>& specials);
  Chars chars;

  // Forgets everything once more than `limit` chunks are known. Words handed out are copies and stay.
  void trim();
  size_t known() const { return used_; }
  Cut cut() const { return cut_; }
  void add(std::string_view chunk, const std::vector<uint32_t>& ends);  // ends of its words, in bytes

  struct Found {
    const Word* first;
    uint32_t count;
  };
  // The words of a chunk; count 0 and the chunk in `unknown` if Python must be asked.
  Found find(std::string_view chunk, std::vector<std::string_view>& unknown);

 private:
  struct Entry {
    uint64_t hash;
    size_t key;
    uint32_t key_bytes, count;
    size_t first;
  };
  bool cut_natively(std::string_view chunk, std::vector<uint32_t>& ends) const;
  bool special(std::string_view s) const;
  Word measure(std::string_view chunk, uint32_t from, uint32_t to) const;
  Entry& slot(std::string_view chunk, uint64_t hash);
  void grow();

  Cut cut_;
  size_t limit_, used_ = 0;
  std::unordered_set<std::string> specials_;
  std::vector<Entry> table_;
  std::vector<Word> words_;
  std::string keys_;
};

// Walks over `text`: `on_chunk(chunk)` for what is not white space, `on_gap(run)` for runs of white space.
template <class C, class G>
void walk(const Chars& chars, std::string_view text, C on_chunk, G on_gap) {
  const char *p = text.data(), *end = p + text.size();
  while (p < end) {
    const char *start = p, *q = p;
    const bool space = next_is_space(chars, q);
    for (p = q; p < end; p = q)
      if (next_is_space(chars, q) != space) break;
    const std::string_view run(start, size_t(p - start));
    if (space)
      on_gap(run);
    else
      on_chunk(run);
  }
}

}  // namespace gristmill::text
