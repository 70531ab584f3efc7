"""The model card: what the model is, what it read, how it was made, how well it does, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gristmill.recipe.evaluation_part import score_rows, score_table
from gristmill.recipe.headline import amount, duration
from gristmill.recipe.look import look
from gristmill.recipe.making_part import shape
from gristmill.report import Html, join, tag

Manifests = Mapping[str, Mapping[str, Any]]


def parts(manifests: Manifests) -> list[tuple[str, list[str]]]:
    """(heading, sentences) of the card; what is not known is left out."""
    return [
        (heading, sentences)
        for heading, sentences in (
            ("The model", _model(manifests)),
            ("What it has read", _data(manifests)),
            ("How it was made", _making(manifests)),
            ("Limits", _limits(manifests)),
        )
        if sentences
    ]


def model_card(title: str, manifests: Manifests) -> str:
    """The card as Markdown, with the front matter that model hubs read: the README.md of an export."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [gristmill]",
        "---",
        "",
    ]
    lines += [f"# {_plain(title)}", ""]
    for heading, sentences in parts(manifests):
        lines += [f"## {heading}", "", *(f"- {_plain(sentence)}" for sentence in sentences), ""]
    rows = score_rows(manifests)
    if rows:
        lines += ["## Evaluation", "", "| Measure | Value |", "|---|---|"]
        lines += [f"| {_plain(what)} | {_plain(value)} |" for what, value in rows]
        lines.append("")
    return "\n".join(lines)


def card_html(title: str, manifests: Manifests) -> Html:
    """The same card for the page."""
    written: list[Html] = [tag("h3", title)]
    for heading, sentences in parts(manifests):
        written += [tag("h4", heading), tag("ul", *(tag("li", sentence) for sentence in sentences))]
    scores = score_table(manifests)
    if scores:
        written += [tag("h4", "Evaluation"), scores]
    return tag("div", join(written), class_="card-model")


def _plain(words: str) -> str:
    """One line of Markdown text in which nothing from outside becomes markup."""
    line = " ".join(words.split())
    for character in "\\`*_[]<>|#":
        line = line.replace(character, "\\" + character)
    return line


def _model(manifests: Manifests) -> list[str]:
    metrics = look(manifests, "pretrain", "metrics") or {}
    sentences = []
    if metrics.get("parameters"):
        sentences.append(f"A decoder-only Transformer with {metrics['parameters']:,} parameters.")
    told = shape(metrics.get("shape"))
    if told:
        sentences.append(f"Shape: {', '.join(told)}.")
    vocabulary = look(manifests, "tokenizer", "metrics", "vocab_size")
    if vocabulary:
        sentences.append(
            f"Tokenizer: byte-level BPE with {vocabulary:,} tokens, learned from the same text."
        )
    base = look(manifests, "pretrain", "config", "base")
    if base:
        sentences.append(f"Trained on from an existing model: {base}.")
    return sentences


def _data(manifests: Manifests) -> list[str]:
    metrics = look(manifests, "data", "metrics") or {}
    sentences = []
    for group in metrics.get("groups", []):
        kept = group.get("kept_documents", 0)
        size = amount(group.get("kept_bytes", 0), "bytes")
        sentences.append(f"{group.get('group', '')}: {kept:,} documents, {size}.")
    heldout = look(metrics, "splits", "heldout")
    if heldout:
        sentences.append(
            f"Held out, never trained on: {heldout.get('documents', 0):,} documents, "
            f"{amount(heldout.get('bytes', 0), 'bytes')}, split by package or file after deduplication."
        )
    if sentences:
        sentences.append(
            "The licences of these texts apply to them; each document's is recorded with it."
        )
    return sentences


def _making(manifests: Manifests) -> list[str]:
    sentences = []
    names = {"pretrain": "Pretraining", "sft": "Supervised fine-tuning", "dpo": "DPO"}
    for stage, name in names.items():
        metrics = look(manifests, stage, "metrics")
        if not metrics:
            continue
        told = []
        if metrics.get("steps"):
            told.append(f"{metrics['steps']:,} steps")
        if metrics.get("tokens"):
            told.append(f"{amount(metrics['tokens'], 'tokens')}")
        seconds = manifests[stage].get("seconds")
        if seconds:
            told.append(duration(seconds))
        seed = manifests[stage].get("seed")
        if seed is not None:
            told.append(f"seed {seed}")
        sentences.append(f"{name}: {', '.join(told)}.")
    return sentences


def _limits(manifests: Manifests) -> list[str]:
    parameters = look(manifests, "pretrain", "metrics", "parameters")
    if not parameters:
        return []
    sentences = [
        "It knows what its corpus says and little else; without retrieval it may invent answers.",
        "Ask it with retrieval, and check the sources that it names, where being right matters.",
        "It has had no safety training beyond its data.",
    ]
    if parameters < 100_000_000:
        sentences.insert(
            0, "It is small: expect short factual answers, not reasoning or fluent prose."
        )
    return sentences
