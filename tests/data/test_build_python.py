"""The installed Python as a source: what it finds, how it labels it, and that packages are split whole."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import json
import sys
from pathlib import Path

import pytest

from gristmill.data import Document, documents, source_fingerprint
from gristmill.data.build import BuildConfig, run
from gristmill.data.python_source import PYTHON, license_of
from gristmill.data.stub import render_module

CONFIG = BuildConfig(max_bytes=2_400_000, per_package_bytes=120_000, workers=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Document], dict]:
    result = run(CONFIG, {}, tmp_path_factory.mktemp("python"))
    directory = result.outputs["documents"]
    rows = [row for part in ("train", "heldout", "dropped") for row in documents(directory, part)]
    return rows, result.metrics


def test_all_three_groups_share_the_limit(built: tuple[list[Document], dict]) -> None:
    rows, metrics = built
    kept = {group["group"]: group["kept_bytes"] for group in metrics["groups"]}
    assert set(kept) == {"stdlib", "topics", "packages"}
    assert 0.9 * CONFIG.max_bytes < sum(kept.values()) <= CONFIG.max_bytes
    assert kept["stdlib"] > 600_000 and kept["packages"] > 600_000 and kept["topics"] > 200_000
    text = sum(len(row.text.encode()) for row in rows if not row.drop_reason)
    assert text == sum(kept.values()) == sum(split["bytes"] for split in metrics["splits"].values())


def test_no_package_is_on_both_sides(built: tuple[list[Document], dict]) -> None:
    rows, metrics = built
    sides: dict[str, set[str]] = {}
    for row in rows:
        if row.group == "packages" and not row.drop_reason:
            sides.setdefault(row.package, set()).add(row.split)
    assert len(sides) > 20
    assert all(len(side) == 1 for side in sides.values())
    assert {"train", "heldout"} == {side for both in sides.values() for side in both}
    share = metrics["splits"]["heldout"]["bytes"] / (CONFIG.max_bytes)
    assert 0.03 < share < 0.08


def test_kept_text_is_the_file_line_by_line(built: tuple[list[Document], dict]) -> None:
    rows, _ = built
    compared = 0
    for row in rows:
        if row.kind == "python" and not row.drop_reason and row.details.get("encoding") == "utf-8":
            path = Path(row.url.removeprefix("file://").replace("%2B", "+").replace("%40", "@"))
            original = path.read_text(encoding="utf-8")
            ast.parse(row.text)
            assert row.text.count("\n") == original.count("\n")
            if not row.details.get("removed"):
                assert [a.rstrip() for a in row.text.split("\n")] == [
                    b.replace("\x0c", "").rstrip() for b in original.split("\n")
                ]
            compared += 1
    assert compared > 50


def test_labels(built: tuple[list[Document], dict]) -> None:
    rows, _ = built
    stdlib = [row for row in rows if row.group == "stdlib" and row.kind == "python"]
    assert {row.license for row in stdlib} == {"PSF-2.0"}
    assert all(
        row.source.startswith(f"{PYTHON}/") and row.url.startswith("file:///") for row in stdlib
    )
    packages = {row.package: row for row in rows if row.group == "packages"}
    rich = packages["rich"]
    assert rich.source.startswith("site-packages/rich") and rich.license == "MIT"
    readme = next(row for row in rows if row.package == "rich" and row.source.endswith("/METADATA"))
    # The file itself: importlib.metadata moves the text into a header when another finder is installed.
    written = importlib.metadata.distribution("rich").read_text("METADATA") or ""
    described = written.partition("\n\n")[2]
    assert readme.text.split() == described.split() != []
    line = readme.details["line_offset"]
    raw = Path(readme.url.removeprefix("file://")).read_text().split("\n")
    assert raw[line : line + 3] == readme.text.split("\n")[:3], (
        "line numbers lead back into the file"
    )


def test_tests_and_vendored_copies_are_listed_unread(built: tuple[list[Document], dict]) -> None:
    rows, _ = built
    reasons = {row.source: row for row in rows if row.drop_reason}
    vendored = [row for source, row in reasons.items() if "/pip/_vendor/" in source]
    tests = [row for source, row in reasons.items() if "/numpy/" in source and "/tests/" in source]
    assert vendored and tests
    assert {row.drop_reason for row in vendored} == {"vendored"} and not any(
        row.text for row in vendored
    )
    assert {row.drop_reason for row in tests} == {"tests"} and not any(row.text for row in tests)
    torch = [row for row in rows if row.package == "torch"]
    kept = sum(len(row.text) for row in torch if not row.drop_reason)
    assert kept <= CONFIG.per_package_bytes
    assert sum(row.drop_reason == "over_per_package_bytes" for row in torch) > 500


def test_topics_read_as_pydoc_tells_them(built: tuple[list[Document], dict]) -> None:
    from pydoc_data.topics import topics

    rows, _ = built
    told = {
        row.source.removeprefix(f"{PYTHON}/topics/"): row for row in rows if row.group == "topics"
    }
    assert set(told) == set(topics)
    assert told["with"].text.split() == topics["with"].split()
    assert not told["if"].drop_reason and told["else"].drop_reason == "duplicate"
    assert (told["with"].url, told["with"].kind) == ("pydoc:with", "pydoc")


PUBLIC_IN_C = ["math", "itertools", "builtins", "time", "zlib", "array", "select"]


@pytest.mark.parametrize("name", PUBLIC_IN_C)
def test_a_module_in_c_is_told_as_python_that_parses(name: str) -> None:
    module = importlib.import_module(name)
    tree = ast.parse(render_module(name))
    nodes = {
        node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    functions = [
        n for n, value in vars(module).items() if inspect.isbuiltin(value) and not n.startswith("_")
    ]
    assert set(functions) <= set(nodes)
    for function in functions:
        value = getattr(module, function)
        assert ast.get_docstring(nodes[function]) == (inspect.getdoc(value) or None)
        try:
            signature = inspect.signature(value)
        except ValueError:
            continue
        arguments = nodes[function].args
        named = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
        wanted = [
            p.name
            for p in signature.parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        assert [argument.arg for argument in named] == wanted


def test_signatures_that_only_docstrings_state() -> None:
    tree = ast.parse(render_module("builtins"))
    stated = {
        node.name: ast.unparse(node.args) for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    assert stated["getattr"] in ("object, name, default=...", "object, name, default=..., /")
    assert stated["len"] == "obj, /"


def test_names_in_c_of_a_module_in_python() -> None:
    text = render_module("collections")
    names = {node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    assert "deque" in names and "Counter" not in names and "namedtuple" not in names
    assert "Add an element to the right side of the deque." in text


def test_no_address_of_this_process_is_told() -> None:
    for name in ("builtins", "sys", "io", "socket"):
        assert " at 0x" not in render_module(name)


class _Metadata(dict):
    def get_all(self, name: str) -> list[str]:
        return self.get(name, [])

    def __missing__(self, name: str) -> None:
        return None


@pytest.mark.parametrize(
    "stated,licence",
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "x"}, "MIT OR Apache-2.0"),
        ({"License": "BSD"}, "BSD"),
        (
            {"License": "UNKNOWN", "Classifier": ["License :: OSI Approved :: MIT License"]},
            "MIT License",
        ),
        ({"License": "long text " * 50, "Classifier": ["License :: OSI Approved :: ISC"]}, "ISC"),
        ({"Classifier": ["License :: OSI Approved", "Topic :: Text"]}, ""),
        ({}, ""),
    ],
)
def test_the_licence_is_what_the_distribution_states(stated: dict, licence: str) -> None:
    assert license_of(_Metadata(stated)) == licence


def test_modules_with_side_effects_are_not_imported(built: tuple[list[Document], dict]) -> None:
    rows, _ = built
    names = {row.url.removeprefix("pydoc:") for row in rows if row.source.endswith(".pyi")}
    assert {"math", "itertools", "builtins", "sys", "collections"} <= names
    assert not names & {"antigravity", "this", "readline", "idlelib"}
    assert not any(name.startswith("_") for name in names)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    config = BuildConfig(path=str(tmp_path))
    before = source_fingerprint(config)
    assert source_fingerprint(config) == before
    (tmp_path / "b.txt").write_text("two")
    assert source_fingerprint(config) != before


def test_importing_the_room_costs_no_pyarrow() -> None:
    import subprocess

    code = "import sys, gristmill.data; print([m for m in ('pyarrow', 'torch', 'spacy', 'ftfy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []
