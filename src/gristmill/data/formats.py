"""Which reader opens a file and of what kind its text is: by name, and for XML and JSON by the first bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_KINDS = {
    "python": "py pyi pyw",
    "markdown": "md markdown mdown mkd mdx qmd rmd",
    "html": "html htm xhtml",
    "jsonl": "jsonl ndjson",
    "text": "txt text rst adoc asciidoc org textile wiki log eml srt vtt",
    "code": "c h cc cpp cxx hh hpp hxx cu cuh m mm cs java kt kts scala groovy clj cljs go rs swift zig nim d "
    "js mjs cjs jsx ts tsx vue svelte dart php rb pl pm lua r jl hs ml mli fs fsx ex exs erl elm lisp el scm "
    "sh bash zsh fish ps1 bat sql graphql proto thrift css scss sass less xml xsl json json5 yaml yml toml ini "
    "cfg conf cmake mk gradle tf vim asm s f f90 f95 pas ada vhd v sv tcl awk sed bzl nix dockerfile",
}
KIND_OF_SUFFIX = {suffix: kind for kind, names in _KINDS.items() for suffix in names.split()}
_CODE_NAMES = frozenset(
    ["makefile", "dockerfile", "rakefile", "gemfile", "cmakelists.txt", "justfile", "sconstruct"]
)
# Formats that hold text in a form we do not open, and those that hold none.
_NO_TEXT = """doc docx odt rtf mobi djvu ps xls xlsx ods ppt pptx odp ipynb zip xz 7z rar whl jar png jpg jpeg gif
bmp tif tiff webp ico svg heic psd mp3 wav flac ogg m4a mp4 mkv mov avi webm ttf otf woff woff2 so dll dylib exe o
a class pyc pyo bin dat db sqlite sqlite3 feather npy npz pt pth safetensors gguf onnx h5 hdf5 pkl pickle iso img deb
rpm dmg wat"""
_UNSUPPORTED = frozenset(_NO_TEXT.split())
_PACKINGS = ("gz", "bz2", "zst")
_BY_SUFFIX = {
    "warc": ("warc", "web"),
    "wet": ("warc", "web"),
    "arc": ("warc", "web"),
    "epub": ("epub", "book"),
    "pdf": ("pdf", "text"),
    "parquet": ("parquet", "jsonl"),
    "csv": ("csv", "jsonl"),
    "tsv": ("csv", "jsonl"),
    "tex": ("latex", "paper"),
    "tgz": ("latex", "paper"),
    "tar": ("latex", "paper"),
}
_TEXT_KEY = re.compile(rb'"(?:text|content|messages|conversations|mapping|chat_messages)"\s*:')
# Names under which chat services hand out their users' conversations.
_CHATS = ("conversations.json", "_chat.txt")
# Folders that tools make: copies, caches and dependencies, not what the person wrote.
TOOL_FOLDERS = {"__pycache__", "node_modules", "bower_components", "site-packages", "venv", "env"}
TOOL_FOLDERS |= {"dist", "build", "target", "_build", "__MACOSX", "$RECYCLE.BIN"}


@dataclass(frozen=True, slots=True)
class Format:
    """reader: see read.py; "" when the file is not opened: `unsupported` is its format then."""

    reader: str
    kind: str
    unsupported: str = ""


def format_of(path: Path) -> Format:
    """The format of a regular file. Only .xml and .json files are opened for it."""
    name = path.name.lower()
    suffixes = [suffix for suffix in name.split(".")[1:] if suffix]
    packed = bool(suffixes) and suffixes[-1] in _PACKINGS
    suffix = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if name.endswith(_CHATS):
        return Format("chats", "chat")
    if suffix in _UNSUPPORTED:
        return Format("", "text", f".{suffix}")
    if suffix in _BY_SUFFIX:
        return Format(*_BY_SUFFIX[suffix])
    if suffix == "xml" and (dump := _dump(path)):
        return dump
    if suffix == "json" and _has_texts(path):
        return Format("json", "jsonl")
    if suffix == "gz":  # arXiv's one file of a paper has no name inside; others say what they are
        return Format("latex", "paper") if packed else Format("", "text", ".gz")
    if packed and suffix in _PACKINGS:
        return Format("", "text", f".{suffix}")
    kind = "code" if name in _CODE_NAMES else KIND_OF_SUFFIX.get(suffix, "text")
    if kind == "jsonl":
        return Format("packed_jsonl" if packed else "jsonl", kind)
    return Format("packed" if packed else "file", kind)


def _has_texts(path: Path) -> bool:
    """Whether a JSON file is a list of objects with texts or conversations, and no settings or data."""
    from gristmill.data.sources.opening import opened

    try:
        with opened(path) as stream:
            head = stream.some(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return False
    objects = head.startswith(b"[") and head[1:].lstrip().startswith(b"{")
    return objects and _TEXT_KEY.search(head) is not None


def _dump(path: Path) -> Format | None:
    """The dumps that come as XML, known by their root element."""
    from gristmill.data.sources.opening import opened
    from gristmill.data.sources.stackexchange import is_stackexchange
    from gristmill.data.sources.wikipedia import is_wikipedia

    try:
        with opened(path) as stream:
            head = stream.some(4096)
    except OSError:
        return None
    if is_wikipedia(head):
        return Format("wikipedia", "wiki")
    return Format("stackexchange", "qa") if is_stackexchange(head) else None
