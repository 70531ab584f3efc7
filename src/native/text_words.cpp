#include "text_words.h"

#include <cstring>

namespace gristmill::text {

namespace {

constexpr uint64_t kBase = 0x0d3a1c5f7be24691u % kPrime;
constexpr std::string_view kStopWords[] = {"the", "be", "to", "of", "and", "that", "have", "with"};

bool ascii_letter(char c) { return uint8_t((c | 32) - 'a') < 26; }
bool ascii_digit(char c) { return uint8_t(c - '0') < 10; }
bool ascii_upper(char c) { return uint8_t(c - 'A') < 26; }

// The closing or opening mark of three bytes at `p`, if one is there.
bool mark(const char* p, const char* end, const char* bytes) { return end - p >= 3 && !std::memcmp(p, bytes, 3); }
const char* const kOpen = "\xe2\x80\x9c";        // the left double quotation mark
const char* const kClose = "\xe2\x80\x9d";       // the right one
const char* const kApostrophe = "\xe2\x80\x99";  // the right single one

}  // namespace

Words::Words(Cut cut, size_t limit, const std::vector<std::string>& specials)
    : cut_(cut), limit_(limit), specials_(specials.begin(), specials.end()), table_(1 << 12) {}

void Words::trim() {
  if (used_ <= limit_) return;
  table_ = std::vector<Entry>(1 << 12);
  words_ = {};
  keys_ = {};
  used_ = 0;
}

// A chunk of up to eight bytes is its own key; of a longer one, the place in keys_.
Words::Entry& Words::slot(std::string_view chunk, uint64_t hash) {
  const size_t mask = table_.size() - 1;
  size_t bytes = 0;
  if (chunk.size() <= 8) std::memcpy(&bytes, chunk.data(), chunk.size());
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    Entry& e = table_[i];
    if (!e.count) return e;
    if (e.hash != hash || e.key_bytes != chunk.size()) continue;
    if (chunk.size() <= 8 ? e.key == bytes : !std::memcmp(&keys_[e.key], chunk.data(), chunk.size())) return e;
  }
}

void Words::grow() {
  std::vector<Entry> old(table_.size() * 2);
  old.swap(table_);
  const size_t mask = table_.size() - 1;
  for (const Entry& e : old) {
    if (!e.count) continue;
    size_t i = e.hash & mask;
    while (table_[i].count) i = (i + 1) & mask;
    table_[i] = e;
  }
}

Word Words::measure(std::string_view chunk, uint32_t from, uint32_t to) const {
  const std::string_view s = chunk.substr(from, to - from);
  Word w{0, 1, 0, from, to - from, 0, 0, kWordPunct, 0};
  for (char c : s) {
    w.hash = plus(times(w.hash, kBase), uint64_t(uint8_t(c)) + 1);
    w.power = times(w.power, kBase);
  }
  std::string norm;
  bool in_number = false;
  for (const char *p = s.data(), *end = p + s.size(); p < end;) {
    const Char& c = chars[next_char(p)];
    w.chars++;
    if (c.bits & kAlpha) w.bits |= kWordAlpha;
    if (!(c.bits & kSymbol)) w.bits |= kWordPlain;
    if (!(c.bits & kPunct)) w.bits &= uint8_t(~kWordPunct);
    if (c.bits & (kPunct | kSymbol | kMark)) continue;
    const uint32_t folded = c.bits & kDigit ? '0' : c.fold;
    if (!(c.bits & kDigit && in_number)) norm.append(reinterpret_cast<const char*>(&folded), 4);
    in_number = c.bits & kDigit;
  }
  const char* last = s.data() + s.size();
  const uint16_t bits = chars[char_before(last)].bits;
  if (cut_ == Cut::whitespace ? bits & kTerminal : w.chars == 1 && bits & kSentence) w.bits |= kWordSentence;
  if (!norm.empty()) w.norm = hash_bytes(norm) | 1;
  for (uint8_t i = 0; i < 8; i++)
    if (s == kStopWords[i]) w.bits |= kWordStop, w.stop = i;
  return w;
}

void Words::add(std::string_view chunk, const std::vector<uint32_t>& ends) {
  const uint64_t hash = hash_bytes(chunk);
  Entry& e = slot(chunk, hash);
  if (e.count || ends.empty()) return;
  e = {hash, keys_.size(), uint32_t(chunk.size()), uint32_t(ends.size()), words_.size()};
  if (chunk.size() > 8)
    keys_ += chunk;
  else
    std::memcpy(&(e.key = 0), chunk.data(), chunk.size());
  uint32_t from = 0;
  for (uint32_t to : ends) {
    words_.push_back(measure(chunk, from, to));
    from = to;
  }
  if (++used_ * 2 > table_.size()) grow();
}

