"""The steps that each document goes through, in their order, and the settings that choose them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gristmill.data.curate import Curate, Draft, Step
from gristmill.data.judging import judged
from gristmill.errors import RequestError
from gristmill.files import hash_json, hash_path
from gristmill.stage import StageConfig

if TYPE_CHECKING:
    from gristmill.data.duplicates import EvalIndex

# Raised when a step decides otherwise than before: parts of an older program are then made anew.
VERSION = 3
# Kinds whose lines are cited, and compiled: there only what is certain is taken out.
CODE_KINDS = frozenset({"python", "code", "pydoc"})
_CERTAIN = frozenset({"email", "key"})
_QUICK_WORDS = 30  # of a page's quick text, which holds more than the page's article


class CurationConfig(StageConfig):
    """What each document goes through.

    profile: "auto" (by the kind of the document) or the name of a profile of rules for all (rules/profiles.py).
    limits: other limits for the rules, by signal or reason; "off" switches a rule off.
    languages: ISO 639 codes; documents that are not surely in one of them are dropped. () keeps all.
    block_urls, allow_urls, url_words: files of domains and of words, one a line; see urls.py.
    block_words: files of words and phrases, one a line; a document that holds one is dropped.
    private: what becomes of e-mail addresses, keys, phone numbers and the like: "remove" (<email>), "replace" (by
        stand-ins, equal for equal values under `private_key`), "flag" (counted, kept), "keep" (not looked for).
    allow_licenses, deny_licenses: SPDX ids or patterns such as "CC-BY-*".
    quality: a classifier's directory (`gristmill data classifier train`); min_quality: the probability to keep from.
    toxicity: likewise, trained on good against bad; max_toxicity: 1 - its probability, to keep up to.
    decontaminate: evaluation sets (JSONL, CSV, TSV); documents that hold an item of them are dropped.
    seed: of the MinHash permutations and of what is held out.
    """

    profile: str = "auto"
    limits: dict[str, float | Literal["off"]] = Field(default_factory=dict)
    languages: tuple[str, ...] = ()
    block_urls: tuple[str, ...] = ()
    allow_urls: tuple[str, ...] = ()
    url_words: tuple[str, ...] = ()
    block_words: tuple[str, ...] = ()
    private: Literal["remove", "replace", "flag", "keep"] = "remove"
    private_key: str = ""
    allow_licenses: tuple[str, ...] = ()
    deny_licenses: tuple[str, ...] = ()
    quality: str = ""
    min_quality: float = Field(0.5, ge=0, le=1)
    toxicity: str = ""
    max_toxicity: float = Field(0.5, ge=0, le=1)
    decontaminate: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)

    @property
    def files(self) -> tuple[Path, ...]:
        """What it names that lies outside the sources."""
        named = (*self.block_urls, *self.allow_urls, *self.url_words, *self.block_words)
        named += (*self.decontaminate, *(d for d in (self.quality, self.toxicity) if d))
        return tuple(Path(name).expanduser() for name in named)


def curation(config: CurationConfig) -> Curate:
    """The stage of `config`, with a key of what its results depend on.

    Raises RequestError for settings that cannot be, and files that are missing or damaged.
    """
    settings = CurationConfig(
        **{name: getattr(config, name) for name in CurationConfig.model_fields}
    )
    for classifier, limit in (("quality", "min_quality"), ("toxicity", "max_toxicity")):
        default = CurationConfig.model_fields[limit].default
        if getattr(settings, limit) != default and not getattr(settings, classifier):
            raise RequestError(f"{limit} says nothing without a classifier: set {classifier} too")
    steps(settings)  # what cannot be loaded is said now, not by a worker
    files = [hash_path(path) for path in settings.files]
    return Curate(settings, hash_json([VERSION, settings.model_dump(mode="json"), files]))


def steps(config: CurationConfig) -> tuple[Step, ...]:
    return (
        _urls(config),
        _extracted(config),
        repaired,
        _without_private(config),
        _in_language(config),
        judged(config),
        _listed(config),
        _scored(config),
        _not_evaluated_on(config),
        lambda draft: signed(draft, config.seed),
    )


def _urls(config: CurationConfig) -> Step:
    from gristmill.data.urls import UrlRules, canonical

    paths = {
        name: [Path(p).expanduser() for p in getattr(config, name)]
        for name in ("block_urls", "allow_urls", "url_words")
    }
    rules = UrlRules.load(
        block=paths["block_urls"], allow=paths["allow_urls"], hard=paths["url_words"]
    )

    def step(draft: Draft) -> None:
        if not draft.url.startswith(("http://", "https://")):
            return
        if reason := rules.check(draft.url):
            draft.drop(reason)
        if draft.kind == "web":
            address = canonical(draft.url).encode("utf-8", "surrogatepass")
            draft.url_key = hashlib.blake2b(address, digest_size=16).digest()

    return step


def _extracted(config: CurationConfig) -> Step:
    """HTML to text: a quick look, and the careful pass for what may be kept. A dropped page has its quick text."""

    def step(draft: Draft) -> None:
        if draft.html is None:
            return
        from gristmill.data.extract import extract

        html, draft.html = draft.html, None
        if draft.reason:
            return
        found = extract(html, draft.charset, draft.url, gate=_quick)
        draft.text = found.text
        draft.title = draft.title or found.title
        draft.date = found.date or draft.date
        draft.license = draft.license or found.license
        draft.story |= {"extraction": found.method or "none", **found.detail}
        if found.reason:
            draft.drop(found.reason)

    return step


def _quick(text: str) -> str:
    return "too_short" if len(text.split()) < _QUICK_WORDS else ""


def repaired(draft: Draft) -> None:
    """Line ends, controls, wrong decodings, trailing blanks; also of what is dropped, so that it can be shown."""
    from gristmill.data.unicode_repair import repair

    draft.text, done = repair(draft.text)
    # That lines end in "\n" and without blanks is said of all; the rest is worth telling.
    told = [what for what in done if what not in ("line_ends", "trailing_blanks")]
    if told:
        draft.story["repaired"] = dict.fromkeys(told, 1)
    if not draft.text.strip():
        draft.text = ""
        draft.drop("no_text")


def _without_private(config: CurationConfig) -> Step:
    from gristmill.data.pii import KINDS, clear

    key = config.private_key.encode()

    def step(draft: Draft) -> None:
        if not draft.text or config.private == "keep":
            return
        kinds = _CERTAIN if draft.kind in CODE_KINDS else KINDS
        draft.text, counts = clear(draft.text, config.private, key, kinds)
        if counts:
            draft.story["flagged" if config.private == "flag" else "removed"] = counts

    return step


def _in_language(config: CurationConfig) -> Step:
    for code in config.languages:
        if not re.fullmatch("[a-z]{2,3}", code):
            raise RequestError(f'"{code}" is no ISO 639 code of a language, such as en, de, pt')

    def step(draft: Draft) -> None:
        if draft.reason or draft.kind in CODE_KINDS:
            return
        from gristmill.data.language import identify, threshold

        code, confidence = identify(draft.text)
        draft.language = code
        draft.story["language"] = {"code": code, "confidence": confidence}
        if not config.languages:
            return
        if code not in config.languages:
            draft.drop(
                "language", signal="language", value=code, limit=" or ".join(config.languages)
            )
        elif confidence < threshold(code):
            limit = f">= {threshold(code):g}"
            draft.drop("language", signal="language_confidence", value=confidence, limit=limit)

    return step


def _listed(config: CurationConfig) -> Step:
    """What the user's lists say: words that no document may hold, licences that it may or may not have."""
    from gristmill.data.blocklist import Blocklist
    from gristmill.data.sources.licences import policy

    words = (
        Blocklist.load(Path(p).expanduser() for p in config.block_words)
        if config.block_words
        else None
    )

    def step(draft: Draft) -> None:
        if draft.reason:
            return
        if reason := policy(draft.license, config.allow_licenses, config.deny_licenses):
            draft.drop(reason, signal="license", value=draft.license, limit=_patterns(config))
        elif words is not None and (found := words.count(draft.text)):
            draft.drop(
                "blocked_word", signal="blocked_words", value=sum(found.values()), limit="<= 0"
            )
            draft.story["blocked_words"] = dict(list(found.items())[:20])

    return step


