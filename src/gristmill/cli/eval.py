"""`gristmill eval`: a model's numbers, on the tests of its run or on a text file."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gristmill.cli.console import err, out, show_json
from gristmill.errors import RequestError, nearest

if TYPE_CHECKING:
    from gristmill.formats import Model

_TASKS = {
    "bits": "bits per byte",
    "choices": "the four-way test",
    "preferences": "which of two answers it finds likelier",
}


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run directory or a model.")],
    tasks: Annotated[
        str | None, typer.Option(help="What to measure: bits, choices, preferences. Default: all.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Count bits on this UTF-8 text instead.")
    ] = None,
    context: Annotated[
        int, typer.Option(min=1, help="Tokens a window holds when bits are counted.")
    ] = 256,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output.")
    ] = False,
) -> None:
    """Measure MODEL: bits per byte, the four-way test, preferences.

    A run directory brings its held-out text, tests and index. Any other model needs `--text`.

    Examples: `gristmill eval runs/pyhelp`, `gristmill eval runs/pyhelp --tasks choices --json`,
    `gristmill eval runs/pyhelp/pretrain/model --text README.md`
    """
    from gristmill.formats import Model

    wanted = _wanted(tasks, text)
    run = Path(model).expanduser()
    if text is None and not (run / "run.json").is_file():
        loaded = Model.load(model)  # says what is wrong with MODEL before asking for a text
        raise RequestError(
            f"{loaded.path} is a model without a run, so it brings no tests. Give a run directory, or "
            "a text to measure it on: --text FILE"
        )
    loaded = Model.load(model)
    if text is not None:
        measured = _measure(loaded, {"bits": lambda: _bits_of_text(loaded, text, context)})
    else:
        work = {task: partial(_MEASURE[task], loaded, run, context) for task in wanted}
        measured = _measure(loaded, work)
    result = {"model": str(loaded.path), **measured}
    if as_json:
        show_json(result)
    else:
        _show(result)


def _measure(model: Model, work: dict[str, Callable[[], Any]]) -> dict[str, Any]:
    """Each task's numbers, shown under way as the stages of a run are."""
    from gristmill.recipe.view import Live, Plain

    measured = {}
    with Live(err) if err.is_terminal else Plain(err) as view:
        view.begin({task: _TASKS[task] for task in work})
        for task, measure in work.items():
            view.started(task, str(model.path))
            started = time.perf_counter()
            measured[task] = measure()
            view.finished(task, {"metrics": {}, "seconds": time.perf_counter() - started})
    return measured


def _wanted(tasks: str | None, text: Path | None) -> list[str]:
    named = tuple(_TASKS) if tasks is None else tuple(task.strip() for task in tasks.split(","))
    for task in named:
        if task not in _TASKS:
            raise RequestError(
                f'there is no task "{task}".{nearest(task, _TASKS)} Tasks are {", ".join(_TASKS)}.'
            )
    if text is not None and tasks is not None and named != ("bits",):
        raise RequestError(
            f"--text measures bits only; for {', '.join(t for t in named if t != 'bits')} give a run "
            "directory without --text"
        )
    return list(named)


def _output(run: Path, stage: str, name: str, needed: bool = True) -> Path | None:
    """Where a finished stage of the run keeps an output; None when it did not run and is not needed."""
    from gristmill.files import read_json

    manifest = run / stage / "manifest.json"
    if manifest.is_file():
        return run / read_json(manifest)["outputs"][name]["path"]
    if needed:
        raise RequestError(
            f"the run {run} has no finished {stage} stage; continue it with: "
            f"gristmill run {run / 'recipe.toml'} --out {run}"
        )
    return None


def _bits(model: Model, run: Path, context: int) -> dict[str, Any]:
    from gristmill.evaluate import bits_per_byte, read_documents, total
    from gristmill.files import read_json

    baselines = _output(run, "baselines", "baselines", needed=False)
    numbers = read_json(baselines) if baselines else {}
    tokens = _output(run, "tokens", "tokens")
    assert tokens is not None
    documents = read_documents(tokens, "heldout", model.tokenizer, numbers.get("heldout_bytes"))
    groups = bits_per_byte(model.network, documents, context=context)
    return {
        **_numbers(total(groups)),
        "by_group": {group: bits.per_byte for group, bits in groups.items()},
        **{key: value for key, value in numbers.items() if key.endswith("_bits_per_byte")},
    }


