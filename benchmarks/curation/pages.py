"""Real pages to curate: article pages of the web, books, and the documentation that this machine has installed.

The same machine gives the same pages in the same order, equal ones once.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_string
from html import unescape
from pathlib import Path

DATA = Path(__file__).parents[2].parent / "shared/data"
PYTHON = sysconfig.get_paths()
DOCUMENTATION = Path("/usr/share/doc")


@dataclass(frozen=True, slots=True)
class Page:
    source: str
    text: str


def pages(count: int, characters: int, *, installed: bool = True) -> list[Page]:
    """At most `count` different pages, cut at a line end before `characters`. Which ones is decided by a hash of
    their text, so that every source is in a small sample. Without `installed`: only those of the web, books and
    Python (some 1,200, and a second or two to collect)."""
    unique: dict[str, Page] = {}
    for page in _all(installed):
        text = page.text
        if len(text) > characters:
            text = text[: text.rfind("\n", 0, characters) + 1] or text[:characters]
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        unique.setdefault(key, Page(page.source, text))
    return [unique[key] for key in sorted(unique)[:count]]


def _all(installed: bool) -> Iterator[Page]:
    yield from _articles()
    yield from _books()
    yield from _python()
    if not installed:
        return
    packages = Path(PYTHON["purelib"])
    for path in sorted(packages.rglob("*")):
        if path.suffix in (".md", ".rst", ".txt", ".html") or path.name == "METADATA":
            yield from _file(path, f"packages/{path.relative_to(packages)}")
    for path in sorted(DOCUMENTATION.rglob("*")) if DOCUMENTATION.is_dir() else ():
        if not path.is_symlink():
            yield from _file(path, f"doc/{path.relative_to(DOCUMENTATION)}")


def _articles() -> Iterator[Page]:
    """What a browser shows of the pages, menus and cookie banners included, and their main text alone."""
    from resiliparse.extract.html2text import extract_plain_text

    for path in sorted((DATA / "crawl/article-extraction/html").glob("*.html.gz")):
        html = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        for main in (True, False):
            yield Page(f"article/{path.stem}/{main}", extract_plain_text(html, main_content=main))


def _books() -> Iterator[Page]:
    for name in ("botchan", "tinyshakespeare", "wikitext2-valid"):
        path = DATA / f"text/{name}.txt"
        if not path.is_file():
            continue
        text = path.read_text("utf-8")
        starts = [0]
        for end in re.finditer("\n", text):
            if end.start() - starts[-1] >= 2500:
                starts.append(end.end())
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], None], strict=True)):
            yield Page(f"{name}/{number}", text[start:end])


def _python() -> Iterator[Page]:
    """pydoc's topics, and for each module that is one file its docstrings."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Page(f"pydoc/{name}", topics[name])
    root = Path(PYTHON["stdlib"])
    for path in sorted(root.glob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        documented = [
            ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)
        ]
        if text := "\n\n".join(filter(None, documented)):
            yield Page(f"docstrings/{path.relative_to(root)}", text)


def _file(path: Path, source: str) -> Iterator[Page]:
    if not path.is_file():
        return
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        text = data.decode("utf-8")
    except (OSError, EOFError, ValueError):
        return  # no text
    if "\0" in text:
        return
    if path.name == "METADATA":
        text = str(message_from_string(text).get_payload())
    if path.suffix == ".html":
        text = unescape(re.sub(r"(?s)<(script|style).*?</\1>|<[^>]*>", "", text))
    yield Page(source, text)
