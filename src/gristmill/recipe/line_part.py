"""The page's first part: the line as a diagram, and every stage with its settings and lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gristmill.recipe.headline import amount, duration, headline
from gristmill.recipe.line import LINE, parents
from gristmill.report import Box, Html, Section, diagram, folded, join, table, tag


def line(manifests: Mapping[str, Mapping[str, Any]]) -> Section | None:
    """The stages that ran, and (faint) those that did not."""
    if not manifests:
        return None
    total = sum(m.get("seconds", 0.0) for m in manifests.values()) or 1.0
    boxes, above = [], {}
    for stage in [*LINE, *(s for s in manifests if s not in LINE)]:
        manifest = manifests.get(stage)
        above[stage] = (
            parents(LINE, stage)
            if stage in LINE
            else sorted({entry["stage"] for entry in (manifest or {}).get("inputs", {}).values()})
        )
        boxes.append(_box(stage, manifest, total))
    picture = diagram(boxes, above, label="The stages of the run and what each is made from")
    rows = [
        (
            tag("a", stage, href=f"#stage-{stage}"),
            headline(stage, manifest.get("metrics", {}))
            or (LINE[stage].does if stage in LINE else ""),
            duration(manifest.get("seconds", 0.0)),
            amount(manifest.get("peak_memory_bytes", 0), "bytes"),
            amount(_bytes(manifest), "bytes") if _bytes(manifest) else "–",
        )
        for stage, manifest in manifests.items()
    ]
    body = join(
        (
            picture,
            table(("Stage", "What it made", "Time", "Peak memory", "On disk"), rows),
            tag("h3", "Settings and lineage"),
            tag(
                "p",
                "Every stage records the settings, the content hash of each input and the stage that made "
                "it. Following the inputs leads from any model back to the documents.",
                class_="note",
            ),
            *(_details(stage, manifest) for stage, manifest in manifests.items()),
        )
    )
    return Section(
        "The line",
        body,
        "From raw text to a measured assistant. A bar is a stage's share of the time.",
    )


def _box(stage: str, manifest: Mapping[str, Any] | None, total: float) -> Box:
    if manifest is None:
        said = "this page" if stage == "report" else "not run"
        return Box(stage, [said], faint=stage != "report", hint=LINE[stage].does)
    seconds = manifest.get("seconds", 0.0)
    does = LINE[stage].does if stage in LINE else stage
    return Box(
        stage,
        [duration(seconds), amount(_bytes(manifest), "bytes") if _bytes(manifest) else ""],
        share=seconds / total,
        href=f"#stage-{stage}",
        hint=f"{stage}: {does}. {headline(stage, manifest.get('metrics', {}))}",
    )


def _bytes(manifest: Mapping[str, Any]) -> int:
    return sum(output.get("bytes", 0) for output in manifest.get("outputs", {}).values())


def _details(stage: str, manifest: Mapping[str, Any]) -> Html:
    settings = [
        (tag("code", key), tag("code", json.dumps(value, ensure_ascii=False)))
        for key, value in _flat(manifest.get("config", {}))
    ]
    made_from = [
        (name, entry.get("stage", ""), tag("code", entry.get("path", "")), _sha(entry))
        for name, entry in manifest.get("inputs", {}).items()
    ]
    made = [
        (
            name,
            tag("code", entry.get("path", "")),
            amount(entry.get("bytes", 0), "bytes"),
            _sha(entry),
        )
        for name, entry in manifest.get("outputs", {}).items()
    ]
    versions = ", ".join(f"{name} {v}" for name, v in manifest.get("versions", {}).items())
    does = LINE[stage].does if stage in LINE else ""
    body = join(
        (
            table(("Setting", "Value"), settings),
            table(("Made from", "Stage", "Path", "sha256"), made_from),
            table(("Made", "Path", "Size", "sha256"), made),
            tag("p", f"Key {manifest.get('key', '')[:16]}, made with {versions}.", class_="note"),
        )
    )
    summary = join((tag("b", stage), tag("span", f"  {does}", class_="note")))
    drawn = folded(summary, body)
    return tag("div", drawn, id=f"stage-{stage}")


def _sha(entry: Mapping[str, Any]) -> Html:
    sha = str(entry.get("sha256", ""))
    return tag("code", sha[:16], title=sha)


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
