"""Stand-ins: stable, of the same form, found no more, nobody's."""

from __future__ import annotations

import ipaddress
import re

import pytest

from gristmill.data.pii import apply, find
from gristmill.data.pii.replace import NAMES, stand_in
from gristmill.data.pii.validate import iban_remainder, luhn
from tests.data.pii import planted

TEXTS = planted.texts(seed=5, count=1500)


@pytest.mark.parametrize("action", ["replace", "remove"])
def test_applied_twice_is_applied_once(action: str) -> None:
    for text, truth in TEXTS:
        once = apply(text, find(text), action, key=b"k")  # type: ignore[arg-type]
        assert find(once) == [], once
        assert apply(once, find(once), action, key=b"k") == once  # type: ignore[arg-type]
        assert once.count("\n") == text.count("\n")
        for kind, value in truth:
            if kind != "key" and value in {item.value for item in find(text)}:
                assert value not in once, (kind, value)


def test_flags_change_nothing() -> None:
    for text, _ in TEXTS[:50]:
        assert apply(text, find(text), "flag") == text


def test_equal_values_get_equal_stand_ins_under_one_key() -> None:
    text = "From b.c@mail.org to d.e@mail.org and again B.C@mail.org."
    one, two, three = re.findall(r"user-\w+@example\.com", apply(text, find(text), key=b"secret"))
    assert one == three != two
    assert apply(text, find(text), key=b"other") != apply(text, find(text), key=b"secret")
    digits = [re.sub(r"\D", "", stand_in("phone", v)) for v in ("+49 30 1234567", "+49301234567")]
    assert digits[0] == digits[1]


def test_stand_ins_do_not_depend_on_what_came_before() -> None:
    for text, _ in TEXTS[:200]:
        whole = apply(text, find(text), key=b"k")
        for item in find(text):
            assert stand_in(item.kind, item.value, b"k") in whole


@pytest.mark.parametrize("kind", ["phone", "card", "iban"])
def test_stand_ins_are_written_like_their_values(kind: str) -> None:
    for _, truth in TEXTS:
        for value in [v for k, v in truth if k == kind]:
            new = stand_in(kind, value)
            assert len(new) == len(value)
            if kind != "iban":
                assert re.sub(r"[0-9]", "9", new) == re.sub(r"[0-9]", "9", value)


def test_stand_ins_are_nobodys() -> None:
    for _, truth in TEXTS:
        for kind, value in truth:
            new = stand_in(kind, value)
            if kind == "email":
                assert new.endswith("@example.com")
            elif kind in ("ipv4", "ipv6"):
                assert not ipaddress.ip_address(new).is_global
            elif kind == "card":
                assert luhn(re.sub(r"\D", "", new))
            elif kind == "iban":
                compact = new.replace(" ", "")
                assert iban_remainder(compact) == 1 and compact[4:8] == "0000"
            elif kind == "phone":
                assert re.search(r"000|555.?01", re.sub(r"[^0-9]", "", new))


def test_names_are_replaced_once() -> None:
    text = "Ada Lovelace met Ada Lovelace."
    spans = [(m.start(), m.end()) for m in re.finditer("Ada Lovelace", text)]
    once = apply(text, find(text, names=lambda t: spans), key=b"k")
    name = once.split(" met ")[0]
    assert name in NAMES and once == f"{name} met {name}."
    again = find(once, names=lambda t: [(0, len(name))])
    assert apply(once, again, key=b"k") == once


REMOVED = [
    ("write to jane.doe@mail.org please", "write to <email> please"),
    ('api_key = "aB3dE5gH7jK9mN1pQ3sT5vW7"', 'api_key = "<secret>"'),
    ("token ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5", "token <secret>"),
    (
        "-----BEGIN PRIVATE KEY-----\n"
        + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 4
        + "-----END PRIVATE KEY-----",
        "<secret>\n\n\n\n\n",
    ),
    ("user@example.com and logo@2x.png", "user@example.com and logo@2x.png"),
    ("Tel. 030 1234567, Am Waldweg 5, 20095 Hamburg", "Tel. <phone>, <address>"),
]


@pytest.mark.parametrize("text, expected", REMOVED)
def test_removal_leaves_a_word_and_the_lines(text: str, expected: str) -> None:
    assert apply(text, find(text), "remove") == expected
