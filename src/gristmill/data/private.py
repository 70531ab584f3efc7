"""E-mail addresses and secrets: candidates by pattern, then a check that throws out look-alikes.

Addresses become `<email>`, secrets `<secret>`. IP addresses and names stay. Examples and placeholders
(`user@example.com`, `api_key="YOUR_API_KEY"`) hide nothing and stay too.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Callable

EMAIL = "<email>"
SECRET = "<secret>"

# Top-level domains of addresses that people have. A closed list, because in code `x@self.weight` and
# `logo@2x.png` look like addresses: a match needs a domain that exists.
_GENERIC_DOMAINS = """academy aero agency ai app art asia bank biz blog careers cat center chat city cloud club
coach codes com community company coop dev digital edu email energy engineering eu events expert express
finance foundation fund gallery global gov group guru help host hosting icu info ink int io jobs law legal
life link live llc ltd media mil mobi money museum name net network news ngo one online org page partners
photo photography plus post press pro pub research run school science security services shop site social
software solutions space store studio support systems team tech technology tel today tools top travel
university ventures video vip web wiki work works world xyz zone"""
_COUNTRY_DOMAINS = """ac ad ae af ag al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bm bn bo br bs bt
bw by bz ca cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg es et eu fi fj
fm fo fr ga ge gf gg gh gi gl gm gn gp gr gt gu gy hk hn hr ht hu id ie il im in iq ir is it je jm jo jp ke kg
kh ki kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mg mk ml mm mn mo mr ms mt mu mv mw mx my mz na
nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pr pt pw py qa re ro rs ru rw sa sb sc sd se sg sh
si sk sl sm sn so sr st su sv sx sy sz tc td tf tg th tj tk tl tm tn tr tt tv tw tz ua ug uk us uy uz va vc ve
vg vi vn vu wf ws ye yt za zm zw"""
_DOMAINS = frozenset(_GENERIC_DOMAINS.split()) | frozenset(_COUNTRY_DOMAINS.split())
# Domains that RFC 2606 and 6761 reserve for examples.
_EXAMPLE = re.compile(r"(?i)(?:^|\.)(?:example(?:\.\w+)?|test|invalid|localhost|local)$")

_EMAIL = re.compile(
    r"(?<![\w.+%/=-])([A-Za-z0-9][\w.+%-]{0,63})@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,6}[A-Za-z]{2,13})"
    r"(?![\w@-])(?!\.\w)(?!\()(?!:[\w~/])",
    re.ASCII,
)

_AT = re.compile("@")
_TOKEN = re.compile(
    r"""(?<![A-Za-z0-9_])(?:
      (?P<aws>(?:AKIA|ASIA)[0-9A-Z]{16})
    | (?P<github>gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})
    | (?P<gitlab>glpat-[A-Za-z0-9_-]{20,64})
    | (?P<sk>sk-(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_-]{20,200})
    | (?P<stripe>[rs]k_live_[A-Za-z0-9]{16,128})
    | (?P<slack>xox[abeoprs]-[A-Za-z0-9-]{16,255})
    | (?P<google>AIza[A-Za-z0-9_-]{35})
    | (?P<hub>hf_[A-Za-z0-9]{30,64})
    | (?P<npm>npm_[A-Za-z0-9]{36})
    | (?P<pypi>pypi-AgE[A-Za-z0-9_-]{40,255})
    | (?P<jwt>eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{16,2000})
    )(?![A-Za-z0-9_])""",
    re.VERBOSE | re.ASCII,
)
_TOKEN_HINT = re.compile(
    r"AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|sk-|k_live_|xox|AIza|hf_|npm_|pypi-AgE|eyJ"
)
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"((?:(?!-----)[\s\S]){64,20000}?)-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
)
_ASSIGNED = re.compile(
    r"""(?ix)(?P<head>
      (?<![a-z]) (?:[a-z0-9]+[_-])* (?:api_?-?key|apikey|secret|token|passw(?:or)?d|access_?-?key|auth_?-?key
        |private_?-?key|client_?-?secret|credential)s? (?:[_-](?:key|id|value|token))* ["']?
      [ \t]{0,4} (?:=|:|=>) [ \t]{0,4} [rbuf]?)
      (?: (?P<quote>["']) (?P<quoted>[A-Za-z0-9+/=_.~-]{16,256}) (?P=quote)
        | (?P<bare>(?<==)[A-Za-z0-9+/=_~-]{20,256}) (?=[ \t]*(?:[#;]|$)) )""",
    re.ASCII,
)
_ASSIGNED_HINT = re.compile(r"(?i)key|secret|token|passw|credential")
_PLACEHOLDER = re.compile(
    r"(?i)your|example|placeholder|dummy|changeme|sample|test|foo|xxxx|1234567|abcdef"
)


def remove_private(text: str) -> tuple[str, int, int]:
    """(text with placeholders, addresses taken out, secrets taken out). Newlines stay where they are."""
    emails = secrets = 0

    def secret(match: re.Match[str]) -> str:
        nonlocal secrets
        secrets += 1
        return SECRET + "\n" * match[0].count("\n")

    def token(match: re.Match[str]) -> str:
        return secret(match) if _is_token(match) else match[0]

    def assigned(match: re.Match[str]) -> str:
        value = match["quoted"] or match["bare"]
        if not is_random(value):
            return match[0]
        quote = match["quote"] or ""
        return f"{match['head']}{quote}{secret(match)}{quote}"

    def address(match: re.Match[str]) -> str:
        nonlocal emails
        if not _is_address(match[1], match[2]):
            return match[0]
        emails += 1
        return EMAIL

    if "PRIVATE KEY" in text:
        text = _PEM.sub(secret, text)
    if _TOKEN_HINT.search(text):
        text = _TOKEN.sub(token, text)
    text = _on_lines(text, _ASSIGNED_HINT, lambda line: _ASSIGNED.sub(assigned, line))
    text = _on_lines(text, _AT, lambda line: _EMAIL.sub(address, line))
    return text, emails, secrets


def _on_lines(text: str, hint: re.Pattern[str], change: Callable[[str], str]) -> str:
    """`text` with `change` applied to the lines that hold `hint`: the full patterns are slow, such lines rare."""
    parts: list[str] = []
    done = 0
    for match in hint.finditer(text):
        if match.start() < done:
            continue  # a second hint in a line already changed
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        end = len(text) if end < 0 else end
        parts += (text[done:start], change(text[start:end]))
        done = end
    return "".join(parts) + text[done:]


def _is_address(local: str, domain: str) -> bool:
    if domain.rsplit(".", 1)[1].lower() not in _DOMAINS or _EXAMPLE.search(domain):
        return False
    return not local.endswith(".") and ".." not in local


def _is_token(match: re.Match[str]) -> bool:
    kind, value = match.lastgroup, match[0]
    if kind == "jwt":
        head = value.split(".", 1)[0]
        try:
            return "alg" in json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
        except ValueError:
            return False
    if (
        kind == "sk"
    ):  # "sk-" is also a prefix of words with hyphens: a key mixes digits and both cases
        body = value[3:]
        return len(re.findall(r"\d", body)) >= 3 and is_random(body)
    return len(set(value)) > 8


def is_random(value: str) -> bool:
    """Whether a string looks drawn by a machine: no placeholder, digits among letters, high entropy."""
    if (
        _PLACEHOLDER.search(value)
        or not re.search(r"\d", value)
        or not re.search(r"[A-Za-z]", value)
    ):
        return False
    # Words joined by punctuation or humps are names: a random string rarely has long lower-case runs.
    longest_word = max((len(run) for run in re.findall(r"[a-z]+|[A-Z]+", value)), default=0)
    if longest_word > 6 and not re.fullmatch(r"[0-9a-fA-F]+", value):
        return False
    hexadecimal = re.fullmatch(r"[0-9a-fA-F-]+", value) is not None
    return entropy(value) >= (2.9 if hexadecimal else 3.5)


def entropy(value: str) -> float:
    """Shannon entropy of the characters, in bits each."""
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in Counter(value).values())