def _bits_of_text(model: Model, file: Path, context: int) -> dict[str, Any]:
    import numpy as np

    from gristmill.evaluate import Document, bits_per_byte, total

    try:
        data = file.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise RequestError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not UTF-8 text: byte {error.start} is not valid") from None
    if not data:
        raise RequestError(f"{file} is empty, so there is nothing to measure")
    tokenizer = model.tokenizer
    start = tokenizer.document_start
    if not start:
        raise RequestError("the tokenizer has no token that begins a text")
    ids = np.array([*start, *tokenizer.encode(text)], np.int64)
    document = Document(str(file), "text", ids, len(data))
    return _numbers(total(bits_per_byte(model.network, [document], context=context)))


def _choices(model: Model, run: Path, context: int) -> dict[str, Any]:
    from gristmill.evaluate import read_items, score_items
    from gristmill.retrieval import Index

    questions = _output(run, "questions", "questions")
    assert questions is not None
    index = _output(run, "index", "index", needed=False)
    items = read_items(questions / "choices.jsonl")
    return score_items(model.network, model.tokenizer, items, Index.open(index) if index else None)


def _preferences(model: Model, run: Path, context: int) -> dict[str, Any]:
    from gristmill.evaluate import accuracies, read_pairs, score_pairs

    questions = _output(run, "questions", "questions")
    assert questions is not None
    pairs = read_pairs(questions / "preferences.heldout.jsonl")
    return accuracies(pairs, score_pairs(model.network, model.tokenizer, pairs))


_MEASURE = {"bits": _bits, "choices": _choices, "preferences": _preferences}


def _numbers(bits: Any) -> dict[str, Any]:
    return {
        "bits_per_byte": bits.per_byte,
        "bits": bits.bits,
        "bytes": bits.bytes,
        "tokens": bits.tokens,
    }


def _show(result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    def table(title: str, *headings: str) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE)
        made.add_column("")
        for heading in headings:
            made.add_column(heading, justify="right")
        return made

    out.print(result["model"], style="bold", soft_wrap=True)
    if "bits" in result:
        bits = result["bits"]
        size = f"{bits['bytes']:,} bytes, {bits['tokens']:,} tokens"
        shown = table(f"Bits per byte ({size})", "bits per byte")
        shown.add_row("this model", f"{bits['bits_per_byte']:.4f}")
        for group, value in bits.get("by_group", {}).items():
            shown.add_row(f"  on {group}", f"{value:.4f}")
        for key, name in (
            ("xz_bits_per_byte", "xz -9e"),
            ("ngram5_bits_per_byte", "5-gram"),
            ("xz_context_bits_per_byte", "xz -9e after the training text"),
        ):
            if key in bits:
                shown.add_row(name, f"{bits[key]:.4f}")
        out.print(shown)
    if "choices" in result:
        shown = table("Which description belongs to this name? (chance 25%)", "accuracy", "n")
        for mode, splits in result["choices"].items():
            for split, score in splits.items():
                spread = f" ± {100 * score['stderr']:.1f}" if "stderr" in score else ""
                name = f"{mode.replace('_', ' ')}, {split.replace('heldout', 'held out')}"
                shown.add_row(name, f"{100 * score['accuracy']:.1f}%{spread}", f"{score['n']}")
        out.print(shown)
    if "preferences" in result:
        shown = table("The right answer over a sibling's (chance 50%)", "accuracy", "n")
        for split in ("seen", "heldout"):
            score = result["preferences"]
            if split in score:
                name = split.replace("heldout", "held out")
                shown.add_row(name, f"{100 * score[split]:.1f}%", f"{score[f'{split}_n']}")
        out.print(shown)
