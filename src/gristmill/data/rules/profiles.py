"""Named profiles: which rules hold for which kind of text, and with which limits.

The profile belongs to the source and is no guess about a document: web limits destroy good technical text (of
2,000 real documentation pages Gopher's quality rules keep 791, FineWeb's 1,004; these docs rules keep 84%).

web    datatrove's chain as FineWeb runs it: its words, order, limits and reasons, one by one.
code   RedPajama's and DCLM's limits, docs limits of our own. Both were widened until an installed Python lost no
       module that a person would miss: duplicate_lines at 0.30 dropped bisect.py, requests/api.py and httpx,
       literal lines at 0.5 dropped locale.py. No Gopher repetition: code samples and tables repeat by nature.
book   web's limits where a novel meets them. Not the bracket rule (transcribers write page marks as "{12}"), not
       50 to 100,000 words but at least 1,000, and no punctuation at line ends: books come hard-wrapped (Botchan
       has 0.10). A play's speakers are repeated lines, so only lines of 12 characters and more count there.
paper  formulas are words without letters, so half of the words need one; brackets and digits are usual.
wiki   short articles and lists of names are wanted; whole paragraphs twice are not.
qa, chat  an answer may be five words, and lists, code and repetition are part of talking.

Beyond web, code and docs the limits are a proposal, to be tuned on held-out loss. Stop words are English:
`in_language` takes them out for other languages.
"""

from __future__ import annotations

from dataclasses import replace

from gristmill.data.rules.table import Profile, Rule

EMPTY = Rule("empty", "chars", at_least=1)

GOPHER_REPETITION = (
    EMPTY,
    Rule("dup_para_frac", "dup_para_frac", at_most=0.30),
    Rule("dup_para_char_frac", "dup_para_char_frac", at_most=0.20),
    Rule("dup_line_frac", "dup_line_frac", at_most=0.30),
    Rule("dup_line_char_frac", "dup_line_char_frac", at_most=0.20),
    Rule("top_2_gram", "top_2_gram", at_most=0.20),
    Rule("top_3_gram", "top_3_gram", at_most=0.18),
    Rule("top_4_gram", "top_4_gram", at_most=0.16),
    Rule("duplicated_5_n_grams", "dup_5_gram", at_most=0.15),
    Rule("duplicated_6_n_grams", "dup_6_gram", at_most=0.14),
    Rule("duplicated_7_n_grams", "dup_7_gram", at_most=0.13),
    Rule("duplicated_8_n_grams", "dup_8_gram", at_most=0.12),
    Rule("duplicated_9_n_grams", "dup_9_gram", at_most=0.11),
    Rule("duplicated_10_n_grams", "dup_10_gram", at_most=0.10),
)
_WORD_LENGTH = (
    Rule("gopher_below_avg_threshold", "mean_word_length", at_least=3),
    Rule("gopher_above_avg_threshold", "mean_word_length", at_most=10),
)
_SYMBOLS = (
    Rule("gopher_too_many_hashes", "hash_ratio", at_most=0.1),
    Rule("gopher_too_many_ellipsis", "ellipsis_ratio", at_most=0.1),
    Rule("gopher_too_many_bullets", "bullet_line_ratio", at_most=0.9),
    Rule("gopher_too_many_end_ellipsis", "ellipsis_line_ratio", at_most=0.3),
)
_ALPHA = Rule("gopher_below_alpha_threshold", "alpha_word_ratio", at_least=0.8)
_STOP_WORDS = Rule("gopher_enough_stop_words", "stop_words", at_least=2)
GOPHER_QUALITY = (
    Rule("gopher_short_doc", "non_symbol_words", at_least=50),
    Rule("gopher_long_doc", "non_symbol_words", at_most=100_000),
    *_WORD_LENGTH,
    *_SYMBOLS,
    _ALPHA,
    _STOP_WORDS,
)
C4 = (
    Rule("curly_bracket", "c4_curly_bracket", at_most=0),
    Rule("lorem_ipsum", "c4_lorem_ipsum", at_most=0),
    Rule("too_few_sentences", "c4_sentences", at_least=5),
)
_LINE_ENDS = (
    Rule("line_punct_ratio", "line_punct_ratio", at_least=0.12),
    Rule("short_line_ratio", "short_line_ratio", at_most=0.67),
)
FINEWEB = (
    Rule("empty", "filled_lines", at_least=1),
    *_LINE_ENDS,
    Rule("char_dup_ratio", "char_dup_ratio", at_most=0.01),
    Rule("list_ratio", "list_ratio", at_most=0.3),
)

