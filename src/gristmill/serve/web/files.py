"""Files that people attach: bytes and a name to text, or the sentence that says why not."""

from __future__ import annotations

import io
from dataclasses import dataclass

from gristmill.data import Document
from gristmill.data.decode import decode
from gristmill.data.formats import KIND_OF_SUFFIX
from gristmill.data.html import html_text
from gristmill.data.schema import TEXT_COLUMNS
from gristmill.errors import RequestError, needing

MAX_TEXT = 4_000_000  # characters, of which some are indexed in a second
MAX_PAGES = 2000
_DATA = ("csv", "tsv", "jsonl", "ndjson")  # lines that are no prose, beside what is code


@dataclass(frozen=True)
class File:
    """kind: one of gristmill.data's, which says how the text is cut into passages."""

    name: str
    text: str
    kind: str

    @property
    def document(self) -> Document:
        columns = {"text": self.text, "source": self.name, "kind": self.kind, "split": "train"}
        return Document(**(dict.fromkeys(TEXT_COLUMNS, "") | {"meta": "{}"} | columns))


def read_file(name: str, raw: bytes) -> File:
    """Raises RequestError for what is empty, no text, too long, or a PDF that cannot be read."""
    suffix = name.rpartition(".")[2].lower() if "." in name else ""
    kind = "code" if suffix in _DATA else KIND_OF_SUFFIX.get(suffix, "text")
    if suffix == "pdf" or raw.startswith(b"%PDF-"):
        text, kind = _pdf_text(name, raw), "markdown"
    else:
        text = _decoded(name, raw)
        if kind == "html":
            text, kind = html_text(text), "markdown"  # headings are marked so
    if not text.strip():
        raise RequestError(f"{name} holds no text to answer from.")
    if len(text) > MAX_TEXT:
        raise RequestError(
            f"{name} holds {len(text):,} characters of text; at most {MAX_TEXT:,} are taken. Attach a part of it, "
            "or build an index of it: `gristmill rag index`."
        )
    return File(name, text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", " "), kind)


def _decoded(name: str, raw: bytes) -> str:
    decoded = decode(raw)
    if decoded.reason == "empty":
        raise RequestError(f"{name} is empty.")
    if decoded.reason == "binary":
        raise RequestError(
            f"{name} is not text. Text, Markdown, HTML, source code, JSON, CSV and PDF can be attached."
        )
    if decoded.reason:
        raise RequestError(
            f"{name} is text in an encoding that was not recognized; save it as UTF-8."
        )
    return decoded.text


def _pdf_text(name: str, raw: bytes) -> str:
    """A heading for each page, so that a citation says which."""
    with needing("documents", "pypdf"):
        import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise RequestError(f"{name} is locked with a password; save it without one.")
        if len(reader.pages) > MAX_PAGES:
            raise RequestError(
                f"{name} has {len(reader.pages)} pages; at most {MAX_PAGES} are read. Attach a part of it."
            )
        pages = [page.extract_text().strip() for page in reader.pages]
    except RequestError:
        raise
    except Exception as error:  # whatever a damaged file makes of a parser
        raise RequestError(f"{name} cannot be read as a PDF: {error}") from None
    if not any(pages):
        raise RequestError(f"{name} holds pictures of pages and no text; run it through OCR first.")
    return "\n\n".join(f"# Page {n}\n\n{text}" for n, text in enumerate(pages, 1) if text)
