#include "text.h"

#include <algorithm>

namespace gristmill::text {

namespace {

Piece piece(std::string_view text, size_t from, size_t to, uint32_t char_at) {
  const std::string_view s = text.substr(from, to - from);
  return {hash_bytes(s), uint32_t(from), uint32_t(s.size()), char_at, uint32_t(count_chars(s))};
}

}  // namespace

std::vector<Piece> cut_lines(std::string_view text) {
  std::vector<Piece> lines;
  uint32_t char_at = 0;
  for (size_t from = 0;;) {
    const size_t to = std::min(text.find('\n', from), text.size());
    lines.push_back(piece(text, from, to, char_at));
    if (to == text.size()) return lines;
    char_at += lines.back().chars + 1;
    from = to + 1;
  }
}

Document::Document(Words& known, std::string_view whole)
    : chars(known.chars), text(whole), char_count(count_chars(whole)) {
  words.reserve(whole.size() / 5 + 8);
  const char* counted = whole.data();
  uint32_t char_at = 0;
  const bool ascii = char_count == whole.size();
  const auto place = [&](std::string_view run) {
    if (ascii) return char_at = uint32_t(run.data() - whole.data());
    char_at += uint32_t(count_chars({counted, size_t(run.data() - counted)}));
    counted = run.data();
    return uint32_t(run.data() - whole.data());
  };
  walk(
      chars, whole,
      [&](std::string_view chunk) {
        const uint32_t at = place(chunk);
        const Words::Found found = known.find(chunk, unknown);
        uint32_t in_chars = char_at;
        for (uint32_t i = 0; i < found.count; i++) {
          words.push_back(found.first[i]);
          words.back().at += at;
          words.back().char_at = in_chars;
          in_chars += words.back().chars;
        }
      },
      [](std::string_view) {});
  lines = cut_lines(whole);
  cut_paragraphs();
}

void Document::cut_paragraphs() {
  for (size_t i = 0; i < lines.size(); i++)
    if (lines[i].bytes || i == 0 || i + 1 == lines.size()) blocks.push_back(lines[i]);
  const std::string_view inner = strip(chars, text);
  size_t from = size_t(inner.data() - text.data());
  const size_t end = from + inner.size();
  auto char_at = uint32_t(count_chars(text.substr(0, from)));
  for (size_t at = from;;) {
    const size_t to = std::min(text.find('\n', at), end);
    size_t next = to;
    while (next < end && text[next] == '\n') next++;
    if (to < end && next - to < 2) {
      at = next;
      continue;
    }
    paragraphs.push_back(piece(text, from, to, char_at));
    if (to == end) break;
    char_at += paragraphs.back().chars + uint32_t(next - to);
    from = at = next;
  }
}

}  // namespace gristmill::text
