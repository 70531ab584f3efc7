// C4's rules for lines, in datatrove's order: the first that a line breaks decides about it.
#include <algorithm>
#include <cstring>

#include "text.h"

namespace gristmill::text {

namespace {

constexpr size_t kMinWords = 3, kMaxWordLength = 1000;
bool ends_with(std::string_view s, std::string_view end) {
  return s.size() >= end.size() && s.substr(s.size() - end.size()) == end;
}

// Whether `what` stands in `s`, looked for by its character at `rare`, of which texts have few.
bool has(std::string_view s, std::string_view what, size_t rare) {
  const char *p = s.data(), *end = p + s.size();
  while ((p = static_cast<const char*>(std::memchr(p, what[rare], size_t(end - p))))) {
    const size_t before = size_t(p - s.data());
    if (before >= rare && s.size() - before >= what.size() - rare && s.substr(before - rare, what.size()) == what)
      return true;
    p++;
  }
  return false;
}

bool has_policy(std::string_view s) {
  if (has(s, "terms of use", 3)) return true;
  if (has(s, "policy", 5) && (has(s, "privacy policy", 3) || has(s, "cookie policy", 3))) return true;
  if (!has(s, "cookies", 3)) return false;
  return has(s, "uses cookies", 8) || has(s, "use of cookies", 10) || has(s, "use cookies", 7);
}

// Lower case as far as the phrases above are concerned: ASCII, and the Kelvin sign, whose lower case is "k".
void lower(std::string_view line, std::string& to) {
  to.assign(line);
  for (char& c : to) c = char(c | (uint8_t(c - 'A') < 26 ? 32 : 0));
  if (to.find('\xe2') == to.npos) return;
  for (size_t at; (at = to.find("\xe2\x84\xaa")) != to.npos;) to.replace(at, 3, "k");
}

// The bytes of a citation mark at `p`: [12], [], [edit] or [citation needed]; 0 if none is there.
size_t citation(const Chars& chars, const char* p, const char* end) {
  for (std::string_view mark : {std::string_view("[edit]"), std::string_view("[citation needed]")})
    if (size_t(end - p) >= mark.size() && std::string_view(p, mark.size()) == mark) return mark.size();
  for (const char* q = p + 1; q < end;) {
    if (*q == ']') return size_t(q + 1 - p);
    if (!(chars[next_char(q)].bits & kDigit)) break;
  }
  return 0;
}

void without_citations(const Chars& chars, std::string_view line, std::string& to) {
  to.clear();
  const char *p = line.data(), *end = p + line.size();
  while (p < end) {
    const auto* open = static_cast<const char*>(std::memchr(p, '[', size_t(end - p)));
    if (!open) open = end;
    to.append(p, open);
    if (open == end) break;
    const size_t bytes = citation(chars, open, end);
    if (!bytes) to.push_back('[');
    p = open + std::max<size_t>(bytes, 1);
  }
}

bool has_long_word(const Chars& chars, std::string_view line) {
  bool found = false;
  walk(
      chars, line,
      [&](std::string_view word) { found |= word.size() > kMaxWordLength && count_chars(word) > kMaxWordLength; },
      [](std::string_view) {});
  return found;
}

// Whether a line has that many words between white space.
bool has_words(const Chars& chars, std::string_view line, size_t words) {
  size_t count = 0;
  bool space = true;
  for (const char *p = line.data(), *end = p + line.size(); p < end && count < words;) {
    const bool now = next_is_space(chars, p);
    count += space && !now;
    space = now;
  }
  return count >= words;
}

// Sentences of a line, whose words are counted too. By spaCy's sentencizer: a new one starts at the first word
// after an end mark that is no punctuation, and white space other than one space is a word to it. Without spaCy:
// words that end with an end mark end a sentence, and the last word does.
size_t sentences(Words& words, std::string_view line, C4& to) {
  size_t count = 0, seen = 0;
  bool ended = false;
  std::vector<std::string_view> asked;
  const bool plain = words.cut() == Cut::whitespace;
  const auto step = [&](bool end_mark, bool punctuation) {
    if (!seen++) count = 1;
    if (plain ? ended : ended && !end_mark && !punctuation) count++, ended = false;
    if (end_mark) ended = true;
  };
  walk(
      words.chars, line,
      [&](std::string_view chunk) {
        const Words::Found found = words.find(chunk, asked);
        to.words += found.count;
        for (uint32_t i = 0; i < found.count; i++)
          step(found.first[i].bits & kWordSentence, found.first[i].bits & kWordPunct);
      },
      [&](std::string_view run) {
        if (!plain && run != " ") step(false, false);
      });
  to.unknown.insert(to.unknown.end(), asked.begin(), asked.end());
  return count;
}

}  // namespace

C4 c4(Words& words, std::string_view text, bool terminal) {
  const Chars& chars = words.chars;
  C4 found;
  std::string line, low, kept;
  for_lines(chars, text, [&](std::string_view raw) {
    found.lines++;
    const std::string_view stripped = strip(chars, raw);
    if (stripped.size() > kMaxWordLength && has_long_word(chars, stripped)) return;
    without_citations(chars, stripped, line);
    if (terminal) {
      const char last = line.empty() ? ' ' : line.back();
      if (std::string_view(".?!\"'").find(last) == std::string_view::npos || ends_with(line, "...")) return;
    }
    if (!has_words(chars, stripped, kMinWords)) return;
    lower(line, low);
    if (has(low, "lorem ipsum", 7)) {
      found.lorem_ipsum++;
      return;
    }
    if (has(low, "javascript", 0)) return;
    if (has(line, "{", 0)) {
      found.curly_bracket += !found.lorem_ipsum;
      return;
    }
    if (has_policy(low)) return;
    found.sentences += sentences(words, line, found);
    if (found.kept++) kept += '\n';
    kept += line;
  });
  found.text = strip(chars, kept);
  return found;
}

}  // namespace gristmill::text
