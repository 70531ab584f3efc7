"""`gristmill trace`: from a text back to the documents, conversations and pairs that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.asking import read_input
from gristmill.cli.console import err, show_json
from gristmill.cli.trace_view import show, show_nearest
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.data.trace import Traced

_ROWS = 3  # conversations and pairs shown


@dataclass(frozen=True)
class Trained:
    """What a model was trained on. rows: the files of conversations and of preference pairs, by name."""

    tokens: Path
    tokenizer: Path
    documents: Path | None
    rows: dict[str, Path]


def trace(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Run, or a model directory inside one.")
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help='"-" reads standard input.')],
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Token shards to search instead of the run's; for a MODEL that is no run.",
        ),
    ] = None,
    documents: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --tokens: the documents they were made from."),
    ] = None,
    spans: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            show_default="one for 20 tokens, 5 at least",
            help="The most spans to show, rarest first.",
        ),
    ] = None,
    least: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens of the shortest span that counts.")
    ] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Find where TEXT, say an answer of MODEL, stands word for word in what MODEL was trained on.

    Shows the rarest verbatim spans, how often each occurs, documents that hold it with their licence, and the training
    conversations and preference pairs that are nearest in words; --json also gives what curation decided on each.

    A model can say what it never read, and read what it never says: a span is evidence of a source, not proof.

    The first call builds an index beside the shards, of 4 bytes a token; it is made anew when they change.

    Examples:

    - `gristmill trace runs/pyhelp "Find the n largest elements in a dataset."`
    - `gristmill generate runs/pyhelp "import os" | gristmill trace runs/pyhelp -`
    - `gristmill trace gpt2 "some text" --tokens corpus/tokens --documents corpus/documents`
    """
    from gristmill.cli.bar import Bar
    from gristmill.data.trace import index_tokens, open_index
    from gristmill.data.trace import trace as search
    from gristmill.tokenizer import Tokenizer

    given = read_input() if text == "-" else text
    if not given.strip():
        raise RequestError("give a TEXT to trace; it is empty")
    trained = _named(model, tokens, documents) if tokens else _of_run(model)
    if documents and not tokens:
        raise RequestError("--documents belongs to --tokens; a run knows its own documents")
    tokenizer = Tokenizer.load(trained.tokenizer)
    _check_tokenizer(trained, tokenizer.vocab_size)
    with Bar() as bar:
        bar.begin("indexing")
        index_tokens(trained.tokens, progress=bar.progress)
    traced = search(
        given,
        open_index(trained.tokens),
        tokenizer,
        trained.documents,
        spans=spans or "auto",
        least_tokens=least,
    )
    near = {name: _nearest(path, given) for name, path in trained.rows.items()}
    if as_json:
        show_json({"tokens_dir": str(trained.tokens), **_record(traced), "nearest": near})
        return
    show(traced, trained.documents)
    show_nearest(near)


def tokens_of(model: str) -> tuple[Path, Path, Path, Path]:
    """(run, token shards, tokenizer, documents) of the run that `model` is, or lies in. Raises RequestError."""
    from gristmill.files import read_object

    named = Path(model).expanduser()
    run = next(
        (
            place
            for place in (named, *list(named.absolute().parents)[:2])
            if (place / "tokens" / "manifest.json").is_file()
        ),
        None,
    )
    if run is None:
        raise RequestError(
            f"{model} is not a run that keeps its token shards, so what it was trained on is not known. "
            "If you have them: --tokens DIR (and --documents DIR)"
        )
    manifest = read_object(run / "tokens" / "manifest.json")
    try:
        shards = run / manifest["outputs"]["tokens"]["path"]
        tokenizer = run / manifest["inputs"]["tokenizer"]["path"]
        documents = run / manifest["inputs"]["documents"]["path"]
    except (KeyError, TypeError):
        raise RequestError(
            f"{run}/tokens/manifest.json is not of a finished stage; `gristmill run` finishes it, "
            "or give --tokens DIR"
        ) from None
    return run, shards, tokenizer, documents


def shards_in(directory: Path) -> Path:
    """The token shards that lie in `directory`, or in its tokens/. Raises RequestError where there are none."""
    for place in (directory.expanduser(), directory.expanduser() / "tokens"):
        if list(place.glob("*.offsets.npy")):
            return place
    raise RequestError(f"--tokens {directory} holds no token shards (*.npy with *.offsets.npy)")


def _of_run(model: str) -> Trained:
    """What the run was trained on that MODEL is, or lies in. Raises RequestError."""
    from gristmill.files import read_object

    run, shards, tokenizer, documents = tokens_of(model)
    config = read_object(run / "pretrain" / "manifest.json").get("config", {})
    if isinstance(config, dict) and config.get("base"):
        err.print(
            f"the run went on from {config['base']}: what that model was trained on is not known here",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    questions = read_object(run / "questions" / "manifest.json").get("outputs", {})
    rows: dict[str, Path] = {}
    for output in questions.values():
        for name in ("sft", "preferences"):
            file = run / output["path"] / f"{name}.train.jsonl"
            if file.is_file():
                rows[name] = file
    return Trained(shards, tokenizer, documents if documents.is_dir() else None, rows)


def _named(model: str, tokens: Path, documents: Path | None) -> Trained:
    """Shards that a person names, with the tokenizer of MODEL."""
    from gristmill.data import documents_dir
    from gristmill.formats import resolve

    shards = shards_in(tokens)
    return Trained(shards, resolve(model), documents_dir(documents) if documents else None, {})


def _check_tokenizer(trained: Trained, vocab_size: int) -> None:
    """Other ids would find nothing, or nonsense: raises RequestError where the numbers differ, warns where only the
    files do, as they may once a model was saved again."""
    from gristmill.files import hash_file, read_object

    shards = read_object(trained.tokens / "manifest.json")
    if shards.get("vocab_size", vocab_size) != vocab_size:
        raise RequestError(
            f"the shards in {trained.tokens} were made by a tokenizer of {shards['vocab_size']:,} ids, "
            f"and {trained.tokenizer} has one of {vocab_size:,}"
        )
    file, made_by = trained.tokenizer / "tokenizer.json", shards.get("tokenizer_sha256")
    if made_by and file.is_file() and hash_file(file) != made_by:
        err.print(
            f"{file} is not the file that made the shards; if it has other tokens, nothing will be found",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _nearest(path: Path, text: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file that are nearest in words, as they are, each with its line and score."""
    from gristmill.data.trace import nearest, said

    scores = dict(nearest((said(row) for row in _rows(path)), text, _ROWS))
    found = {
        number: {
            "file": str(path),
            "line": number + 1,
            "score": round(scores[number], 3),
            "row": row,
        }
        for number, row in enumerate(_rows(path) if scores else ())
        if number in scores
    }
    return [found[number] for number in scores]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """One a line; an empty line is an empty row. Raises RequestError, naming the line."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise RequestError(f"{path}, line {number}: a row must be a JSON object")
            yield row


def _record(traced: Traced) -> dict[str, Any]:
    record = asdict(traced)
    for name, document in traced.documents.items():
        known = {**record["documents"][name], "meta": document.details}
        del known["text"]
        record["documents"][name] = known
    return record
