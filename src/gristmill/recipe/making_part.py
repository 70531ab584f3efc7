"""The page's parts on what was made: corpus, tokenizer, questions, training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.recipe.headline import amount, percent
from gristmill.recipe.look import look
from gristmill.report import (
    Bar,
    Html,
    Section,
    Series,
    bar_chart,
    code,
    folded,
    join,
    line_chart,
    says,
    table,
    tag,
)
from gristmill.scaling import predicted_against_actual

Manifests = Mapping[str, Mapping[str, Any]]

_TRAINED = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "dpo": "Preference optimization (DPO)",
}
_FIRST_CHARTS = ("bits_per_byte", "loss", "accuracy", "reward_accuracy", "reward_margin")
_NO_CHART = {"step", "lr", "grad_norm", "tokens", "tokens_per_s", "epoch"}


def corpus(manifests: Manifests) -> Section | None:
    metrics = look(manifests, "data", "metrics")
    if not metrics:
        return None
    groups = [
        (
            group.get("group", ""),
            group.get("files", group.get("documents", 0)),
            amount(group.get("bytes", 0), "bytes"),
            group.get("kept_documents", 0),
            amount(group.get("kept_bytes", 0), "bytes"),
            group.get("packages") or "–",
        )
        for group in metrics.get("groups", [])
    ]
    splits = [
        (name, split.get("documents", 0), amount(split.get("bytes", 0), "bytes"))
        for name, split in metrics.get("splits", {}).items()
    ]
    reasons = sorted(
        metrics.get("drop_reasons", {}).items(), key=lambda item: (-item[1]["documents"], item[0])
    )
    dropped = [
        Bar(
            name.replace("_", " "),
            float(reason["documents"]),
            colour=4,
            note=f"({amount(reason['bytes'], 'bytes')})" if reason.get("bytes") else "",
        )
        for name, reason in reasons
    ]
    removed = [f"{count:,} {kind}" for kind, count in metrics.get("removed", {}).items() if count]
    samples = metrics.get("samples", {})
    body = join(
        (
            table(("Group", "Found", "Size", "Documents kept", "Size kept", "Packages"), groups),
            tag(
                "div",
                tag("div", table(("Split", "Documents", "Size"), splits), _removed(removed)),
                bar_chart(dropped, title="Dropped documents by reason", form="{:,.0f}"),
                class_="grid",
            ),
            _documents("Samples of what was kept", samples.get("kept", [])),
            _documents("Samples of what was dropped, and why", samples.get("dropped", [])),
        )
    )
    lead = (
        "What the model has read. What was dropped stays on disk with its reason, in "
        "data/documents/dropped.parquet."
    )
    return Section("Corpus", body, lead)


def _removed(removed: Sequence[str]) -> Html:
    if not removed:
        return Html("")
    return tag("p", f"Removed from the text: {', '.join(removed)}.", class_="note")


def _documents(title: str, documents: Sequence[Mapping[str, Any]]) -> Html:
    if not documents:
        return Html("")
    shown = [
        folded(
            join(
                (
                    tag("code", document.get("source", "")),
                    tag(
                        "span",
                        f"  {str(document.get('reason', '')).replace('_', ' ')}",
                        class_="note",
                    ),
                )
            ),
            code(str(document.get("text", ""))),
            opened=number == 0,
        )
        for number, document in enumerate(documents)
    ]
    return join((tag("h3", title), *shown))


def tokenizer(manifests: Manifests) -> Section | None:
    metrics = look(manifests, "tokenizer", "metrics")
    if not metrics:
        return None
    rate = metrics.get("bytes_per_token", {})
    bars = []
    if rate.get("heldout") is not None:
        bars.append(Bar("this tokenizer", rate["heldout"], strong=True, group="Held-out text"))
    bars += [
        Bar(name, value, colour=6, group="Held-out text")
        for name, value in sorted(metrics.get("peers", {}).items())
        if isinstance(value, int | float)
    ]
    bars += [
        Bar(name, value, colour=2, group="By group")
        for name, value in rate.get("by_group", {}).items()
        if isinstance(value, int | float)
    ]
    facts = [("Vocabulary", metrics.get("vocab_size", "–"))]
    if "unused_tokens" in metrics:
        unused = metrics["unused_tokens"]
        facts.append(
            (
                "Tokens that the held-out text never uses",
                unused if isinstance(unused, int) else len(unused),
            )
        )
    longest = [tag("code", visible(str(token))) for token in metrics.get("longest", [])[:24]]
    body = join(
        (
            tag(
                "div",
                bar_chart(bars, title="Bytes per token (more is better)", form="{:.2f}"),
                tag(
                    "div",
                    table(("", ""), facts),
                    tag("p", "Longest tokens: ", join(longest, "  "), class_="note")
                    if longest
                    else "",
                ),
                class_="grid",
            ),
        )
    )
    lead = "How text becomes numbers: byte-level BPE learned from the corpus. Compression on held-out text."
    return Section("Tokenizer", body, lead)


def questions(manifests: Manifests) -> Section | None:
    metrics = look(manifests, "questions", "metrics")
    if not metrics:
        return None
    names = {
        "sft_train": "Conversations to train on",
        "sft_heldout": "Conversations held out",
        "preferences_train": "Preference pairs to train on",
        "preferences_heldout": "Preference pairs held out",
        "choices_seen": "Test questions, functions seen in training",
        "choices_heldout": "Test questions, functions never asked about",
    }
    rows = [(words, metrics[name]) for name, words in names.items() if name in metrics]
    body = join(
        (
            tag(
                "div",
                tag("div", table(("Derived from the documents", "Rows"), rows)),
                tag(
                    "div",
                    _counts("Facts by kind", look(manifests, "facts", "metrics", "by_kind"), 2),
                    _counts("Training conversations by form", metrics.get("forms"), 3),
                ),
                class_="grid",
            ),
            tag("h3", "Samples") if metrics.get("samples") else "",
            *(_conversation(sample) for sample in metrics.get("samples", [])[:8]),
        )
    )
    lead = "Questions, answers and preferences, derived from docstrings, signatures, examples and headings."
    return Section("Questions", body, lead)


def _counts(title: str, counts: Mapping[str, int] | None, colour: int) -> Html:
    ordered = sorted((counts or {}).items(), key=lambda item: (-item[1], item[0]))
    bars = [Bar(name, float(count), colour=colour) for name, count in ordered]
    return bar_chart(bars, title=title, form="{:,.0f}")


def _conversation(sample: Mapping[str, Any]) -> Html:
    messages = sample.get("messages") or [*sample.get("prompt", []), *sample.get("chosen", [])]
    if not messages:
        return Html("")
    summary = join(
        (
            tag("b", str(sample.get("form", "sample"))),
            "  ",
            _cut(_question(messages), 90),
        )
    )
    turns = [says(str(m.get("role", "")), str(m.get("content", "")), limit=1500) for m in messages]
    for rejected in sample.get("rejected", []):
        turns.append(says("assistant", str(rejected.get("content", "")), note="rejected"))
    return folded(summary, join(turns))


def _question(messages: Sequence[Mapping[str, Any]]) -> str:
    """The last thing that the user says, without the passages that stand before it."""
    asked = [str(m.get("content", "")) for m in messages if m.get("role") == "user"]
    lines = asked[-1].strip().splitlines() if asked else []
    return lines[-1] if lines else ""


def _cut(words: str, limit: int) -> str:
    line = " ".join(words.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def training(manifests: Manifests) -> Section | None:
    parts = []
    for stage, title in _TRAINED.items():
        metrics = look(manifests, stage, "metrics")
        if metrics:
            parts += [
                tag("h3", title),
                _numbers(stage, metrics),
                *(tag("p", str(said), class_="note") for said in metrics.get("warnings", [])),
                _curves(metrics.get("history", [])),
                *(
                    folded(f"step {one['step']}: {one['prompt']}", code(one["continuation"]))
                    for one in metrics.get("samples", [])
                ),
            ]
            if foreseen := look(manifests, stage, "prediction"):
                parts.append(predicted_against_actual(foreseen, metrics))
    if not parts:
        return None
    lead = "Solid: on the text trained on. Dashed: on held-out text, measured during training."
    return Section("Training", join(parts), lead)


def _numbers(stage: str, metrics: Mapping[str, Any]) -> Html:
    """What was trained, for how long, and how it ended, in one line."""
    said = []
    if metrics.get("parameters") and stage == "pretrain":
        said.append(f"{metrics['parameters']:,} parameters")
        said += shape(metrics.get("shape"))
    for key in ("steps", "tokens", "target_tokens", "examples", "pairs"):
        if metrics.get(key):
            said.append(f"{metrics[key]:,} {key.replace('_', ' ')}")
    for key, value in metrics.items():
        if isinstance(value, float) and key != "epochs":
            words = key.replace("heldout", "held-out").replace("_", " ")
            said.append(f"{words} {percent(value) if 'accuracy' in key else f'{value:.4g}'}")
    return tag("p", " · ".join(said), class_="note")


def shape(values: Any) -> list[str]:
    """The network's shape in words, of what is known of it."""
    names = {
        "num_layers": "{} layers",
        "hidden_size": "hidden size {}",
        "num_heads": "{} heads",
        "num_kv_heads": "{} key-value heads",
        "intermediate_size": "feed-forward size {}",
        "vocab_size": "vocabulary {:,}",
    }
    return [words.format(found) for key, words in names.items() if (found := look(values, key))]


