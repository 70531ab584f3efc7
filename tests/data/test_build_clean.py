"""Cleaning: lines stay where they are, twice is once, private strings go and look-alikes stay."""

from __future__ import annotations

import ast
import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.pii import clear
from gristmill.data.unicode_repair import repair

EMAIL, SECRET = "<email>", "<secret>"


def remove_private(text: str) -> tuple[str, int, int]:
    """As in code: what is certain. (text, addresses, secrets taken out)"""
    cleared, counts = clear(text, kinds=("email", "key"))
    return cleared, counts.get("email", 0), counts.get("key", 0)


def clean(text: str) -> tuple[str, int, int]:
    return remove_private(repair(text)[0])


# Assembled here, so that no scanner takes this file for a leak.
HEAD = (
    base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    .decode()
    .rstrip("=")
)
BODY = (
    base64.urlsafe_b64encode(json.dumps({"sub": "1234567890", "name": "Ada"}).encode())
    .decode()
    .rstrip("=")
)
JWT = f"{HEAD}.{BODY}.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJVadQssw5c"
KEY_BODY = "MIIEpAIBAAKCAQEA7bq98G1VfnG9S2Kq8nVw0yXc3Zb5Q1uJr4TgH6LmP9sDkEoW"
PEM = (
    "-----BEGIN RSA "
    + f"PRIVATE KEY-----\n{KEY_BODY}\n{KEY_BODY[::-1]}\n-----END RSA "
    + "PRIVATE KEY-----"
)
SECRETS = {
    "aws": "AKIA" + "QYLPMN5HHHFPZAM2",
    "github": "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "github fine-grained": "github_pat_" + "11AAAAAAA0v7Xq2kPz9bQe_Rt5YuIoPaSdFgHjKlZxCvBnM",
    "openai": "sk-" + "T3BlbkFJ9vQ2mX7cLr8WzP4nKd6yHs1G",
    "openai project": "sk-proj-" + "Zk8Qw3Rt6Yu1Io9Pa2Sd5Fg7Hj4Kl0",
    "anthropic": "sk-ant-" + "api03-Xc7Vb2Nm9Qw4Er6Ty1Ui8Op3As5Df",
    "slack": "xoxb-" + "2345678901-abcDEF123ghiJKL",
    "google": "AIza" + "SyD9tSrke72PouQMnMX-a7eZSW0jkFMBWYz",
    "hub": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ0123456789",
    "jwt": JWT,
}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_known_tokens_go_wherever_they_stand(name: str) -> None:
    secret = SECRETS[name]
    for text in (
        secret,
        f"use {secret}, please",
        f'KEY = "{secret}"\n',
        f"export TOKEN={secret}\n",
        f"({secret})",
    ):
        cleaned, _, count = remove_private(text)
        assert secret not in cleaned and SECRET in cleaned, text
        assert count == 1


@pytest.mark.parametrize(
    "line",
    [
        'api_key = "9f8Kq2Lm7Zx4Vb1Nc6Rt"',
        "API-KEY: 'q7W2e9R4t1Y8u3I6o5P0'",
        '"client_secret": "Zx9Cv8Bn7Mq2Wr4Ty6Ui"',
        "password='p4Kx-8Zt2_Lq9Rw7'",
        'DJANGO_SECRET_KEY="k3j2h5g8f1d9s7a4q6w0"',
        "auth_token => 'b7d1e9f3a5c8240697abce12d4f80356'",
        "AWS_SECRET_ACCESS_KEY=wJ7rXUtn9FEMIK7MDENGbPxRfiCY3u2hQ8zL1v0T",
    ],
)
def test_random_values_of_telling_names_go(line: str) -> None:
    cleaned, _, count = remove_private(f"first\n{line}\nlast\n")
    assert count == 1 and SECRET in cleaned
    assert cleaned.startswith("first\n") and cleaned.endswith("\nlast\n")
    name = line.split("=")[0].split(":")[0].strip()
    assert name in cleaned, "the name tells a reader what stood there"


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "YOUR_API_KEY_GOES_HERE_1"',
        'api_key = "<your-api-key>"',
        'password = "correct horse battery staple"',
        "token = self.get_token_value(request)",
        "secret_name = 'projects/my-project/secrets/db'",
        'token = "aaaaaaaaaaaaaaaaaaaaaaaa"',
        'key = "configuration_option_name_2"',
        "PASSWORD_HASHERS = ['django.contrib.auth.hashers.PBKDF2PasswordHasher']",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904",
        ".sk-estimator-doc-link-and-more-words { }",
        "task-runner and risk-assessment-of-the-2nd-kind",
        "eyJust.eyJust.thiswordisnotatoken",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----\n" + KEY_BODY + "\n-----END CERTIFICATE-----",
        "uuid = '123e4567-e89b-12d3-a456-426614174000'",
        "http://127.0.0.1:8000/ and 192.168.0.1 and 8.8.8.8",
    ],
)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert remove_private(text) == (text, 0, 0)


