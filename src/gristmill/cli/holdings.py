"""What a model file or directory holds: its network, its tokenizer, its tensors."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from gristmill.cli.console import out

TENSORS_SHOWN = 12


def holdings(path: Path) -> dict[str, Any]:
    """A JSON-able description; no weight is read. Raises RequestError for what is damaged."""
    from gristmill.formats import describe, load_config

    config = load_config(path)
    described = describe(path)
    return {
        "path": str(path),
        "format": described.format,
        "family": config.family,
        "parameters": config.num_parameters,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "context": config.max_seq_len,
        "vocabulary": config.vocab_size,
        "bytes": sum(tensor.nbytes for tensor in described.tensors),
        "metadata": described.metadata,
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type, "bytes": t.nbytes}
            for t in described.tensors
        ],
    }


def _quantization(metadata: dict[str, Any]) -> str:
    """Of a directory, in words; "" where nothing is quantized or config.json does not say how."""
    told = metadata.get("quantization_config")
    if not isinstance(told, dict):
        return ""
    groups = told.get("config_groups")
    first = next(iter(groups.values()), {}) if isinstance(groups, dict) else {}
    grid = (first.get("weights") if isinstance(first, dict) else None) or told
    bits, group = grid.get("num_bits", grid.get("bits")), grid.get("group_size")
    scales = (
        f"groups of {group}" if isinstance(group, int) and group > 0 else "a scale for each row"
    )
    return f"{told.get('quant_method')}, {bits} bits, {scales}"


def show(found: dict[str, Any]) -> None:
    """As tables for people: the network, the metadata, and the tensors by kind."""
    from rich import box
    from rich.table import Table

    from gristmill.recipe.headline import amount

    title = f"{found['path']}: {found['format']}, {found['family']}"
    out.print(title, markup=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column()
    table.add_column()
    heads = f"{found['heads']} query, {found['kv_heads']} key-value"
    for name, value in (
        ("parameters", amount(found["parameters"])),
        ("layers", f"{found['layers']}, {found['hidden_size']} wide"),
        ("heads", heads),
        ("context", f"{found['context']:,} tokens"),
        ("vocabulary", f"{found['vocabulary']:,} tokens"),
        ("weights", f"{found['bytes'] / 1e6:,.1f} MB: {_types(found['tensors'])}"),
        ("quantized", _quantization(found["metadata"])),
    ):
        if value:
            table.add_row(name, value)
    out.print(table)
    if found["metadata"]:
        table = Table(title="Metadata", title_justify="left", box=box.SIMPLE, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(max_width=60, no_wrap=True, overflow="ellipsis")
        for key, value in found["metadata"].items():
            table.add_row(key, _plain(value))
        out.print(table)
    table = Table(title="Tensors", title_justify="left", box=box.SIMPLE)
    for heading in ("name", "shape", "type"):
        table.add_column(heading, no_wrap=heading == "name")
    tensors = found["tensors"]
    for tensor in tensors[:TENSORS_SHOWN]:
        table.add_row(tensor["name"], " × ".join(map(str, tensor["shape"])), tensor["type"])
    out.print(table)
    if len(tensors) > TENSORS_SHOWN:
        out.print(f"and {len(tensors) - TENSORS_SHOWN} more; --json lists all {len(tensors)}")


def _types(tensors: list[dict[str, Any]]) -> str:
    counts = Counter(tensor["type"] for tensor in tensors)
    return ", ".join(f"{count} × {kind}" for kind, count in counts.most_common())


def _plain(value: Any) -> str:
    from rich.markup import escape

    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
