"""The source "python": the standard library, pydoc topics and installed packages of this interpreter."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gristmill.data.sources import Group, Item, file_url, modified, printable

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PYTHON_LICENSE = "PSF-2.0"
TEST_DIRECTORIES = {"test", "tests", "_tests", "idle_test", "testdata", "test_data"}
VENDOR_DIRECTORIES = {"_vendor", "vendor", "vendored", "_vendored", "third_party", "_third_party"}
NOT_SOURCE_DIRECTORIES = {"__pycache__", "site-packages", "lib2to3", "__phello__"}
_TEST_FILE = re.compile(r"(?:test_.*|.*_tests?|conftest)\.py")
_LICENSE_FILE = re.compile(r"(?i)(?:licen[cs]e|copying|notice|copyright|authors|contributors)\b.*")

# Importing these writes to the terminal's state, warns, or needs hardware; they document nothing useful.
NOT_IMPORTED = {"readline", "ossaudiodev", "xxlimited", "xxlimited_35", "nis", "spwd", "idlelib"}
# Public modules in Python whose best-known names are written in C, so that no .py file holds their text.
PARTLY_C = """array collections contextvars csv decimal hashlib io operator pickle random re sqlite3
socket ssl struct threading types weakref"""
# Kinds in an installation that are worth reading.
_SUFFIX_KINDS = {".py": "python", ".md": "markdown", ".rst": "text"}


def python_groups(seed: int, per_package_bytes: int) -> list[Group]:
    """stdlib, topics and packages of the running interpreter, in that order."""
    stdlib = list(_stdlib_items(seed)) + list(_module_items())
    topics = list(_topic_items())
    packages = list(_package_items(seed, per_package_bytes))
    return [
        Group("stdlib", _size(stdlib), lambda: iter(stdlib)),
        Group("topics", _size(topics), lambda: iter(topics)),
        Group("packages", _size(packages), lambda: iter(packages)),
    ]


def _size(items: list[Item]) -> int:
    return sum(item.size for item in items if not item.refused)


def _draw(seed: int, name: str) -> bytes:
    """A fixed pseudo-random rank of a name: the order of reading where nothing better decides."""
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "replace")).digest()


def _walk(root: Path, skip: set[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(path relative to root, entry) of all files below `root`, sorted; `skip` names directories."""
    stack = [("", root)]
    while stack:
        prefix, directory = stack.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        below = []
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in skip:
                    below.append((f"{prefix}{entry.name}/", Path(entry.path)))
            elif entry.is_file():  # links to files are followed: some installers link from a cache
                yield prefix + entry.name, entry
        stack.extend(reversed(below))


def _stdlib_items(seed: int) -> Iterator[Item]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for relative, entry in _walk(root, NOT_SOURCE_DIRECTORIES):
        if not relative.endswith(".py"):
            continue
        stat = entry.stat()
        parts = relative.split("/")
        refused = "tests" if TEST_DIRECTORIES.intersection(parts[:-1]) else ""
        item = Item(
            reader="" if refused else "file",
            path=entry.path,
            source=f"{PYTHON}/{printable(relative)}",
            url=file_url(entry.path),
            group="stdlib",
            kind="python",
            package=parts[0].removesuffix(".py"),
            license=PYTHON_LICENSE,
            date=modified(stat.st_mtime),
            size=stat.st_size,
            stamp=str(stat.st_mtime_ns),
            refused=refused,
        )
        private = any(p.startswith("_") and p != "__init__.py" for p in parts)
        found.append(((private, _draw(seed, relative)), item))
    yield from (item for _, item in sorted(found, key=lambda pair: pair[0]))


