"""The step that judges a document by the rules of its kind's profile, and tells by which numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from gristmill.data.curate import Draft, Step

if TYPE_CHECKING:
    from gristmill.data.rules import Finding, Profile
    from gristmill.data.steps import CurationConfig


def judged(config: CurationConfig) -> Step:
    from gristmill.data.rules import judge, measure, nearly
    from gristmill.data.text.words import definition

    profile_of = _profiles(config)
    definition("whitespace")

    def step(draft: Draft) -> None:
        if draft.reason:
            return
        if draft.kind == "python" and (error := _syntax_error(draft.text)):
            # other tools' Python, a template, Python 2: still code, but not for `ast`
            draft.kind, draft.story["not_python"] = "code", error
        profile = profile_of(draft.kind, draft.language)
        signals, text = measure(draft.text, profile)
        used = dict.fromkeys(rule.signal for rule in profile.rules)
        draft.story["profile"] = profile.name
        draft.story["signals"] = {name: round(signals[name], 4) for name in used}
        verdict = judge(signals, profile)
        if verdict.keep:
            draft.text = text
            close = nearly(signals, profile)
            if close:
                draft.story["nearly"] = [_told(finding) for finding in close]
            return
        first, *others = verdict.broken
        told = _told(first)
        draft.drop(told.pop("reason"), **told)
        if others:
            draft.story["also"] = [_told(finding) for finding in others]

    return step


def _told(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "value": round(finding.value, 4)}


def _profiles(config: CurationConfig) -> Callable[[str, str], Profile]:
    """(kind, language) -> the profile of rules that holds for it under `config`.

    Raises RequestError for an unknown profile and for limits that no rule has.
    """
    from gristmill.data.rules import PROFILES, in_language, with_limits
    from gristmill.errors import RequestError, nearest

    if config.profile != "auto" and config.profile not in PROFILES:
        names = ("auto", *PROFILES)
        raise RequestError(
            f'no profile is called "{config.profile}".{nearest(config.profile, names)} There are: {", ".join(names)}'
        )
    named = dict(PROFILES)
    if config.limits and config.profile != "auto":
        named[config.profile] = with_limits(named[config.profile], config.limits)
    elif config.limits:
        named = _limited(named, config.limits)

    def of(kind: str, language: str) -> Profile:
        profile = named[kind if config.profile == "auto" else config.profile]
        return in_language(profile, language) if language not in ("", "und") else profile

    return of


def _limited(
    named: dict[str, Profile], limits: dict[str, float | Literal["off"]]
) -> dict[str, Profile]:
    """Each limit in all profiles that have such a rule; one that fits none is an error."""
    from gristmill.data.rules import with_limits
    from gristmill.errors import RequestError, nearest

    rules = [rule for profile in named.values() for rule in profile.rules]
    for name, value in limits.items():
        if not any(name in (rule.signal, rule.reason) for rule in rules):
            names = sorted({n for rule in rules for n in (rule.signal, rule.reason)})
            raise RequestError(f'no rule is on "{name}".{nearest(name, names)}')
        changed, error = dict(named), None
        for key, profile in named.items():
            try:
                changed[key] = with_limits(profile, {name: value})
            except RequestError as caught:
                error = caught
        if error is not None and changed == named:
            raise error
        named = changed
    return named


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
