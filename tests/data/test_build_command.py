"""`gristmill data build | stats | why` as a person types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gristmill.cli.data import app
from gristmill.cli.main import main

TEXTS = {
    "mill.md": "# The mill\n\nThe mill stands where the river turns, and its wheel has sixteen blades of oak that "
    "grew on the slope. Write to ada@analytical.org.\n",
    "forge.txt": "A forge needs air before it needs iron. Two boys work the bellows from first light, and the smith "
    "waits until the coals are orange.\n",
    "bridge.txt": "Nobody remembers who built the bridge. The oldest map shows it already, a thin line over the "
    "gorge, with a word beside it.\n",
    "sub/copy.md": "# The mill\n\nThe mill stands where the river turns, and its wheel has sixteen blades of oak that "
    "grew on the slope. Write to ada@analytical.org.\n",
    "stub.txt": "too short",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        path = tmp_path / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def docs(folder: Path) -> Path:
    invoke("build", "notes", "-o", "docs", "--workers", "1")
    return folder / "docs"


def test_build_shows_tables_and_writes_documents(folder: Path) -> None:
    shown = invoke("build", "notes", "-o", "docs", "--workers", "1")
    assert re.search(r"notes .*5 .*5 .*3", shown), shown
    assert "too_short" in shown and "duplicate" in shown
    assert "private data taken out: 1 email" in shown
    written = sorted(path.name for path in (folder / "docs" / "documents").iterdir())
    assert written == ["README.md", "dropped.parquet", "heldout.parquet", "train.parquet"]
    assert sorted(path.name for path in (folder / "docs").iterdir()) == [
        "documents",
        "report.html",
        "work",
    ]


def test_json_is_one_document_with_the_same_numbers(folder: Path) -> None:
    built = json.loads(invoke("build", "notes", "-o", "docs", "--workers", "1", "--json"))
    assert built.pop("documents") == "docs/documents"
    stats = json.loads(invoke("stats", "docs", "--json"))
    assert stats == built
    assert stats["groups"] == [
        {
            "group": "notes",
            "files": 5,
            "documents": 5,
            "bytes": sum(len(text) for text in TEXTS.values()),
            "kept_documents": 3,
            "kept_bytes": stats["splits"]["train"]["bytes"] + stats["splits"]["heldout"]["bytes"],
            "packages": 0,
        }
    ]
    assert stats["drop_reasons"] == {
        "duplicate": {"documents": 1, "bytes": len(TEXTS["sub/copy.md"])},
        "too_short": {"documents": 1, "bytes": len("too short")},
    }
    assert {sample["reason"] for sample in stats["samples"]["dropped"]} == {
        "duplicate",
        "too_short",
    }
    assert len(stats["samples"]["kept"]) == 3


@pytest.mark.parametrize("directory", ["docs", "docs/documents"])
def test_stats_takes_a_build_or_its_documents(docs: Path, directory: str) -> None:
    assert "too_short" in invoke("stats", directory)


def test_why_tells_what_decided(docs: Path) -> None:
    dropped = invoke("why", "docs", "notes/stub.txt")
    assert "dropped: too_short" in dropped
    assert "words is 2, kept if >= 20" in dropped
    assert f"file://{docs.parent}/notes/stub.txt" in dropped
    copy = invoke("why", "docs", "sub/copy.md")
    assert "dropped: duplicate" in copy and "notes/mill.md" in copy and "which stays" in copy
    kept = invoke("why", "docs", "mill.md")
    assert re.search(r"kept, in (train|heldout), split by notes/mill.md", kept)
    assert "1 email" in kept and "read as utf-8" in kept and "not stated" in kept


def test_why_finds_by_id_source_url_path_and_end(docs: Path) -> None:
    (row,) = json.loads(invoke("why", "docs", "notes/forge.txt", "--json"))
    assert row["kept"] and row["kind"] == "text" and row["meta"]["signals"]["words"] > 20
    for name in (
        row["id"],
        row["url"],
        "forge.txt",
        "notes/forge.txt",
        str(docs.parent / "notes" / "forge.txt"),
    ):
        assert json.loads(invoke("why", "docs", name, "--json")) == [row], name


def test_why_of_a_jsonl_file_tells_all_its_rows(folder: Path) -> None:
    rows = [{"text": text} for text in TEXTS.values()]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    invoke("build", "rows.jsonl", "-o", "rows", "--workers", "1")
    told = json.loads(invoke("why", "rows", "rows.jsonl", "--json"))
    assert sorted(row["source"] for row in told) == [f"rows.jsonl:{n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["build", "nowhere", "-o", "out"], 'source "nowhere" does not exist'),
        (["build", "notes", "-o", "notes/mill.md"], "is a file; -o names a directory"),
        (["build", "void", "-o", "out"], 'nothing in "void": it is empty'),
        (["stats", "notes"], "holds no documents"),
        (["why", "notes", "x"], "holds no documents"),
        (["why", "docs", "notes/forge.text"], 'Did you mean "notes/forge.txt"?'),
        (["why", "docs", "brigde.txt"], 'Did you mean "notes/bridge.txt"?'),
    ],
)
def test_a_wrong_request_ends_with_two_and_one_message(
    docs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (docs.parent / "void").mkdir()
    monkeypatch.setattr("sys.argv", ["gristmill", "data", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err + out
    assert not (docs.parent / "out" / "documents" / "train.parquet").exists()


@pytest.mark.parametrize(
    "option", [["--heldout", "0.9"], ["--max-bytes", "0"], ["--workers", "none"], []]
)
def test_options_out_of_range_end_with_two(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: list[str],
) -> None:
    output = ["-o", "out"] if option else []
    monkeypatch.setattr("sys.argv", ["gristmill", "data", "build", "notes", *output, *option])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and not (folder / "out").exists()
    assert "Traceback" not in capsys.readouterr().err