def _module_items() -> Iterator[Item]:
    """Modules in C, rendered as stubs: all public ones, and the C part of the well-known others."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from importlib.util import find_spec

    partly_c = PARTLY_C.split()
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in NOT_IMPORTED:
            continue
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):
            continue
        origin = (spec.origin or "") if spec else ""
        if origin == "built-in" or origin.endswith(tuple(EXTENSION_SUFFIXES)) or name in partly_c:
            yield Item(
                reader="module",
                path=name,
                source=f"{PYTHON}/{name}.pyi",
                url=f"pydoc:{name}",
                group="stdlib",
                kind="pydoc",
                package=name,
                license=PYTHON_LICENSE,
            )


def _topic_items() -> Iterator[Item]:
    from pydoc_data.topics import topics

    # Several names may tell the same text; the shortest is read first and stays ("if", not "else").
    for name in sorted(topics, key=lambda name: (len(name), name)):
        yield Item(
            reader="topic",
            path=name,
            source=f"{PYTHON}/topics/{name}",
            url=f"pydoc:{name}",
            group="topics",
            kind="pydoc",
            package="topics",
            license=PYTHON_LICENSE,
            size=len(topics[name].encode()),
        )


def _distributions(sites: list[Path]) -> dict[str, tuple[str, str]]:
    """Top-level name in site-packages (also the .dist-info directory) -> (distribution, licence)."""
    owners: dict[str, tuple[str, str]] = {}
    found = importlib.metadata.distributions(path=[str(site) for site in sites])
    for distribution in sorted(found, key=lambda d: str(d.metadata["Name"] or "")):
        name = distribution.metadata["Name"]
        if not name:
            continue
        owner = (name, license_of(distribution.metadata))
        record = distribution.read_text("RECORD") or distribution.read_text("top_level.txt") or ""
        tops = {line.split(",", 1)[0].split("/", 1)[0].strip('"') for line in record.splitlines()}
        for top in sorted(tops - {"", "..", "__pycache__"}):
            owners.setdefault(top, owner)
    return owners


def license_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence a distribution states: License-Expression, else classifiers, else a short License."""
    if "License-Expression" in metadata:
        return " ".join(metadata["License-Expression"].split())
    classifiers = [
        line.rsplit("::", 1)[1].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::") and not line.rstrip().endswith("OSI Approved")
    ]
    stated = ""
    if "License" in metadata:
        stated = " ".join(str(metadata["License"]).split())
    if stated and len(stated) <= 60 and stated.upper() != "UNKNOWN":
        return stated
    return ", ".join(sorted(set(classifiers)))


def _package_items(seed: int, per_package_bytes: int) -> Iterator[Item]:
    """Files of site-packages so that packages grow evenly: the n-th byte of each before the n+1-th of any.

    In a package documentation comes first, then public modules near the top, then other public ones, then
    private ones, each in an order drawn by hash. What lies beyond `per_package_bytes` is refused unread.
    """
    paths = sysconfig.get_paths()
    sites = list(dict.fromkeys([Path(paths["purelib"]), Path(paths["platlib"])]))
    owners = _distributions(sites)
    packages: dict[str, list[tuple[tuple[int, bytes], Item]]] = {}
    for site in sites:
        for relative, entry in _walk(site, {"__pycache__"}):
            parts = relative.split("/")
            is_metadata = len(parts) == 2 and parts[1] == "METADATA"
            kind = "markdown" if is_metadata else _SUFFIX_KINDS.get(Path(parts[-1]).suffix)
            if kind is None:
                continue
            top = parts[0]
            package, license = owners.get(top, (top.removesuffix(".py"), ""))
            refused = _refused(parts)
            stat = entry.stat()
            item = Item(
                reader="" if refused else "metadata" if is_metadata else "file",
                path=entry.path,
                source=f"site-packages/{printable(relative)}",
                url=file_url(entry.path),
                group="packages",
                kind=kind,
                package=package,
                license=license,
                date=modified(stat.st_mtime),
                size=stat.st_size,
                stamp=str(stat.st_mtime_ns),
                refused=refused,
            )
            if kind != "python":
                rank = 0
            elif any(p.startswith("_") and p != "__init__.py" for p in parts):
                rank = 3
            else:
                rank = 1 if len(parts) <= 2 else 2
            packages.setdefault(package, []).append(((rank, _draw(seed, relative)), item))
    ordered: list[tuple[int, bytes, str, Item]] = []
    for package in sorted(packages):
        before = 0
        for (_, draw), item in sorted(packages[package], key=lambda pair: pair[0]):
            if not item.refused and before + item.size > per_package_bytes:
                item = _refuse(item, "over_per_package_bytes", {"limit_bytes": per_package_bytes})
            ordered.append((before, draw, item.source, item))
            if not item.refused:
                before += item.size
    yield from (item for *_, item in sorted(ordered, key=lambda entry: entry[:3]))


def _refused(parts: list[str]) -> str:
    directories = set(parts[:-1])
    if directories & VENDOR_DIRECTORIES:
        return "vendored"
    if directories & TEST_DIRECTORIES or _TEST_FILE.fullmatch(parts[-1]):
        return "tests"
    if not parts[-1].endswith(".py") and (
        "licenses" in directories or _LICENSE_FILE.fullmatch(parts[-1])
    ):
        return "licence_text"
    if len(parts) == 1 and parts[0].startswith(("_editable_", "__editable__")):
        return "installer_file"
    return ""


def _refuse(item: Item, reason: str, detail: dict[str, object]) -> Item:
    return replace(item, reader="", refused=reason, detail=detail)