@pytest.mark.parametrize(
    "text,expected",
    [
        ("write to ada.lovelace@analytical.org today", f"write to {EMAIL} today"),
        ("Ada <ada+news@mail.analytical.co.uk>", f"Ada <{EMAIL}>"),
        ("mailto:ada@engine.dev?subject=x", f"mailto:{EMAIL}?subject=x"),
        ("a@b.io, c-d@e-f.net; g_h@i.de.", f"{EMAIL}, {EMAIL}; {EMAIL}."),
        ('author = "Ada L. (ada@uni-leipzig.de)"', f'author = "Ada L. ({EMAIL})"'),
        ("ADA@ENGINE.COM", EMAIL),
    ],
)
def test_addresses_go(text: str, expected: str) -> None:
    assert remove_private(text) == (expected, expected.count(EMAIL), 0)


@pytest.mark.parametrize(
    "text",
    [
        "@app.route('/x')\n@functools.wraps(f)\n@property",
        "logo@2x.png and icon@3x.jpeg",
        "git clone git@github.com:owner/repo.git",
        "y = x@self.weight + h@W.T - a@b.data",
        "y = x @ w.to(device)",
        "write to user@example.com, root@localhost, me@test, a@mail.example.org or b@x.invalid",
        "pip install name@https://host/archive.zip",
        "array@method.call(1) and v@m.in(2)",
        "npm i @types/node@18.0.0 left-pad@1.3.0",
        "@",
        "a@",
        "@b.com",
        "a@b",
        "a@@b.com",
        "..@..",
        "x@.com",
    ],
)
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert remove_private(text) == (text, 0, 0)


def test_a_private_key_leaves_its_lines_behind() -> None:
    text = f'before\nkey = """{PEM}"""\nafter\n'
    cleaned, _, count = remove_private(text)
    assert count == 1 and KEY_BODY not in cleaned and KEY_BODY[::-1] not in cleaned
    assert cleaned.split("\n")[0] == "before"
    assert cleaned.split("\n").index("after") == text.split("\n").index("after")
    ast.parse(cleaned)


def test_python_still_parses_and_other_lines_are_untouched() -> None:
    source = f'"""By ada@analytical.org."""\nTOKEN = "{SECRETS["github"]}"\n\n\n@cache\ndef f(x):\n    return x@x.T\n'
    cleaned, emails, secrets = clean(source)
    assert (emails, secrets) == (1, 1)
    ast.parse(cleaned)
    assert cleaned.split("\n")[2:] == source.split("\n")[2:]


def test_characters_that_hide_or_confuse() -> None:
    text = "\ufeffa\x00b\r\nc\x0bd\rsoft\u00adhyphen \t \n\u2028x\u2029y\x85z\n\x1b[31mred\ud800"
    assert clean(text)[0] == "ab\ncd\nsofthyphen\n x y z\n[31mred\ufffd"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_every_line_of_any_text_stays_in_place(text: str) -> None:
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    cleaned = clean(text)[0]
    assert cleaned.count("\n") == unix.count("\n")
    assert cleaned.splitlines() == cleaned.removesuffix("\n").split("\n") if cleaned else True


MARKS = [
    "@",
    "a@",
    ".com",
    "api_key = ",
    '"',
    "'",
    "=",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "<",
    ">",
    ":",
    "token",
]
PARTS = ["ada@b.com", "9f8Kq2Lm7Zx4Vb1Nc6Rt", "-----BEGIN ", "PRIVATE KEY-----", "\u2028", "x", PEM]
PIECES = st.sampled_from([*SECRETS.values(), *PARTS, *MARKS])


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES | st.text(max_size=4), max_size=12).map("".join))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once, _, _ = clean(text)
    assert clean(once) == (once, 0, 0)
    assert once.count("\n") == text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    once.encode("utf-8")
