"""`gristmill tokenizer`: train one, use one, and measure how well it compresses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError

if TYPE_CHECKING:
    from gristmill.tokenizer import Tokenizer

app = typer.Typer(no_args_is_help=True, help="Train, use and measure tokenizers.")

_Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
_Which = Annotated[
    Path, typer.Argument(metavar="TOKENIZER", help="A tokenizer, model or run directory.")
]
_Peers = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        metavar="NAME=FILE",
        help="Compare with vocab.bpe, NAME.tiktoken or tokenizer.json.",
    ),
]


@app.command(epilog="Example: `gristmill tokenizer train runs/pyhelp -o mytokenizer`")
def train(
    documents: Annotated[Path, typer.Argument(help="Documents, build or run directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where tokenizer/ is written.")],
    vocab_size: Annotated[
        int, typer.Option(min=320, max=1_000_000, help="Tokens, control tokens included.")
    ] = 8192,
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to learn from.")] = 20_000_000,
    seed: Annotated[int, typer.Option(help="Chooses which documents are sampled.")] = 0,
    peers: _Peers = None,
    as_json: _Json = False,
) -> None:
    """Learn a byte-level BPE vocabulary (Llama 3's split pattern) from DOCUMENTS.

    Writes OUTPUT/tokenizer with tokenizer.json, which tokenizers and transformers load.
    """
    from gristmill.data import documents_dir
    from gristmill.tokenizer import TokenizerConfig
    from gristmill.tokenizer.training import run

    if output.exists() and not output.is_dir():
        raise RequestError(f"{output} is a file; -o names a directory")
    config = TokenizerConfig(
        vocab_size=vocab_size, max_bytes=max_bytes, seed=seed, peers=_named(peers)
    )
    with err.status("learning merges"):
        result = run(config, {"documents": documents_dir(documents)}, output)
    path = result.outputs["tokenizer"]
    if as_json:
        show_json({"tokenizer": str(path), **result.metrics})
        return
    _show(result.metrics)
    out.print(f"\nTokenizer: {path}", soft_wrap=True)


@app.command(epilog='Example: `gristmill tokenizer encode runs/pyhelp "import os"`')
def encode(
    tokenizer: _Which,
    text: Annotated[str, typer.Argument(help='The text; "-" reads standard input.')],
    as_json: _Json = False,
) -> None:
    """Print the ids of TEXT. Control tokens in it are read as plain text."""
    loaded = _load(tokenizer)
    ids = loaded.encode(_stdin() if text == "-" else text)
    if as_json:
        show_json({"ids": ids, "tokens": [_text(loaded, id) for id in ids]})
    else:
        typer.echo(" ".join(map(str, ids)))


@app.command(
    epilog="Examples: `gristmill tokenizer decode runs/pyhelp 313 267`, "
    "`gristmill tokenizer encode runs/pyhelp 'import os' | gristmill tokenizer decode runs/pyhelp -`"
)
def decode(
    tokenizer: _Which,
    given: Annotated[
        list[str], typer.Argument(metavar="IDS", help='Token ids; "-" reads standard input.')
    ],
    as_json: _Json = False,
) -> None:
    """Print the text of IDS, control tokens included."""
    loaded = _load(tokenizer)
    ids = [_id(word) for word in (_stdin().split() if given == ["-"] else given)]
    for id in ids:
        if not 0 <= id < loaded.vocab_size:
            raise RequestError(f"there is no token {id}: ids go from 0 to {loaded.vocab_size - 1}")
    text = loaded.decode(ids, skip_special=False)
    if as_json:
        show_json({"text": text, "tokens": [_text(loaded, id) for id in ids]})
    else:
        typer.echo(text)


@app.command(epilog="Example: `gristmill tokenizer stats runs/pyhelp --peer gpt2=vocab.bpe`")
def stats(
    tokenizer: _Which,
    documents: Annotated[
        Path | None,
        typer.Argument(help="Measure on its held-out documents; by default TOKENIZER's own run."),
    ] = None,
    peers: _Peers = None,
    as_json: _Json = False,
) -> None:
    """Show bytes per token on held-out documents, beside other tokenizers where given."""
    from gristmill.data import documents_dir
    from gristmill.tokenizer.ranks import load_peer
    from gristmill.tokenizer.training import measure, read_groups

    loaded = _load(tokenizer)
    others = {name: load_peer(Path(path).expanduser()) for name, path in _named(peers).items()}
    groups = read_groups(documents_dir(documents or tokenizer), "heldout")
    metrics = {"vocab_size": loaded.vocab_size, **measure(loaded, groups, others)}
    if as_json:
        show_json(metrics)
    else:
        _show(metrics)


def _load(path: Path) -> Tokenizer:
    """The tokenizer in a directory, or that of the run or model there."""
    from gristmill.tokenizer import Tokenizer

    path = path.expanduser()
    for inside in ("", "tokenizer", "tokenizer/tokenizer"):
        if (path / inside / "tokenizer.json").is_file():
            return Tokenizer.load(path / inside)
    return Tokenizer.load(path)


def _id(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise RequestError(
            f"{word!r:.40} is no token id: give whole numbers with spaces between them"
        ) from None


def _named(pairs: list[str] | None) -> dict[str, str]:
    named = {}
    for pair in pairs or []:
        name, equals, file = pair.partition("=")
        if not (name and equals and file):
            raise RequestError(f"--peer takes NAME=FILE, e.g. gpt2=vocab.bpe, not {pair!r}")
        named[name] = file
    return named


def _text(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.token_bytes(id).decode("utf-8", errors="replace")


def _stdin() -> str:
    import sys

    return sys.stdin.read()


def _show(metrics: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title="Bytes per token, held out", title_justify="left", box=box.SIMPLE)
    table.add_column("text")
    table.add_column("this one", justify="right")
    peers = metrics.get("peers", {})
    for name in peers:
        table.add_column(name, justify="right")
    rates = metrics["bytes_per_token"]
    table.add_row(
        "all",
        _rate(rates["heldout"]),
        *(_rate(value) for value in peers.values()),
    )
    for group, rate in rates["by_group"].items():
        table.add_row(group, _rate(rate), *("" for _ in peers))
    out.print(table)
    out.print(
        f"{metrics['vocab_size']:,} tokens; {metrics['unused_tokens']:,} of them do not occur in the "
        f"{metrics['heldout_bytes']:,} held-out bytes"
    )


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