def _patterns(config: CurationConfig) -> str:
    allowed = f"one of {', '.join(config.allow_licenses)}" if config.allow_licenses else "any"
    return f"{allowed} but {', '.join(config.deny_licenses)}" if config.deny_licenses else allowed


def _scored(config: CurationConfig) -> Step:
    from gristmill.data.classify import Classifier

    quality = Classifier.load(Path(config.quality).expanduser()) if config.quality else None
    toxicity = Classifier.load(Path(config.toxicity).expanduser()) if config.toxicity else None

    def step(draft: Draft) -> None:
        if draft.reason:
            return
        if quality is not None:
            draft.quality = round(quality(draft.text), 4)
            draft.story["quality"] = draft.quality
            if draft.quality < config.min_quality:
                limit = f">= {config.min_quality:g}"
                draft.drop("low_quality", signal="quality", value=draft.quality, limit=limit)
        if toxicity is not None:
            toxic = round(1 - toxicity(draft.text), 4)
            draft.story["toxicity"] = toxic
            if toxic > config.max_toxicity:
                limit = f"<= {config.max_toxicity:g}"
                draft.drop("toxic", signal="toxicity", value=toxic, limit=limit)

    return step


def _not_evaluated_on(config: CurationConfig) -> Step:
    """Notes which n-grams of evaluation items stand in the text; what that means is decided over the corpus."""
    from gristmill.data.duplicates import find

    index = evaluation_index(config)

    def step(draft: Draft) -> None:
        if draft.reason or index is None:
            return
        draft.hits = [(hit.gram, hit.start, hit.end) for hit in find(index, draft.text)]

    return step


def evaluation_index(config: CurationConfig) -> EvalIndex | None:
    """Of the evaluation sets that `config` names, if any."""
    if not config.decontaminate:
        return None
    from gristmill.data.duplicates import index_items, read_items

    paths = [Path(path).expanduser() for path in config.decontaminate]
    return index_items([item for path in paths for item in read_items(path)])


def signed(draft: Draft, seed: int) -> None:
    """What deduplication compares."""
    if not draft.reason:
        draft.exact, draft.shingles, draft.signature = compared(draft.text, seed)


def compared(text: str, seed: int) -> tuple[bytes, Any, bytes]:
    """(key of the whole, shingles, signature) of a text, as parts hold them."""
    from gristmill.data.text import shingles, signature, words_of

    cut = words_of(text)
    signed = signature(cut, seed=seed).astype("<u4").tobytes()
    return exact_key(text), shingles(cut), signed


def exact_key(text: str) -> bytes:
    """16 bytes, equal for texts that differ in case and white space only."""
    normal = " ".join(text.casefold().split())
    return hashlib.blake2b(normal.encode(), digest_size=16).digest()
