// Words and Text as Python classes. A Text keeps the bytes it was cut from; its arrays are copies, as bytes.
#include "text_module.h"

#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "kernels.h"
#include "text.h"
#include "text_minhash.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gristmill::text {

namespace {

std::string_view view(const nb::bytes& b) { return {b.c_str(), b.size()}; }

template <class T>
nb::bytes packed(const std::vector<T>& values) {
  return nb::bytes(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

nb::list listed(const std::vector<std::string_view>& chunks) {
  nb::list list;
  for (std::string_view s : chunks) list.append(nb::bytes(s.data(), s.size()));
  return list;
}

struct Text {
  nb::bytes kept;
  Document document;
  Text(Words& words, const nb::bytes& text) : kept(text), document(words, view(kept)) {}
};

template <class T, class F>
nb::bytes each(const std::vector<T>& items, F number) {
  std::vector<uint64_t> values;
  values.reserve(items.size() * 2);
  for (const T& item : items) number(item, values);
  return packed(values);
}

nb::bytes spans(const std::vector<Piece>& pieces) {
  return each(pieces, [](const Piece& p, auto& to) { to.push_back(p.char_at), to.push_back(p.char_at + p.chars); });
}

nb::bytes hashes(const std::vector<Piece>& pieces) {
  return each(pieces, [](const Piece& p, auto& to) { to.push_back(p.hash); });
}

// Of two sorted sets of n and m elements; 0 for two empty ones.
double jaccard(const uint64_t* a, size_t n, const uint64_t* b, size_t m) {
  size_t both = 0;
  for (size_t i = 0, j = 0; i < n && j < m;) {
    const uint64_t x = a[i], y = b[j];
    both += x == y;
    i += x <= y;
    j += y <= x;
  }
  return both ? double(both) / double(n + m - both) : 0.0;
}

}  // namespace

void bind_text(nb::module_& m) {
  nb::class_<Words>(m, "TextWords")
      .def(
          "__init__",
          [](Words* self, int cut, size_t limit, const std::vector<std::string>& specials) {
            new (self) Words(Cut(cut), limit, specials);
          },
          "cut"_a, "limit"_a, "specials"_a)
      .def("trim", &Words::trim)
      .def("known", &Words::known)
      .def(
          "missing_pages", [](const Words& w, const nb::bytes& text) { return w.chars.missing(view(text)); }, "text"_a)
      .def(
          "fill",
          [](Words& w, uint32_t page, const std::vector<uint16_t>& bits, const std::vector<uint32_t>& folds) {
            if (page >= 0x1100 || bits.size() != 256 || folds.size() != 256)
              throw std::invalid_argument("a page has 256 characters and a number below 0x1100");
            w.chars.fill(page, bits.data(), folds.data());
          },
          "page"_a, "bits"_a, "folds"_a)
      .def(
          "add",
          [](Words& w, const nb::bytes& chunk, const std::vector<uint32_t>& ends) {
            const std::string_view s = view(chunk);
            uint32_t last = 0;
            for (uint32_t end : ends) {
              if (end <= last || end > s.size()) 
                throw std::invalid_argument("ends of words must grow inside the chunk");
              last = end;
            }
            if (last != s.size()) throw std::invalid_argument("the last word must end with the chunk");
            w.add(s, ends);
          },
          "chunk"_a, "ends"_a)
      .def(
          "c4",
          [](Words& w, const nb::bytes& text, bool terminal) {
            const C4 found = c4(w, view(text), terminal);
            nb::list unknown;
            for (const std::string& s : found.unknown) unknown.append(nb::bytes(s.data(), s.size()));
            const Numbers numbers{{"c4_lorem_ipsum", double(found.lorem_ipsum)},
                                  {"c4_curly_bracket", double(found.curly_bracket)},
                                  {"c4_sentences", double(found.sentences)},
                                  {"c4_kept_lines", double(found.kept)},
                                  {"c4_lines", double(found.lines)}};
            Numbers left;
            fineweb(w.chars, found.text, found.words, left);
            return nb::make_tuple(nb::bytes(found.text.data(), found.text.size()), numbers, left, unknown);
          },
          "text"_a, "terminal"_a);
  nb::class_<Text>(m, "Text")
      .def(nb::init<Words&, const nb::bytes&>(), "words"_a, "text"_a)
      .def("unknown", [](const Text& t) { return listed(t.document.unknown); })
      .def(
          "words",
          [](const Text& t) {
            return each(t.document.words, [](const Word& w, auto& to) {
              to.push_back(w.char_at), to.push_back(w.char_at + w.chars);
            });
          })
      .def("word_hashes",
           [](const Text& t) {
             return each(t.document.words, [](const Word& w, auto& to) { to.push_back(w.hash); });
           })
      .def("norms",
           [](const Text& t) {
             return each(t.document.words, [](const Word& w, auto& to) { to.push_back(w.norm); });
           })
      .def("lines", [](const Text& t) { return spans(t.document.lines); })
      .def("line_hashes", [](const Text& t) { return hashes(t.document.lines); })
      .def("paragraphs", [](const Text& t) { return spans(t.document.paragraphs); })
      .def("paragraph_hashes", [](const Text& t) { return hashes(t.document.paragraphs); })
      .def("gopher",
           [](const Text& t) {
             Numbers numbers;
             gopher_quality(t.document, numbers);
             gopher_repetition(t.document, numbers);
             return numbers;
           })
      .def("fineweb",
           [](const Text& t) {
             Numbers numbers;
             fineweb(t.document.chars, t.document.text, t.document.words.size(), numbers);
             return numbers;
           })
      .def("general",
           [](const Text& t) {
             Numbers numbers;
             general(t.document, numbers);
             return numbers;
           })
      .def(
          "runs_of_words", [](const Text& t, size_t n) { return packed(runs_of_words(t.document, n)); }, "n"_a)
      .def(
          "shingles", [](const Text& t, size_t n) { return packed(shingles(t.document, n)); }, "n"_a);
  m.def(
      "minhash",
      [](const nb::bytes& shingles, const nb::bytes& a, const nb::bytes& b, const std::string& isa) {
        const size_t count = a.size() / 8;
        if (a.size() != b.size() || count % kLanes) throw std::invalid_argument("functions come in whole lanes");
        Isa set = Isa::scalar;
        if (isa == "best")
          set = best_isa();
        else if (isa == "avx2" || isa == "avx512")
          set = isa == "avx2" ? Isa::avx2 : Isa::avx512;
        if (!supported(set)) throw std::invalid_argument("this machine cannot run " + isa);
        std::vector<uint32_t> least(count, 0xffffffffu);
        const auto numbers = [](const nb::bytes& b) { return reinterpret_cast<const uint64_t*>(b.c_str()); };
        minhash_of(set).lower(numbers(shingles), shingles.size() / 8, numbers(a), numbers(b), least.data(), count);
        return packed(least);
      },
      "shingles"_a, "a"_a, "b"_a, "isa"_a = "best");
  // uint64 flat, int64 offsets, int64 pairs [count, 2], float64 out [count]: addresses, which the caller checks.
  m.def(
      "jaccard_pairs",
      [](uintptr_t flat, uintptr_t offsets, uintptr_t pairs, uintptr_t out, size_t count) {
        nb::gil_scoped_release released;
        const auto* all = reinterpret_cast<const uint64_t*>(flat);
        const auto* begins = reinterpret_cast<const int64_t*>(offsets);
        const auto* pair = reinterpret_cast<const int64_t*>(pairs);
        auto* similarity = reinterpret_cast<double*>(out);
        for (size_t k = 0; k < count; k++) {
          const int64_t a = pair[2 * k], b = pair[2 * k + 1];
          similarity[k] = jaccard(all + begins[a], begins[a + 1] - begins[a], all + begins[b], begins[b + 1] - begins[b]);
        }
      },
      "flat"_a, "offsets"_a, "pairs"_a, "out"_a, "count"_a);
}

}  // namespace gristmill::text
