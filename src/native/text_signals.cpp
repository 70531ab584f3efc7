// The numbers of Gopher, FineWeb and of plain counting. Names and meanings: gristmill/data/text/signals.py.
#include <algorithm>

#include "text.h"

namespace gristmill::text {

namespace {

// 0 of nothing is 0.
double share(double part, double whole) { return whole == 0 ? 0.0 : part / whole; }

// A set of hashes that counts: open addressing, 0 is free (the hash 0 is kept as 1).
class Counts {
 public:
  explicit Counts(size_t n) {
    size_t size = 16;
    while (size < n * 2) size *= 2;
    slots_.resize(size);
  }
  void clear() { std::fill(slots_.begin(), slots_.end(), Slot{0, 0, 0}); }
  struct Slot {
    uint64_t hash;
    uint32_t count, first;
  };
  Slot& at(uint64_t hash) {
    hash += !hash;
    const size_t mask = slots_.size() - 1;
    for (size_t i = (hash * 0x9e3779b97f4a7c15u >> 20) & mask;; i = (i + 1) & mask) {
      if (slots_[i].hash == hash) return slots_[i];
      if (!slots_[i].hash) {
        slots_[i].hash = hash;
        return slots_[i];
      }
    }
  }

 private:
  std::vector<Slot> slots_;
};

// A set of hashes: whether one was in it, and now is.
class Seen {
 public:
  explicit Seen(size_t n) {
    size_t size = 16;
    while (size < n * 2) size *= 2;
    slots_.resize(size);
  }
  void clear() { std::fill(slots_.begin(), slots_.end(), 0); }
  bool again(uint64_t hash) {
    hash += !hash;
    const size_t mask = slots_.size() - 1;
    for (size_t i = (hash * 0x9e3779b97f4a7c15u >> 20) & mask;; i = (i + 1) & mask) {
      if (slots_[i] == hash) return true;
      if (!slots_[i]) return slots_[i] = hash, false;
    }
  }

 private:
  std::vector<uint64_t> slots_;
};

struct Repeated {
  double pieces = 0, chars = 0;
};
Repeated repeated(const std::vector<Piece>& pieces) {
  Repeated r;
  Seen seen(pieces.size());
  for (const Piece& p : pieces)
    if (seen.again(p.hash)) r.pieces++, r.chars += p.chars;
  return r;
}

bool starts_with_bullet(const Chars& chars, std::string_view line) {
  const std::string_view s = strip(chars, line);
  return !s.empty() && (s[0] == '-' || s.substr(0, 3) == "\xe2\x80\xa2");
}
bool ends_with_ellipsis(const Chars& chars, std::string_view line) {
  const std::string_view s = strip(chars, line);
  return s.size() >= 3 && (s.substr(s.size() - 3) == "..." || s.substr(s.size() - 3) == "\xe2\x80\xa6");
}

// As str.count: from the left, without overlaps.
size_t count(std::string_view text, std::string_view what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) n++;
  return n;
}

bool blank(const Chars& chars, std::string_view line) { return strip(chars, line).empty(); }

}  // namespace

void gopher_quality(const Document& d, Numbers& to) {
  const double words = double(d.words.size());
  double plain = 0, plain_chars = 0, alpha = 0;
  unsigned stop = 0;
  for (const Word& w : d.words) {
    if (w.bits & kWordPlain) plain++, plain_chars += w.chars;
    alpha += (w.bits & kWordAlpha) != 0;
    if (w.bits & kWordStop) stop |= 1u << w.stop;
  }
  double lines = 0, bullets = 0, ellipses = 0;
  for_lines(d.chars, d.text, [&](std::string_view line) {
    lines++;
    bullets += starts_with_bullet(d.chars, line);
    ellipses += ends_with_ellipsis(d.chars, line);
  });
  double stops = 0;
  for (; stop; stop >>= 1) stops += stop & 1;
  to["words"] = words;
  to["non_symbol_words"] = plain;
  to["mean_word_length"] = share(plain_chars, plain);
  to["hash_ratio"] = share(double(size_t(std::count(d.text.begin(), d.text.end(), '#'))), words);
  to["ellipsis_ratio"] = share(double(count(d.text, "...") + count(d.text, "\xe2\x80\xa6")), words);
  to["bullet_line_ratio"] = share(bullets, lines);
  to["ellipsis_line_ratio"] = share(ellipses, lines);
  to["alpha_word_ratio"] = share(alpha, words);
  to["stop_words"] = stops;
}

