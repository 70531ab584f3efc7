"""The text of a page worth keeping: two quick extractors where they agree, trafilatura where they do not.

Measured on 90 real pages with the text that a person extracted (`python -m benchmarks.extract`).
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from gristmill.data.extract.blocks import NO_TEXT, container, main_text, paragraph_weights

# Shared words of the two quick texts (Dice). Pages below it are the ones that either extractor gets wrong.
AGREEMENT = 0.9
_FOCUS_CHARS = 500


def careful(html: str, quick: str) -> tuple[str, str]:
    """(text, method) of a page; `quick` is the cheap tier's text.

    Methods: "blocks" (both quick extractors agree, the text is ours), "trafilatura". "" = no text found.
    """
    import lxml.etree
    from lxml.html import HTMLParser, document_fromstring

    parser = HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, collect_ids=False)
    data = html.encode("utf-8", "replace")
    try:
        tree = document_fromstring(data, parser=parser)
    except lxml.etree.ParserError:  # nothing in it
        return "", "trafilatura"
    lxml.etree.strip_elements(tree, *NO_TEXT, with_tail=False)
    body = tree.find("body")
    if body is None:
        return _trafilatura(tree), "trafilatura"
    weights, total = paragraph_weights(body)
    root = container(body, weights, total)
    ours = main_text(root, weights, total) if quick else ""
    if ours and _agreement(ours, quick) >= AGREEMENT:
        return ours, "blocks"
    if total >= _FOCUS_CHARS and root is not body and root.tag != "body":
        for child in list(body):
            body.remove(child)
        body.text = None
        root.tail = None
        body.append(root)
    return _trafilatura(tree), "trafilatura"


def _agreement(first: str, second: str) -> float:
    a, b = Counter(first.split()), Counter(second.split())
    return 2 * (a & b).total() / max(1, a.total() + b.total())


def _trafilatura(tree: Any) -> str:
    from trafilatura import extract

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    # Its second opinions (fast=False) change no F1 on the pages that come here, at a third of the time more.
    return (extract(tree, fast=True, favor_precision=True, include_comments=False) or "").strip()


def load() -> None:
    """Import what the first page would wait for."""
    import lxml.etree
    import resiliparse.extract.html2text
    import trafilatura

    _trafilatura(lxml.etree.HTML(f"<p>{trafilatura.__version__}</p>"))
    resiliparse.extract.html2text.extract_plain_text("<p>a</p>")
