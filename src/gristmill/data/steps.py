"""The steps that each document goes through, and the settings that choose them."""

from __future__ import annotations

import warnings

from pydantic import Field

from gristmill.data.clean import clean
from gristmill.data.curate import Curate, Draft, Step
from gristmill.data.dedup import exact_key, shingles, signatures
from gristmill.data.quality import judge, measure
from gristmill.files import hash_json
from gristmill.stage import StageConfig

# Raised when a step decides otherwise than before: parts of an older program are then made anew.
VERSION = 1


class CurationConfig(StageConfig):
    """What each document goes through.

    seed: of the MinHash permutations and of what is held out.
    """

    seed: int = Field(0, ge=0)


def curation(config: CurationConfig) -> Curate:
    """The stage of `config`, with a key of what its results depend on."""
    settings = CurationConfig(
        **{name: getattr(config, name) for name in CurationConfig.model_fields}
    )
    return Curate(settings, hash_json([VERSION, settings.model_dump(mode="json")]))


def steps(config: CurationConfig) -> tuple[Step, ...]:
    return (cleaned, judged, lambda draft: signed(draft, config.seed))


def cleaned(draft: Draft) -> None:
    """Newlines, control characters and trailing blanks; addresses and secrets go, also of what is dropped."""
    done = clean(draft.text)
    draft.text = done.text
    if done.emails or done.secrets:
        draft.story["removed"] = {"emails": done.emails, "secrets": done.secrets}
    if not done.text.strip():
        draft.text = ""
        draft.drop("no_text")


def judged(draft: Draft) -> None:
    if draft.reason:
        return
    if draft.kind == "python" and (error := _syntax_error(draft.text)):
        # other tools' Python, a template, Python 2: still code, but not for `ast`
        draft.kind, draft.story["not_python"] = "code", error
    signals = measure(draft.text, draft.kind)
    draft.story["signals"] = signals
    if rule := judge(signals, draft.kind):
        draft.drop(rule.reason, signal=rule.signal, value=signals[rule.signal], limit=rule.limit)


def signed(draft: Draft, seed: int) -> None:
    if draft.reason:
        return
    draft.exact = exact_key(draft.text)
    draft.shingles = shingles(draft.text)
    (draft.signature,) = signatures([draft.shingles], seed)


def _syntax_error(text: str) -> str:
    """Why `text` does not compile, or "". Compiling to bytecode is 1.5 times as fast as building the tree."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "<document>", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""
