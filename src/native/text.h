// One text, cut into words, lines and paragraphs, and every number that curation rules ask about it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "text_words.h"

namespace gristmill::text {

struct Piece {  // a line or a paragraph
  uint64_t hash;
  uint32_t at, bytes;  // in the text
  uint32_t char_at, chars;
};

// The lines of a text, split at every "\n".
std::vector<Piece> cut_lines(std::string_view text);

class Document {
 public:
  // Cuts `text`, which must stay where it is. Chunks that Python must cut first are in `unknown`; then call again.
  Document(Words& words, std::string_view text);

  const Chars& chars;
  std::string_view text;
  size_t char_count;
  std::vector<std::string_view> unknown;
  std::vector<Word> words;
  std::vector<Piece> lines;       // split at every "\n"
  std::vector<Piece> blocks;      // split at runs of "\n" (Gopher's lines)
  std::vector<Piece> paragraphs;  // of the stripped text, split at runs of two "\n" or more

 private:
  void cut_paragraphs();
};

using Numbers = std::map<std::string, double>;

// Each writes its signals; the meaning of every name is in gristmill/data/text/signals.py.
void gopher_quality(const Document& document, Numbers& to);
void gopher_repetition(const Document& document, Numbers& to);
void fineweb(const Chars& chars, std::string_view text, size_t words, Numbers& to);
void general(const Document& document, Numbers& to);

// C4's walk over the lines of a text.
struct C4 {
  size_t lines = 0, kept = 0, sentences = 0;
  size_t lorem_ipsum = 0, curly_bracket = 0;  // lines; brackets up to the first lorem ipsum
  std::string text;  // what is left
  size_t words = 0;  // in it
  std::vector<std::string> unknown;
};
C4 c4(Words& words, std::string_view text, bool terminal);

// 64 bits for each run of `n` words by their norms, or one for all words of a shorter text; words without a norm
// are left out. shingles: the same, sorted and unique.
std::vector<uint64_t> runs_of_words(const Document& document, size_t n);
std::vector<uint64_t> shingles(const Document& document, size_t n);

}  // namespace gristmill::text
