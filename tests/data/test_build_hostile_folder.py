"""A folder that holds everything which breaks readers: all of it is read or gets a reason, and nothing hangs."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from gristmill.data import Document, documents, source_fingerprint
from gristmill.data.build import BuildConfig, run
from gristmill.errors import RequestError

PROSE = (
    "The mill stands where the river turns. Its wheel has sixteen blades, and each of them was cut from "
    "oak that grew on the northern slope. In spring, when the snow melts, the wheel turns day and night.\n"
)
FORGE = (
    "A forge needs air before it needs iron. Two boys work the bellows from first light, and the smith waits "
    "until the coals are the colour of a ripe orange.\nOnly then does he lay the bar into the fire.\n"
)
BRIDGE = (
    "Nobody remembers who built the bridge. The oldest map shows it already, a thin line over the gorge, "
    "with a word beside it that no scholar has managed to read.\nGoats cross it in the evening.\n"
)
ORCHARD = (
    "Forty apple trees stand in eight rows behind the school. Children are allowed to eat what falls, and so "
    "it happens that on windy mornings the lessons begin rather late.\nThe teacher likes pears better.\n"
)
LIGHTHOUSE = (
    "Since the lamp became electric the keeper has had little to do. He counts ships, writes down their names "
    "when he can read them, and sends the list to his daughter each month.\nShe keeps every one.\n"
)


@pytest.fixture(autouse=True)
def _deadline():
    """A pipe that nobody writes to would block a careless reader for ever."""

    def expired(*_: object) -> None:
        raise TimeoutError("the build hangs")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(600)  # generous: it ends a hang, it does not measure
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_folder(root: Path) -> None:
    """One file of each kind of trouble, and a few good ones."""
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "good.md").write_text("# The mill\n\n" + PROSE)
    (root / "deep" / "deeper" / "also-good.txt").write_text(FORGE)
    script = '"""Grinds."""\n\n\ndef grind(grain):\n    """Grind it."""\n    return sorted(grain)\n\n\ngrind([2, 1])\n'
    (root / "script.py").write_text(script)
    (root / "python2.py").write_text(
        "import os\n\n\ndef show(x):\n    print x\n    print os.name\n\n\nshow(1)\n"
    )
    (root / "empty.txt").write_bytes(b"")
    (root / "blank.txt").write_bytes(b" \n\t\r\n ")
    (root / "noise").write_bytes(bytes(range(256)) * 40)
    (root / "control.txt").write_bytes(b"\x01\x02\x03\x04\x05\x06\x0e\x0f" * 30 + b"text")
    (root / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + os.urandom(300))
    (root / "line.txt").write_text("word " * 1_000_000)
    (root / "bundle.js").write_text("\n".join(["var a=1;" * 300] * 6))
    (root / "latin.txt").write_bytes(
        ("Le café près de la forêt où naît l'été. " * 8).encode("latin-1")
    )
    (root / "windows.txt").write_bytes(
        ("“Quoted” – she said – and it’s done, again and again. " * 8).encode("cp1252")
    )
    (root / "utf16.txt").write_bytes(
        ("The sixteen bit file holds a sentence of plain words. " * 4).encode("utf-16")
    )
    (root / "broken-utf16.txt").write_bytes(
        b"\xff\xfe" + "half a character".encode("utf-16-le") + b"\x00"
    )
    (root / "cyrillic.txt").write_bytes(
        "Мельница стоит там, где река поворачивает. ".encode("cp1251") * 20
    )
    (root / "bom.txt").write_bytes(b"\xef\xbb\xbf" + BRIDGE.encode())
    (root / "copy-of-good.md").write_text("# THE MILL\n\n\n" + PROSE.replace(" ", "  "))
    (root / "near.md").write_text("# Trees\n\n" + ORCHARD + "Last year there were forty-one.\n")
    (root / "near2.md").write_text("# Trees\n\n" + ORCHARD + "Last year there were forty-two.\n")
    (root / "page.html").write_text(
        "<html><head><title>Mill</title><style>p{}</style><script>var secret=1</script></head><body><nav>Home</nav>"
        f"<h1>On mills</h1><p>{LIGHTHOUSE}</p></body></html>"
    )
    (root / "empty.html").write_text("<html><script>run()</script></html>")
    (root / "rows.jsonl").write_bytes(
        b'{"text": "A row of text with enough words to be kept as it is."}\n'
        b"{broken\n"
        b"\n"
        b'{"title": "no text here"}\n'
        b'{"messages": [{"role": "user", "content": "What is a mill?"}, '
        b'{"role": "assistant", "content": "A house with a wheel that grinds."}]}\n'
        b'{"text": "lone \\ud800 surrogate in a row with enough words around it"}\n'
        b'{"text": ""}\n'
        b'{"text": "a nul \x00 byte"}\n'
        b"[1, 2]\n"
        b'{"content": "The last row has no newline after it, but words enough."}'
    )
    (root / "empty.jsonl").write_bytes(b"")
    (root / "one.txt").write_text("few words")
    (root / "archive.zip").write_bytes(b"PK\x03\x04")
    (root / ".hidden").write_text(PROSE)
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text(PROSE)
    (root / "node_modules").mkdir()
    (root / "node_modules" / "index.js").write_text(PROSE)
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "deep" / "up").symlink_to("..", target_is_directory=True)
    (root / "outside.txt").symlink_to("/etc/hostname")
    (root / "nowhere.txt").symlink_to(root / "does-not-exist")
    (root / "self").symlink_to("self")
    os.mkfifo(root / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    Path(os.fsdecode(bytes(root) + b"/caf\xe9\n.txt")).write_text(
        "A name may hold any byte but two. " * 2 + LIGHTHOUSE[::-1]
    )


EXPECTED = {
    "empty.txt": "empty",
    "blank.txt": "empty",
    "noise": "binary",
    "control.txt": "binary",
    "photo.png": "unsupported_format",
    "line.txt": "long_line",
    "bundle.js": "long_line",
    "broken-utf16.txt": "undecodable",
    "cyrillic.txt": "undecodable",
    "good.md": "duplicate",
    "near2.md": "near_duplicate",
    "empty.html": "no_text",
    "rows.jsonl:2": "bad_row",
    "rows.jsonl:4": "no_text_field",
    "rows.jsonl:7": "empty",
    "rows.jsonl:8": "binary",
    "rows.jsonl:9": "no_text_field",
    "empty.jsonl": "empty",
    "one.txt": "too_short",
    "archive.zip": "unsupported_format",
    ".hidden": "hidden",
    ".git": "hidden",
    "node_modules": "tool_folder",
    "loop": "symlink",
    "deep/up": "symlink",
    "outside.txt": "symlink",
    "nowhere.txt": "broken_symlink",
    "self": "broken_symlink",
    "pipe.txt": "not_a_file",
    "socket": "not_a_file",
}
KEPT = {
    "copy-of-good.md",
    "near.md",
    "deep/deeper/also-good.txt",
    "script.py",
    "python2.py",
    "latin.txt",
    "windows.txt",
    "utf16.txt",
    "bom.txt",
    "page.html",
    "rows.jsonl:1",
    "rows.jsonl:5",
    "rows.jsonl:6",
    "rows.jsonl:10",
    "caf\\xe9\\n.txt",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Document]:
    root = tmp_path_factory.mktemp("hostile")
    folder = root / "notes"
    folder.mkdir()
    make_folder(folder)
    result = run(BuildConfig(path=str(folder), workers=1), {}, root / "out")
    rows = [
        row
        for part in ("train", "heldout", "dropped")
        for row in documents(result.outputs["documents"], part)
    ]
    assert len({row.id for row in rows}) == len(rows), "ids name documents, so they are unique"
    return {row.source.removeprefix("notes/"): row for row in rows}


def test_every_file_is_kept_or_has_the_right_reason(built: dict[str, Document]) -> None:
    dropped = {source: row.drop_reason for source, row in built.items() if row.drop_reason}
    assert dropped == EXPECTED
    assert set(built) - set(dropped) == KEPT


def test_texts_are_read_as_their_authors_wrote_them(built: dict[str, Document]) -> None:
    assert built["latin.txt"].text.startswith("Le café près de la forêt où naît l'été.")
    assert built["windows.txt"].text.startswith("“Quoted” – she said – and it’s done")
    assert built["utf16.txt"].text.startswith("The sixteen bit file")
    assert built["bom.txt"].text.startswith("Nobody remembers")
    encodings = {
        name: built[name].details["encoding"] for name in ("latin.txt", "utf16.txt", "good.md")
    }
    assert encodings == {"latin.txt": "cp1252", "utf16.txt": "utf-16", "good.md": "utf-8"}
    assert (
        built["rows.jsonl:5"].text
        == "user: What is a mill?\n\nassistant: A house with a wheel that grinds."
    )
    assert built["rows.jsonl:6"].text.startswith("lone \ufffd surrogate")


def test_a_page_keeps_title_and_text_and_loses_the_rest(built: dict[str, Document]) -> None:
    text = built["page.html"].text
    assert text.startswith("# Mill\n\n# On mills\n\nSince the lamp became electric")
    for gone in ("secret", "p{}", "Home", "<"):
        assert gone not in text


def test_kinds_and_labels(built: dict[str, Document]) -> None:
    kinds = {
        name: built[name].kind
        for name in ("script.py", "python2.py", "good.md", "page.html", "rows.jsonl:1")
    }
    assert kinds == {
        "script.py": "python",
        "python2.py": "code",  # Python 2 does not parse; it is not lost for that
        "good.md": "markdown",
        "page.html": "html",
        "rows.jsonl:1": "jsonl",
    }
    assert "print" in built["python2.py"].details["not_python"]
    assert {row.group for row in built.values()} == {"notes"}
    assert built["good.md"].url.startswith("file:///") and built["good.md"].date.endswith("Z")


def test_duplicates_name_the_copy_that_stays(built: dict[str, Document]) -> None:
    assert built["good.md"].details["duplicate_of"] == {
        "id": built["copy-of-good.md"].id,  # first by name in the same folder
        "source": "notes/copy-of-good.md",
    }
    assert built["near2.md"].details["duplicate_of"]["source"] == "notes/near.md"


def test_nothing_of_a_dropped_row_is_lost(built: dict[str, Document]) -> None:
    assert built["one.txt"].text == "few words"
    assert built["one.txt"].details["decided"] == {
        "signal": "words",
        "value": 2.0,
        "limit": ">= 20",
    }
    assert built["rows.jsonl:2"].text == "{broken"


def test_a_row_that_is_too_long_does_not_end_the_file(tmp_path: Path) -> None:
    rows = [
        '{"text": "the first row is short and is kept by all rules"}',
        '{"text": "' + "x" * 8_100_000 + '"}',
    ]
    rows += ['{"text": "the third row follows the one that is too long"}']
    (tmp_path / "big.jsonl").write_text("\n".join(rows) + "\n")
    result = run(BuildConfig(path=str(tmp_path / "big.jsonl"), workers=1), {}, tmp_path / "out")
    directory = result.outputs["documents"]
    kept = sorted(row.source for part in ("train", "heldout") for row in documents(directory, part))
    assert kept == ["big.jsonl:1", "big.jsonl:3"]
    (dropped,) = documents(directory, "dropped")
    assert (dropped.source, dropped.drop_reason) == ("big.jsonl:2", "too_large")


def test_a_file_larger_than_a_segment_numbers_its_rows(tmp_path: Path) -> None:
    names = ["".join("abcdefghij"[int(digit)] for digit in str(n)) for n in range(3_001)]
    lines = [
        f'{{"text": "row {name} speaks of things that the others leave to {name}", "pad": "{"-" * 500}"}}'
        for name in names[1:]
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    config = BuildConfig(path=str(tmp_path), workers=1, near_duplicate=1, heldout_fraction=0.01)
    directory = run(config, {}, tmp_path / "out").outputs["documents"]
    texts = {
        row.source: row.text for part in ("train", "heldout") for row in documents(directory, part)
    }
    assert len(texts) == 3_000
    for n in (1, 2, 1_850, 2_999, 3_000):
        assert texts[f"{tmp_path.name}/many.jsonl:{n}"].startswith(f"row {names[n]} speaks")


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r'source ".*/nowhere" does not exist'):
        run(BuildConfig(path=str(tmp_path / "nowhere")), {}, tmp_path / "out")


def test_a_pipe_as_the_source_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="neither a folder nor a regular file"):
        run(BuildConfig(path=str(tmp_path / "pipe")), {}, tmp_path / "out")


def test_a_folder_with_nothing_usable_lists_the_reasons(tmp_path: Path) -> None:
    folder = tmp_path / "junk"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"")
    (folder / "b.txt").write_bytes(b"")
    (folder / "c.bin").write_bytes(b"\0")
    with pytest.raises(
        RequestError, match=r"all 3 files were left out \(empty 2, unsupported_format 1\)"
    ):
        run(BuildConfig(path=str(folder), workers=1), {}, tmp_path / "out")
    (tmp_path / "void").mkdir()
    with pytest.raises(RequestError, match="it is empty"):
        run(BuildConfig(path=str(tmp_path / "void"), workers=1), {}, tmp_path / "out")
    assert not (tmp_path / "out/documents").exists(), "a refused build leaves no partial output"


def test_a_folder_without_anything_to_read_is_refused_before_the_work(tmp_path: Path) -> None:
    """What a recipe asks before its first stage: the listing tells, nothing is read."""
    config = BuildConfig(path=str(tmp_path))
    with pytest.raises(RequestError, match="it is empty"):
        source_fingerprint(config)
    (tmp_path / "c.bin").write_bytes(b"\0")
    with pytest.raises(RequestError, match=r"all 1 files were left out \(unsupported_format 1\)"):
        source_fingerprint(config)
    (tmp_path / "a.txt").write_text("words")
    assert source_fingerprint(config)


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(PROSE)
    with pytest.raises(RequestError, match="none can be held out"):
        run(BuildConfig(path=str(tmp_path / "book.txt"), workers=1), {}, tmp_path / "out")
    config = BuildConfig(path=str(tmp_path / "book.txt"), workers=1, heldout_fraction=0)
    directory = run(config, {}, tmp_path / "out").outputs["documents"]
    assert [row.text for row in documents(directory, "train")] == [PROSE]
    assert list(documents(directory, "heldout")) == []


def test_sources_and_path_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not both"):
        run(BuildConfig(sources=("a",), path="b"), {}, tmp_path)
    with pytest.raises(RequestError, match="no source given"):
        run(BuildConfig(sources=()), {}, tmp_path)
