"""The run's page: the `report` stage, which lays out what the manifests say as one HTML file.

Nothing is measured here. A stage that has not run, or that measured less, leaves its part out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError
from gristmill.files import read_json, write_text
from gristmill.recipe import evaluation_part, line_part, making_part
from gristmill.recipe.card import card_html, model_card
from gristmill.recipe.evaluation_part import BITS
from gristmill.recipe.headline import amount, duration, last_measured, percent
from gristmill.recipe.line import LINE
from gristmill.recipe.look import look
from gristmill.recipe.manifest import read_manifests
from gristmill.report import Html, Section, figures, page
from gristmill.stage import Progress, Result, StageConfig, quiet

Manifests = Mapping[str, Mapping[str, Any]]


class ReportConfig(StageConfig):
    """title: the page's heading ("auto": the recipe's)."""

    title: str = "auto"


def run(
    config: ReportConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """inputs: stage -> its manifest.json. Writes report.html and model_card.md."""
    manifests = {stage: read_json(path) for stage, path in inputs.items()}
    title = _title(config.title, manifests)
    write_text(out_dir / "report.html", compose(title, manifests))
    write_text(out_dir / "model_card.md", model_card(title, manifests))
    progress(1, 1, "pages")
    return Result(
        {"report": out_dir / "report.html", "model_card": out_dir / "model_card.md"},
        {"stages": sorted(manifests)},
    )


def rebuild(run_dir: Path) -> Path:
    """Write RUN/report.html from the stages that are finished, also of a run that stopped early."""
    manifests = read_manifests(run_dir)
    if not manifests:
        raise RequestError(f"{run_dir} has no finished stage to report on")
    title = look(manifests, "report", "config", "title")
    if title is None:
        try:
            title = tomllib.loads((run_dir / "recipe.toml").read_text(encoding="utf-8"))["title"]
        except (OSError, ValueError, KeyError):
            title = run_dir.resolve().name
    manifests.pop("report", None)  # the page as it was when the stage ran
    path = run_dir / "report.html"
    write_text(path, compose(_title(str(title), manifests), manifests))
    return path


def _title(title: str, manifests: Manifests) -> str:
    return title if title != "auto" else "A run of gristmill"


def compose(title: str, manifests: Manifests) -> str:
    """The page of a run as HTML. manifests: stage -> manifest, of whatever stages are finished."""
    ordered = {stage: manifests[stage] for stage in LINE if stage in manifests}
    ordered |= {stage: manifests[stage] for stage in sorted(manifests) if stage not in ordered}
    sections = [
        line_part.line(ordered),
        making_part.corpus(ordered),
        making_part.tokenizer(ordered),
        making_part.questions(ordered),
        making_part.training(ordered),
        evaluation_part.evaluation(ordered),
        evaluation_part.next_tokens(ordered),
        evaluation_part.conversations(ordered),
        _card(title, ordered),
    ]
    return page(
        title,
        [section for section in sections if section is not None and section.body],
        subtitle=_subtitle(ordered),
        header=_key_numbers(ordered),
    )


def _card(title: str, manifests: Manifests) -> Section | None:
    if not any(stage in manifests for stage in ("pretrain", "sft", "dpo")):
        return None
    lead = "The same text is in report/model_card.md."
    return Section("Model card", card_html(title, manifests), lead)


def _subtitle(manifests: Manifests) -> str:
    if not manifests:
        return "Nothing has run yet."
    latest = max(str(m.get("finished", "")) for m in manifests.values())
    seconds = sum(m.get("seconds", 0.0) for m in manifests.values())
    missing = [stage for stage in LINE if stage not in manifests and stage != "report"]
    parts = [
        f"Made by gristmill in {duration(seconds)}",
        f"finished {latest[:16].replace('T', ' ')} UTC",
    ]
    if missing:
        parts.append(f"not run: {', '.join(missing)}")
    return " · ".join(parts)


def _key_numbers(manifests: Manifests) -> Html:
    """The numbers one looks for first."""
    items: list[tuple[str, str, str]] = []
    parameters = look(manifests, "pretrain", "metrics", "parameters")
    if parameters is not None:
        tokens = look(manifests, "pretrain", "metrics", "tokens")
        trained = f"trained on {amount(tokens, 'tokens')}" if tokens else ""
        items.append(("Parameters", amount(parameters), trained))
    bits = look(manifests, "evaluate", "metrics", "bits_per_byte") or {}
    if bits.get("base") is not None:
        rival = bits.get("xz_context")
        against = f"xz with the training text: {rival:.3f}" if rival is not None else ""
        items.append(("Bits per byte, base model", f"{bits['base']:.3f}", against))
    last = last_measured(bits)
    if last not in ("", "base"):
        label = f"Bits per byte, {BITS[last][0]}"
        items.append((label, f"{bits[last]:.3f}", "the model that chat and serve use"))
    choices = look(manifests, "evaluate", "metrics", "choices") or {}
    last = last_measured(choices)
    for how, label in (("closed_book", "Closed book"), ("retrieval", "With retrieval")):
        seen = look(choices, last, how, "seen", "accuracy")
        unseen = look(choices, last, how, "heldout", "accuracy")
        if seen is not None:
            other = (
                f"; functions never asked about: {percent(unseen)}" if unseen is not None else ""
            )
            items.append((f"{label}, 4 choices", percent(seen), f"{BITS[last][0]}{other}"))
    if manifests:
        memory = max(m.get("peak_memory_bytes", 0) for m in manifests.values())
        seconds = sum(m.get("seconds", 0.0) for m in manifests.values())
        items.append(("Time", duration(seconds), f"peak memory {amount(memory, 'bytes')}"))
    return figures(items)