def _curves(history: Sequence[Mapping[str, Any]]) -> Html:
    """A chart for each metric, the training value and its held-out twin together."""
    names = list(
        dict.fromkeys(
            key.removeprefix("heldout_")
            for row in history
            for key, value in row.items()
            if key not in _NO_CHART and isinstance(value, int | float)
        )
    )
    names.sort(key=lambda name: _FIRST_CHARTS.index(name) if name in _FIRST_CHARTS else 99)
    whole = [name for name in names if "/" not in name]
    charts = []
    for name in whole[:4]:
        series = [
            Series(words, points, colour, dashed)
            for key, words, colour, dashed in (
                (name, "training", 1, False),
                (f"heldout_{name}", "held out", 2, True),
            )
            if (points := [(row["step"], row[key]) for row in history if key in row])
        ]
        charts.append(line_chart(series, x="step", y=name.replace("_", " ")))
    groups = [name for name in names if name.startswith("bits_per_byte/")]
    if groups:
        lines = [
            Series(
                name.partition("/")[2],
                [(row["step"], row[key]) for row in history if key in row],
                at + 1,
                False,
            )
            for at, name in enumerate(groups[:4])
            for key in (f"heldout_{name}",)
        ]
        charts.append(line_chart(lines, x="step", y="held-out bits per byte by group"))
    return tag("div", *charts, class_="grid") if charts else Html("")


def visible(token: str) -> str:
    """A token's text with its white space shown."""
    return token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
