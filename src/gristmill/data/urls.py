"""Addresses of documents: one form for each, and rules about domains and words in them.

No list comes with the program: block lists, allow lists and words are files of the user's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from gristmill.errors import RequestError

_PORTS = {"http": 80, "https": 443, "ftp": 21}
# Parameters that tell where a reader came from, never what is shown.
_TRACKING = re.compile(
    r"(?i)utm_\w+|ga_\w+|mc_[ce]id|mkt_tok|_hs(?:enc|mi)|hsa_\w+|at_(?:medium|campaign|custom\d)"
    r"|(?:fb|g|gb|dcl|ms|tw|yc|ttc|wbra|gbra|srslt)(?:cl)?id|_ga|_gl|igshid|igsh|ref_src|ref_url|spm|scid|vero_id"
    r"|oly_\w+_id|wickedid|yclid|jsessionid|phpsessid|sid|sessionid"
)
_SESSION_IN_PATH = re.compile(r"(?i);(?:jsessionid|phpsessid|sid)=[^/?#;]*")
_UNRESERVED = re.compile(r"%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])")
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_SAFE_IN_PATH = "/:@!$&'()*+,;=~-._%"


def canonical(url: str) -> str:
    """One form for all addresses of a document; `url` itself, stripped, where it is no address.

    Scheme and host in lower case (host in ASCII), no default port, user or fragment, "/" as the empty
    path, dots in the path resolved, escapes in one form, no tracking parameters, the others sorted.
    """
    url = url.strip().encode("utf-8", "replace").decode()
    parts = _split(url)
    if parts is None or parts.scheme not in _PORTS or not parts.hostname:
        return url
    host = _host(parts.hostname)
    try:
        port = parts.port
    except ValueError:
        return url
    if ":" in host:
        host = f"[{host}]"
    if port is not None and port != _PORTS[parts.scheme]:
        host = f"{host}:{port}"
    path = _without_dots(_escaped(_SESSION_IN_PATH.sub("", parts.path)) or "/")
    return urlunsplit((parts.scheme, host, path, _query(parts.query), ""))


def domain(url: str) -> str:
    """The host in lower case and ASCII, without port, dot at the end and "www."; "" where there is none."""
    parts = _split(url.strip())
    host = _host(parts.hostname or "") if parts is not None else ""
    return host.removeprefix("www.")


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # a broken IPv6 host
        return None


def _host(host: str) -> str:
    host = host.rstrip(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return host


def _escaped(path: str) -> str:
    """Escapes in capitals, none for characters that need none, one for each that does."""
    path = _UNRESERVED.sub(lambda match: unquote(match[0]), path)
    path = _ESCAPE.sub(lambda match: match[0].upper(), path)
    path = re.sub(r"%(?![0-9A-F]{2})", "%25", path)
    return quote(path, safe=_SAFE_IN_PATH)


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4: "." and ".." are taken out."""
    if "/." not in path:
        return path if path.startswith("/") else "/" + path
    kept: list[str] = []
    parts = path.split("/")
    for part in parts[1:]:
        if part == "..":
            del kept[-1:]
        elif part != ".":
            kept.append(part)
    if parts[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _query(query: str) -> str:
    if not query:
        return ""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="surrogateescape", max_num_fields=1000
        )
    except ValueError:  # more fields than a page has
        return query
    kept = sorted(pair for pair in pairs if not _TRACKING.fullmatch(pair[0]))
    return urlencode(kept, errors="surrogateescape")


@dataclass(frozen=True)
class UrlRules:
    """What an address may not be. `check` gives the reason, or ""."""

    blocked: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()  # if any, all others are refused
    strict_words: tuple[str, ...] = ()  # in the address without "-" and ".", even inside words
    hard_words: frozenset[str] = frozenset()  # one whole word is enough
    soft_words: frozenset[str] = frozenset()  # two different whole words are

    @staticmethod
    def load(
        block: Iterable[Path] = (),
        allow: Iterable[Path] = (),
        strict: Iterable[Path] = (),
        hard: Iterable[Path] = (),
        soft: Iterable[Path] = (),
    ) -> UrlRules:
        """Rules from files of one domain or word a line. Domains may stand in the hosts file's form.

        Raises RequestError for a file that cannot be read, and with file and line for a line that is no
        domain or no single word.
        """
        return UrlRules(
            blocked=_domains(block),
            allowed=_domains(allow),
            strict_words=tuple(sorted(_words(strict))),
            hard_words=_words(hard),
            soft_words=_words(soft),
        )

    def check(self, url: str) -> str:
        """ "url_blocked", "url_not_allowed", "url_strict_word", "url_hard_word", "url_soft_words" or "".

        A rule about a domain holds for all domains below it.
        """
        host = domain(url)
        if self.allowed and not _under(host, self.allowed):
            return "url_not_allowed"
        if self.blocked and _under(host, self.blocked):
            return "url_blocked"
        if not (self.strict_words or self.hard_words or self.soft_words):
            return ""
        lowered = unquote(url).lower()
        if self.strict_words:
            joined = lowered.replace("-", "").replace(".", "")
            if any(word in joined for word in self.strict_words):
                return "url_strict_word"
        words = set(re.findall(r"[^\W_]+", lowered))
        if words & self.hard_words:
            return "url_hard_word"
        return "url_soft_words" if len(words & self.soft_words) >= 2 else ""


def _under(host: str, domains: frozenset[str]) -> bool:
    while host:
        if host in domains:
            return True
        host = host.partition(".")[2]
    return False


_DOMAIN = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_SINKS = ("0.0.0.0", "127.0.0.1", "::", "::1")
_OF_HOSTS_FILE = (
    "localhost",
    "localhost.localdomain",
    "local",
    "broadcasthost",
    "ip6-localhost",
    "ip6-loopback",
)


def _domains(paths: Iterable[Path]) -> frozenset[str]:
    found: set[str] = set()
    for path in paths:
        for number, line in read_lines(path):
            words = line.split()
            if words[0] in _SINKS and len(words) > 1:
                words = [word for word in words[1:] if word not in _OF_HOSTS_FILE]
            elif len(words) > 1:
                raise RequestError(
                    f"{path}:{number}: {line!r} is no domain. Write one domain a line, or lines of a hosts file "
                    f'such as "0.0.0.0 example.com".'
                )
            for word in words:
                name = _host(word).removeprefix("*.").removeprefix(".").removeprefix("www.")
                if not _DOMAIN.fullmatch(name):
                    raise RequestError(
                        f'{path}:{number}: {word!r} is no domain. Write the name alone, such as "example.com", '
                        f"without scheme, port or path."
                    )
                found.add(name)
    return frozenset(found)


def _words(paths: Iterable[Path]) -> frozenset[str]:
    found: set[str] = set()
    for path in paths:
        for number, line in read_lines(path):
            word = line.lower()
            if not word.isalnum():
                raise RequestError(
                    f"{path}:{number}: {line!r} is no single word of letters and digits. Write one word a line."
                )
            found.add(word)
    return frozenset(found)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number, line) of the lines of a list, without comments (from "#" on), blanks around and empty lines.

    Raises RequestError for a file that cannot be read or is no UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"{path} cannot be read: {error.strerror or error}. Name a text file."
        ) from None
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is no UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from None
    lines = (
        (n, re.split(r"(?:^|\s)#", line)[0].strip()) for n, line in enumerate(text.split("\n"), 1)
    )
    return [(n, line) for n, line in lines if line]