void gopher_repetition(const Document& d, Numbers& to) {
  const double chars = double(d.char_count);
  const Repeated lines = repeated(d.blocks), paragraphs = repeated(d.paragraphs);
  to["dup_line_frac"] = share(lines.pieces, double(d.blocks.size()));
  to["dup_line_char_frac"] = share(lines.chars, chars);
  to["dup_para_frac"] = share(paragraphs.pieces, double(d.paragraphs.size()));
  to["dup_para_char_frac"] = share(paragraphs.chars, chars);

  // grams[i] is the hash of the n words from i, joined; it grows by a word with n.
  const size_t count = d.words.size();
  std::vector<uint64_t> grams(count), spaced(count);
  std::vector<uint32_t> before(count + 1);  // characters of the words before i
  for (size_t i = 0; i < count; i++) {
    grams[i] = spaced[i] = d.words[i].hash;
    before[i + 1] = before[i] + d.words[i].chars;
  }
  Counts counts(count);
  Seen seen(count);
  const std::string ends[] = {"_gram", "dup_", "top_"};
  for (size_t n = 2; n <= 10; n++) {
    const size_t runs = count >= n ? count - n + 1 : 0;
    for (size_t i = 0; i < runs; i++) {
      const Word& next = d.words[i + n - 1];
      grams[i] = plus(times(grams[i], next.power), next.hash);
    }
    if (n <= 4) {
      counts.clear();
      // The words joined by spaces are equal where the words are: another multiplier keeps the borders apart.
      uint32_t most = 0, first = 0;
      for (size_t i = 0; i < runs; i++) {
        spaced[i] = plus(times(spaced[i], 0x123456789abcdefu), d.words[i + n - 1].hash);
        Counts::Slot& s = counts.at(spaced[i]);
        if (!s.count++) s.first = uint32_t(i);
        if (s.count > most || (s.count == most && s.first < first)) most = s.count, first = s.first;
      }
      const double length = runs ? double(before[first + n] - before[first]) + double(n - 1) : 0.0;
      to[ends[2] + std::to_string(n) + ends[0]] = share(length * most, chars);
    } else {
      seen.clear();
      double repeats = 0;
      for (size_t i = 0; i < runs;) {
        if (seen.again(grams[i])) {
          repeats += before[i + n] - before[i];
          i += n;
        } else {
          i++;
        }
      }
      to[ends[1] + std::to_string(n) + ends[0]] = share(repeats, chars);
    }
  }
}

void fineweb(const Chars& chars, std::string_view text, size_t words, Numbers& to) {
  constexpr uint32_t kShort = 30;
  const std::vector<Piece> lines = cut_lines(text);
  std::vector<Piece> filled;
  double ended = 0, brief = 0;
  for (const Piece& line : lines) {
    const std::string_view s = text.substr(line.at, line.bytes);
    if (blank(chars, s)) continue;
    filled.push_back(line);
    const char* p = s.data() + s.size();
    ended += (chars[char_before(p)].bits & kTerminal) != 0;
    brief += line.chars <= kShort;
  }
  const double breaks = double(lines.size() - 1), count = double(filled.size());
  to["line_punct_ratio"] = share(ended, count);
  to["short_line_ratio"] = share(brief, count);
  to["char_dup_ratio"] = share(repeated(filled).chars, double(count_chars(text)) - breaks);
  to["list_ratio"] = share(breaks, double(words));
}

void general(const Document& d, Numbers& to) {
  constexpr size_t kCounted = 12;  // brackets and other short lines repeat in every text
  double alnum = 0, upper = 0, digits = 0, filled_chars = 0;
  for (const char *p = d.text.data(), *end = p + d.text.size(); p < end;) {
    const uint32_t c = next_char(p);
    const uint16_t bits = d.chars[c].bits;
    alnum += (bits & kAlnum) != 0;
    upper += (bits & kUpper) != 0;
    digits += c - '0' < 10;
    filled_chars += !(bits & kSpace);
  }
  double filled = 0, line_chars = 0, again = 0;
  uint32_t longest = 0;
  Seen seen(d.lines.size());
  for (const Piece& line : d.lines) {
    longest = std::max(longest, line.chars);
    const std::string_view s = strip(d.chars, d.text.substr(line.at, line.bytes));
    if (s.empty()) continue;
    const size_t chars = count_chars(s);
    filled++, line_chars += double(chars);
    if (chars >= kCounted && seen.again(hash_bytes(s))) again += double(chars);
  }
  double words = 0, lettered = 0;
  size_t long_word = 0;
  const auto word = [&](std::string_view w, bool letter) {
    words++, lettered += letter;
    if (w.size() > long_word) long_word = std::max(long_word, count_chars(w));
  };
  walk(
      d.chars, d.text,
      [&](std::string_view chunk) {
        const char *p = chunk.data(), *end = p + chunk.size(), *start = p;
        bool letter = false;
        while (p < end) {
          const char* at = p;
          const uint16_t bits = d.chars[next_char(p)].bits;
          if (bits & kUnspaced) {
            if (at > start) word({start, size_t(at - start)}, letter);
            word({at, size_t(p - at)}, bits & kAlpha);
            start = p, letter = false;
          } else {
            letter |= (bits & kAlpha) != 0;
          }
        }
        if (end > start) word({start, size_t(end - start)}, letter);
      },
      [](std::string_view) {});
  to["chars"] = double(d.char_count);
  to["bytes"] = double(d.text.size());
  to["lines"] = double(d.lines.size());
  to["filled_lines"] = filled;
  to["longest_line"] = longest;
  to["mean_line"] = share(line_chars, filled);
  to["alnum_share"] = share(alnum, double(d.char_count));
  to["digit_share"] = share(digits, filled_chars);
  to["lettered_word_share"] = share(lettered, words);
  to["lines_per_word"] = share(filled, words);
  to["duplicate_line_share"] = share(again, line_chars);
  to["long_word"] = double(long_word);
  to["uppercase_share"] = share(upper, double(d.char_count));
}

std::vector<uint64_t> runs_of_words(const Document& d, size_t n) {
  std::vector<uint64_t> norms;
  norms.reserve(d.words.size());
  for (const Word& w : d.words)
    if (w.norm) norms.push_back(w.norm);
  std::vector<uint64_t> found;
  if (norms.empty()) return found;
  const size_t length = std::min(n, norms.size());
  found.reserve(norms.size() - length + 1);
  for (size_t i = 0; i + length <= norms.size(); i++) {
    uint64_t h = 0x9e3779b97f4a7c15u;
    for (size_t j = i; j < i + length; j++) h = folded_product(h ^ norms[j], 0xd1b54a32d192ed03u);
    found.push_back(h);
  }
  return found;
}

std::vector<uint64_t> shingles(const Document& d, size_t n) {
  std::vector<uint64_t> found = runs_of_words(d, n);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace gristmill::text