Words::Found Words::find(std::string_view chunk, std::vector<std::string_view>& unknown) {
  const uint64_t hash = hash_bytes(chunk);
  const Entry* e = &slot(chunk, hash);
  if (!e->count) {
    std::vector<uint32_t> ends;
    if (!cut_natively(chunk, ends)) {
      unknown.push_back(chunk);
      return {nullptr, 0};
    }
    add(chunk, ends);
    e = &slot(chunk, hash);
  }
  return {&words_[e->first], e->count};
}

bool Words::special(std::string_view s) const { return specials_.count(std::string(s)) != 0; }

// Whether `chunk` has one of the shapes whose words are certain, and where they end. For English: a core of letters
// (with single hyphens), or of digits (with single points and commas), between simple punctuation, with 's perhaps.
// Nothing of it may be one of spaCy's exceptions; marks that make faces (":", ";" after others) are left to spaCy.
bool Words::cut_natively(std::string_view chunk, std::vector<uint32_t>& ends) const {
  const char *begin = chunk.data(), *end = begin + chunk.size(), *p = begin;
  const auto cut_at = [&](const char* at) { ends.push_back(uint32_t(at - begin)); };
  if (cut_ == Cut::asked) return false;
  if (cut_ == Cut::whitespace) {
    const char* start = p;
    while (p < end) {
      const char* at = p;
      if (!(chars[next_char(p)].bits & kUnspaced)) continue;
      if (at > start) cut_at(at);
      cut_at(start = p);
    }
    if (end > start) cut_at(end);
    return true;
  }
  while (p < end) {  // opening marks
    if (*p == '(' || *p == '"' || *p == '[')
      p++;
    else if (mark(p, end, kOpen))
      p += 3;
    else
      break;
    cut_at(p);
  }
  const char* core = p;
  std::vector<uint32_t> inside;
  bool ascii = true;
  size_t letters = 0;
  if (p < end && ascii_digit(*p)) {
    while (p < end && (ascii_digit(*p) || ((*p == '.' || *p == ',') && p > core && ascii_digit(p[-1]) &&
                                           p + 1 < end && ascii_digit(p[1]))))
      p++, letters++;
  } else {
    while (p < end) {
      const char* q = p;
      const uint32_t c = next_char(q);
      if (c < 0x80 ? ascii_letter(char(c)) : (chars[c].bits & kAlpha && !(chars[c].bits & (kPunct | kUnspaced)))) {
        ascii &= c < 0x80;
        letters++;
      } else if (c == '-' && p > core && ascii_letter(p[-1]) && p + 1 < end && ascii_letter(p[1])) {
        inside.push_back(uint32_t(p - begin));
        inside.push_back(uint32_t(q - begin));
      } else {
        break;
      }
      p = q;
    }
  }
  const char* core_end = p;
  const bool alone = core == begin && core_end == end;
  if (!letters || (!alone && letters < 2) || (!ascii && !inside.empty())) return false;
  const std::string_view word(core, size_t(core_end - core));
  if (special(word)) return false;
  ends.insert(ends.end(), inside.begin(), inside.end());
  cut_at(core_end);
  if (alone) return true;
  const bool number = ascii_digit(*core);
  const size_t quote = p == end ? 0 : *p == '\'' ? 1 : mark(p, end, kApostrophe) ? 3 : 0;
  if (quote) {  // 's
    if (number || !ascii || p + quote >= end || p[quote] != 's') return false;
    p += quote + 1;
    if (special({core, size_t(p - core)})) return false;
    if (!inside.empty() && special({begin + inside.back(), size_t(p - begin - inside.back())})) return false;
    cut_at(p);
  }
  for (const char* tail = p; p < end;) {
    if (*p == '.') {
      const char before = p[-1];
      if (p + 1 < end && p[1] == '.') return false;
      if (p == core_end) {
        if (!ascii || !(ascii_digit(before) || !ascii_upper(before) ||
                        (p - core >= 2 && ascii_upper(p[-2]))))
          return false;
        if (special({core, word.size() + 1})) return false;
        if (!inside.empty() && special({begin + inside.back(), size_t(p + 1 - begin - inside.back())})) return false;
      } else if (!(before == 's' || before == ')')) {
        return false;
      }
      p++;
    } else if (*p == ',' || *p == '!' || *p == '?' || *p == ')' || *p == ']' || *p == '"') {
      p++;
    } else if ((*p == ':' || *p == ';') && p == tail && p + 1 == end) {
      p++;
    } else if (mark(p, end, kClose)) {
      p += 3;
    } else {
      return false;
    }
    cut_at(p);
  }
  return true;
}

}  // namespace gristmill::text