_SOURCE = (
    Rule("too_short", "filled_lines", at_least=5),
    Rule("generated", "generated_marks", at_most=0),
    Rule("long_line", "longest_line", at_most=1000),
    Rule("minified", "mean_line", at_most=100),
    Rule("data_table", "literal_line_share", at_most=0.75),
    Rule("data_table", "digit_share", at_most=0.30),
    Rule("few_letters", "alnum_share", at_least=0.25),
    Rule("duplicate_lines", "duplicate_line_share", at_most=0.60),
)
_PROSE = (
    Rule("data_table", "digit_share", at_most=0.35),
    Rule("few_letters", "lettered_word_share", at_least=0.5),
    Rule("long_words", "mean_word", at_most=12),
)
_PAGE = (
    Rule("too_short", "words", at_least=20),
    Rule("long_line", "longest_line", at_most=20_000),
    *_PROSE,
    Rule("list_of_words", "lines_per_word", at_most=1.0),
)
_COPIED_LINES = Rule("duplicate_lines", "duplicate_line_share", at_most=0.30)
_LONG_WORDS = Rule("long_words", "mean_word", at_most=12)
_HALF_LETTERED = Rule("gopher_below_alpha_threshold", "alpha_word_ratio", at_least=0.5)

WEB = Profile(
    "web", "spacy:en", (*GOPHER_REPETITION, *GOPHER_QUALITY, *C4, *FINEWEB), rewrites=True
)
CODE = Profile("code", "whitespace", _SOURCE)
DOCS = Profile("docs", "whitespace", (*_PAGE, _COPIED_LINES))
PYDOC = Profile("pydoc", "whitespace", _PAGE)  # related classes share docstrings
JSONL = Profile("jsonl", "whitespace", (Rule("too_short", "words", at_least=5), *_PROSE))
BOOK = Profile(
    "book",
    "spacy:en",
    (
        *GOPHER_REPETITION,
        Rule("gopher_short_doc", "non_symbol_words", at_least=1000),
        *_WORD_LENGTH,
        *_SYMBOLS,
        _ALPHA,
        _STOP_WORDS,
        Rule("lorem_ipsum", "c4_lorem_ipsum", at_most=0),
        Rule("too_few_sentences", "c4_sentences", at_least=5),
        Rule("short_line_ratio", "short_line_ratio", at_most=0.67),
        Rule("duplicate_lines", "duplicate_line_share", at_most=0.05),
        Rule("list_ratio", "list_ratio", at_most=0.3),
    ),
)
PAPER = Profile(
    "paper",
    "whitespace",
    (
        *GOPHER_REPETITION,
        Rule("gopher_short_doc", "non_symbol_words", at_least=100),
        _LONG_WORDS,
        _HALF_LETTERED,
        _STOP_WORDS,
        Rule("list_of_words", "lines_per_word", at_most=1.0),
        Rule("duplicate_lines", "duplicate_line_share", at_most=0.20),
    ),
)
WIKI = Profile(
    "wiki",
    "whitespace",
    (
        *GOPHER_REPETITION,
        Rule("gopher_short_doc", "non_symbol_words", at_least=20),
        _LONG_WORDS,
        Rule("gopher_below_alpha_threshold", "alpha_word_ratio", at_least=0.6),
        Rule("list_of_words", "lines_per_word", at_most=1.0),
        Rule("duplicate_lines", "duplicate_line_share", at_most=0.20),
    ),
)
_TALK = (
    EMPTY,
    Rule("gopher_short_doc", "non_symbol_words", at_least=5),
    _LONG_WORDS,
    _HALF_LETTERED,
    Rule("gopher_enough_stop_words", "stop_words", at_least=1),
    Rule("duplicate_lines", "duplicate_line_share", at_most=0.20),
)
QA = Profile("qa", "whitespace", _TALK)
CHAT = Profile("chat", "whitespace", _TALK)

# The profile of every kind of document, and those that a source may be given by name.
PROFILES: dict[str, Profile] = {
    "web": WEB,
    "docs": DOCS,
    "code": CODE,
    "python": CODE,
    "markdown": DOCS,
    "html": DOCS,
    "text": DOCS,
    "pydoc": PYDOC,
    "jsonl": JSONL,
    "book": BOOK,
    "paper": PAPER,
    "wiki": WIKI,
    "qa": QA,
    "chat": CHAT,
}


def in_language(profile: Profile, code: str) -> Profile:
    """`profile` for texts in the language `code` (ISO 639-1): other languages than English have other stop words
    and, for us, whitespace words."""
    if code == "en":
        return profile
    rules = tuple(rule for rule in profile.rules if rule.signal != "stop_words")
    return replace(profile, words="whitespace", rules=rules)
