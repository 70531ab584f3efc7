"""Numbers as people read them, and the one line that says what a stage made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def duration(seconds: float) -> str:
    """'0.4 s', '12 s', '3 min 05 s', '2 h 10 min', '3.5 days', '1,200 years'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    days = seconds / 86_400
    return f"{days:,.3g} days" if days < 730 else f"{days / 365.25:,.0f} years"


def amount(value: float, unit: str = "") -> str:
    """'12.3 MB' for bytes (powers of ten), '1.2M tokens' for anything else."""
    steps = (("T", 1e12), ("G" if unit == "bytes" else "B", 1e9), ("M", 1e6), ("k", 1e3))
    if unit == "bytes":
        for name, size in steps:
            if value >= size:
                return f"{value / size:.3g} {name}B"
        return f"{value:,.0f} bytes"
    for name, size in steps[:3]:
        if value >= size:
            return f"{value / size:.3g}{name} {unit}".rstrip()
    return f"{value:,.0f} {unit}".rstrip()


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def headline(stage: str, metrics: Mapping[str, Any]) -> str:
    """The few numbers of a stage that say the most; '' when it has none."""
    say = _HEADLINES.get(stage)
    if say is None:
        return ""
    try:
        return say(metrics)
    except (KeyError, TypeError, IndexError, ValueError):
        return ""  # a stage that measured less than usual still has its time and sizes


def _data(m: Mapping[str, Any]) -> str:
    kept = m["splits"]["train"]["documents"] + m["splits"]["heldout"]["documents"]
    size = m["splits"]["train"]["bytes"] + m["splits"]["heldout"]["bytes"]
    dropped = sum(reason["documents"] for reason in m["drop_reasons"].values())
    return f"{amount(kept, 'documents')}, {amount(size, 'bytes')} kept, {dropped:,} dropped"


def _tokens(m: Mapping[str, Any]) -> str:
    train = sum(group["tokens"] for group in m["train"].values())
    heldout = sum(group["tokens"] for group in m["heldout"].values())
    return f"{amount(train, 'tokens')} to train on, {amount(heldout)} held out"


def _training(m: Mapping[str, Any]) -> str:
    parts = [f"{amount(m['parameters'], 'parameters')}"] if "parameters" in m else []
    if "steps" in m:
        parts.append(f"{m['steps']:,} steps")
    last: dict[str, Any] = {}
    for row in m.get("history", []):
        last |= row
    for key, words in (
        ("heldout_bits_per_byte", "held-out bits per byte"),
        ("bits_per_byte", "bits per byte"),
        ("heldout_accuracy", "held-out accuracy"),
        ("accuracy", "accuracy"),
        ("loss", "loss"),
    ):
        value = m.get(key, last.get(key))
        if isinstance(value, int | float):
            parts.append(f"{words} {value:.3f}")
            break
    return ", ".join(parts)


def last_measured(numbers: Mapping[str, Any]) -> str:
    """Of numbers by model, the key of the model that the line made last; "" when there is none."""
    return next((model for model in ("dpo", "sft", "base") if model in numbers), "")


def _evaluate(m: Mapping[str, Any]) -> str:
    bits = m["bits_per_byte"]
    last = last_measured(bits)
    parts = [f"bits per byte {bits['base']:.3f} (base model)"]
    if last != "base":
        parts.append(f"{bits[last]:.3f} (after {last.upper()})")
    choices = m.get("choices", {})
    last = last_measured(choices)
    for how in ("closed_book", "retrieval"):
        seen = choices.get(last, {}).get(how, {}).get("seen", {}).get("accuracy")
        if seen is not None:
            parts.append(f"{how.replace('_', ' ')} {percent(seen)}")
    written = m.get("written", {}).get("seen", {}).get("own_words")
    if written is not None:
        parts.append(f"written with sources {percent(written)}")
    return ", ".join(parts)


_HEADLINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "data": _data,
    "facts": lambda m: f"{m['facts']:,} facts",
    "tokenizer": lambda m: (
        f"{m['vocab_size']:,} tokens, {m['bytes_per_token']['heldout']:.2f} bytes per token"
    ),
    "questions": lambda m: (
        f"{amount(m['sft_train'], 'answers')}, {amount(m['preferences_train'], 'preference pairs')}"
    ),
    "tokens": _tokens,
    "baselines": lambda m: (
        f"bits per byte: xz {m['xz_bits_per_byte']:.3f}, 5-gram {m['ngram5_bits_per_byte']:.3f}, "
        f"xz with context {m['xz_context_bits_per_byte']:.3f}"
    ),
    "pretrain": _training,
    "sft": _training,
    "dpo": _training,
    "index": lambda m: amount(m["passages"], "passages"),
    "quantize": lambda m: (
        f"{amount(m['bytes_before'], 'bytes')} as 8 bits: {amount(m['bytes_after'], 'bytes')}"
    ),
    "evaluate": _evaluate,
}
