"""Rules and profiles: each rule decides on its own signal, limits are changed by name, kinds keep their limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.data.rules import PROFILES, in_language, judge, measure, nearly, with_limits
from gristmill.data.rules.table import Profile, Rule
from gristmill.errors import RequestError

RULES = [(name, rule) for name, profile in PROFILES.items() for rule in profile.rules]


def passing(profile: Profile) -> dict[str, float]:
    """Signals in the middle of what the rules of `profile` allow."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for rule in profile.rules:
        if rule.at_least is not None:
            low[rule.signal] = rule.at_least
        if rule.at_most is not None:
            high[rule.signal] = rule.at_most
    return {
        signal: (low[signal] + high[signal]) / 2
        if signal in low and signal in high
        else low[signal] * 2
        if signal in low
        else high[signal] / 2
        for signal in low | high
    }


@pytest.mark.parametrize("name,rule", RULES, ids=lambda value: getattr(value, "reason", value))
def test_each_rule_alone_decides_at_its_limit_and_not_on_it(name: str, rule: Rule) -> None:
    profile = PROFILES[name]
    signals = passing(profile)
    assert judge(signals, profile).keep
    limit = rule.at_least if rule.at_least is not None else rule.at_most
    assert limit is not None
    away = -math.inf if rule.at_least is not None else math.inf
    assert judge(signals | {rule.signal: limit}, profile).keep
    verdict = judge(signals | {rule.signal: math.nextafter(limit, away)}, profile)
    assert (verdict.reason, verdict.broken[0].signal) == (rule.reason, rule.signal)
    assert verdict.broken[0].limit == rule.limit


def test_the_first_broken_rule_is_the_reason_and_all_are_told() -> None:
    profile = PROFILES["web"]
    signals = passing(profile) | {"list_ratio": 0.9, "stop_words": 0.0, "dup_line_frac": 0.4}
    verdict = judge(signals, profile)
    assert verdict.reason == "dup_line_frac"
    assert [(f.reason, f.value, f.limit) for f in verdict.broken] == [
        ("dup_line_frac", 0.4, "<= 0.3"),
        ("gopher_enough_stop_words", 0.0, ">= 2"),
        ("list_ratio", 0.9, "<= 0.3"),
    ]


@given(st.floats(0, 1), st.floats(0.01, 1))
def test_nearly_is_what_a_five_percent_stricter_limit_would_drop(
    value: float, limit: float
) -> None:
    for rule, stricter in (
        (Rule("r", "s", at_most=limit), Rule("r", "s", at_most=limit * 0.95)),
        (Rule("r", "s", at_least=limit), Rule("r", "s", at_least=limit * 1.05)),
    ):
        profile = Profile("one", "whitespace", (rule,))
        expected = not rule.broken_by(value) and stricter.broken_by(value)
        assert bool(nearly({"s": value}, profile)) == expected


def test_limits_are_changed_by_signal_or_reason() -> None:
    changed = with_limits(
        PROFILES["web"],
        {"dup_line_char_frac": 0.3, "stop_words": "off", "gopher_above_avg_threshold": 12},
    )
    signals = passing(PROFILES["web"]) | {
        "dup_line_char_frac": 0.25,
        "stop_words": 0.0,
        "mean_word_length": 11.0,
    }
    assert len(judge(signals, PROFILES["web"]).broken) == 3
    assert judge(signals, changed).keep
    assert (
        judge(signals | {"mean_word_length": 2.0}, changed).reason == "gopher_below_avg_threshold"
    )


@pytest.mark.parametrize(
    "limits,told",
    [
        ({"dup_line_char_frak": 0.3}, 'Did you mean "dup_line_char_frac"'),
        ({"mean_word_length": 4}, "gopher_below_avg_threshold or gopher_above_avg_threshold"),
        ({"stop_words": -1}, "at least 0"),
        ({"stop_words": math.nan}, "at least 0"),
        ({"stop_words": True}, "at least 0"),
        ({"stop_words": "no"}, 'or "off"'),
    ],
)
def test_a_wrong_limit_is_refused_with_the_cure(limits: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as error:
        with_limits(PROFILES["web"], limits)
    assert told in str(error.value)


def test_two_signals_of_one_reason_are_told_apart() -> None:
    with pytest.raises(RequestError, match="literal_line_share or digit_share"):
        with_limits(PROFILES["code"], {"data_table": 0.5})
    assert with_limits(PROFILES["code"], {"digit_share": 0.5}) != PROFILES["code"]


@pytest.mark.parametrize("kind", list(PROFILES))
def test_every_profile_measures_what_its_rules_need(kind: str) -> None:
    signals, text = measure("The mill turns by the river. " * 3, PROFILES[kind])
    assert {rule.signal for rule in PROFILES[kind].rules} <= set(signals)
    assert text
    judge(signals, PROFILES[kind])
    nearly(signals, PROFILES[kind])


def test_the_web_profile_keeps_the_text_that_c4_leaves() -> None:
    line = "The mill turns by the river. It is old."
    page = f"Menu\n{line}\n{line}\nWe use cookies on this site.\n"
    signals, text = measure(page, PROFILES["web"])
    assert text == f"{line}\n{line}"
    assert signals["chars"] == len(page)
    assert signals["line_punct_ratio"] == 1.0
    assert signals["filled_lines"] == 2


def test_prose_in_another_language_is_not_dropped_for_english_stop_words() -> None:
    text = "Die Mühle steht dort, wo sich der Fluss nach Norden wendet, und mahlt das Korn. " * 2
    for name in ("chat", "paper"):
        signals, _ = measure(text, in_language(PROFILES[name], "de"))
        reasons = {f.reason for f in judge(signals, in_language(PROFILES[name], "de")).broken}
        assert "gopher_enough_stop_words" not in reasons
    assert in_language(PROFILES["web"], "en") is PROFILES["web"]
