"""The dataset card: README.md of a documents directory, in the form that dataset hubs read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dataset_card(numbers: Mapping[str, Any], settings: Mapping[str, Any], *, name: str) -> str:
    """Markdown with a YAML head. `numbers` are `survey(...)`'s, `settings` what differs from the defaults."""
    found, kept = numbers["found"], numbers["kept"]
    lines = [
        "---",
        *_listed("language", [code for code in numbers["languages"] if len(code) in (2, 3)]),
        *_listed("license", _license(numbers["licenses"])),
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: train.parquet",
        "  - split: heldout",
        "    path: heldout.parquet",
        "---",
        "",
        f"# {name}",
        "",
        f"{kept['documents']:,} documents ({kept['bytes']:,} bytes of text) of {found['documents']:,} that were "
        f"found ({found['bytes']:,} bytes). What was left out is in `dropped.parquet`, each document with its "
        "reason (`drop_reason`) and what was measured (`meta`).",
        "",
        "Columns: `id, text, source, url, license, date, meta, kind, group, package, drop_reason, split`.",
        "",
        "## Sources",
        "",
        "| source | found | kept | bytes kept | share |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {_cell(s['source'])} | {s['found']['documents']:,} | {s['kept']['documents']:,} | "
            f"{s['kept']['bytes']:,} | {s['share_after']:.1%} |"
            for s in numbers["sources"]
        ),
        "",
        "## Left out",
        "",
        "| reason | documents | bytes |",
        "|---|---:|---:|",
        *(
            f"| {reason} | {amount['documents']:,} | {amount['bytes']:,} |"
            for reason, amount in numbers["reasons"].items()
        ),
        "",
        "## Licences of what was kept",
        "",
        "| licence | documents | bytes |",
        "|---|---:|---:|",
        *(
            f"| {_cell(name)} | {amount['documents']:,} | {amount['bytes']:,} |"
            for name, amount in numbers["licenses"].items()
        ),
        "",
    ]
    if numbers["removed"]:
        counted = ", ".join(f"{count:,} {kind}" for kind, count in numbers["removed"].items())
        lines += ["## Private data", "", f"Taken out of the kept text: {counted}.", ""]
    lines += ["## Settings", "", *(f"- `{key}`: {value}" for key, value in settings.items()), ""]
    return "\n".join(lines)


def _license(licenses: Mapping[str, Any]) -> list[str]:
    """The one licence of everything, else "other": hubs have a field for one."""
    return (
        [next(iter(licenses)).lower()]
        if len(licenses) == 1 and "not stated" not in licenses
        else ["other"]
    )


def _listed(key: str, values: list[str]) -> list[str]:
    return [f"{key}:", *(f"- {value}" for value in values)] if values else []


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
