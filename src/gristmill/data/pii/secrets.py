"""Keys, tokens and passwords: by the prefixes that services give them, by PEM blocks, by where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gristmill.data.pii.found import Found
from gristmill.data.pii.validate import is_jwt, is_placeholder, is_random

# (a string that every such key holds, the key). The strings are looked for first: that is 50 times as
# fast as the patterns. Every repeat is bounded, so that a match costs no more than its bound.
_BY_PREFIX = [
    (("AKIA", "ASIA"), r"A[KS]IA[0-9A-Z]{16}"),
    (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    (("github_pat_",), r"github_pat_[A-Za-z0-9_]{22,255}"),
    (("glpat-",), r"glpat-[A-Za-z0-9_-]{20,64}"),
    (("sk-",), r"sk-(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_-]{20,200}"),
    (("k_live_",), r"[rs]k_live_[A-Za-z0-9]{16,128}"),
    (("whsec_",), r"whsec_[A-Za-z0-9+/=]{24,128}"),
    (("xox",), r"xox[abeoprs]-[A-Za-z0-9-]{16,255}"),
    (
        ("hooks.slack.com",),
        r"hooks\.slack\.com/services/T[A-Z0-9]{8,12}/B[A-Z0-9]{8,12}/[A-Za-z0-9]{24}",
    ),
    (("AIza",), r"AIza[A-Za-z0-9_-]{35}"),
    (("GOCSPX-",), r"GOCSPX-[A-Za-z0-9_-]{28}"),
    (("hf_",), r"hf_[A-Za-z0-9]{30,64}"),
    (("npm_",), r"npm_[A-Za-z0-9]{36}"),
    (("pypi-AgE",), r"pypi-AgE[A-Za-z0-9_-]{40,255}"),
    (("SG.",), r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    (("eyJ",), r"eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,8000}\.[A-Za-z0-9_-]{16,2000}"),
]
_PATTERNS = [
    (hints, re.compile(rf"(?<![A-Za-z0-9_]){pattern}(?![A-Za-z0-9_])", re.ASCII))
    for hints, pattern in _BY_PREFIX
]

_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    r"([^-]{64,20000})-----END (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
)
# A value after "=" or ":". What stands before it decides, so that prose is passed by quickly.
_VALUE = re.compile(
    r"""[=:]>?[ \t]{0,4}[rbuf]?(?:"([A-Za-z0-9+/_.~-]{16,256}={0,2})"|'([A-Za-z0-9+/_.~-]{16,256}={0,2})'"""
    r"""|(?<==)([A-Za-z0-9+/_~-]{20,256}={0,2})(?=[ \t]{0,9}(?:[#;&\s]|$)))""",
    re.ASCII | re.MULTILINE,
)
_NAME = re.compile(
    r"(?i)(?<![a-z])(?:[a-z0-9]{1,30}[_-]){0,6}(?:api_?-?key|apikey|secret|token|passw(?:or)?d|access_?-?key"
    r"|auth_?-?key|private_?-?key|client_?-?secret|credential)s?(?:[_-](?:key|id|value|token)){0,2}"
    r"[\"']?[ \t]{0,4}\Z",
    re.ASCII,
)
_BEARER = re.compile(r"Bearer[ \t]{1,4}([A-Za-z0-9+/=_.~-]{20,2000})", re.ASCII)
_IN_URL = re.compile(r"://[^\s/:@\"'<>$({]{0,64}:([^\s/:@\"'<>$({]{8,128})@(?=[A-Za-z0-9\[])")


def find_keys(text: str) -> Iterator[Found]:
    """Keys in `text`, in no order; a key in a key may be found twice."""
    if "PRIVATE KEY-----" in text or "PRIVATE KEY BLOCK-----" in text:
        for match in _PEM.finditer(text):
            if not is_placeholder(match[1][:200]):
                yield Found("key", match.start(), match.end(), match[0])
    for hints, pattern in _PATTERNS:
        if any(hint in text for hint in hints):
            for match in pattern.finditer(text):
                if _is_key(match[0]):
                    yield Found("key", match.start(), match.end(), match[0])
    if "Bearer" in text:
        yield from (_part(m, 1) for m in _BEARER.finditer(text) if is_random(m[1]))
    if "://" in text:
        yield from (_part(m, 1) for m in _IN_URL.finditer(text) if _is_password(m[1]))
    for match in _VALUE.finditer(text):
        group = match.lastindex or 0
        value = match[group]
        if is_random(value) and _NAME.search(text, max(0, match.start() - 100), match.start()):
            yield _part(match, group)


def _part(match: re.Match[str], group: int) -> Found:
    return Found("key", match.start(group), match.end(group), match[group])


def _is_key(value: str) -> bool:
    # A prefix says enough; "foo" may come by chance into a long key.
    if re.search(r"(?i)example|your|xxxx|redacted|placeholder|dummy", value):
        return False
    if value.startswith("eyJ"):
        return is_jwt(value)
    if value.startswith("sk-"):
        # "sk-" is also a prefix of words with hyphens: a key mixes digits and both cases
        return len(re.findall(r"[0-9]", value)) >= 3 and is_random(value[3:])
    return len(set(value)) > 8


def _is_password(value: str) -> bool:
    """A password in a link: digits and letters, and none of the words that documentation puts there."""
    if is_placeholder(value) or re.search(r"(?i)pass|pwd|secret|token|user", value):
        return False
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
