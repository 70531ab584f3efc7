"""Writes cli.md, models.md and recipe.md from the program itself: `make docs` (python -m docs.reference.generate)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
_NOTE = (
    "<!-- Written by docs/reference/generate.py; change the program, then run `make docs`. -->\n"
)


def cli_page() -> str:
    """Every verb with its help, arguments and options."""
    import typer

    from gristmill.cli.main import VERBS, build

    page = [
        "# Commands\n",
        _NOTE,
        "Every verb has `--json`: one JSON document on standard output, progress on standard error. Exit code",
        "0: done; 1: the work failed; 2: the request was wrong.\n",
    ]
    page += [
        f"- [`{verb}`](#gristmill-{verb.replace(' ', '-')}): {summary}"
        for verb, (_, _, summary) in VERBS.items()
    ]
    for verb in VERBS:
        command: Any = typer.main.get_command(build(verb))
        page += _command(f"gristmill {verb}", command.commands[verb])
    return "\n".join(page) + "\n"


def _command(name: str, command: Any) -> list[str]:
    lines = [f"\n## {name}\n", _prose(command.help or "")]
    subcommands = getattr(command, "commands", {})
    for sub in sorted(subcommands):
        lines += _command(f"{name} {sub}", subcommands[sub])
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    if shown and not subcommands:
        lines += ["\n| | |", "|---|---|"]
        lines += [f"| {_parameter(p)} | {_cell(getattr(p, 'help', '') or '')} |" for p in shown]
    return lines


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        return f"`{name}`" if parameter.required else f"`[{name}]`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag:
        return names
    default = parameter.default
    plain = isinstance(default, str | int | float) and default != ""
    return f"{names} *{parameter.metavar or parameter.name.upper()}*" + (
        f" ({default})" if plain else ""
    )


def _prose(text: str) -> str:
    """A docstring as Markdown: indented examples become a code block."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text.replace("\b", "")))
    lines: list[str] = []
    for paragraph in paragraphs:
        if paragraph.startswith("    ") or paragraph.startswith("gristmill "):
            lines += ["```", inspect.cleandoc(paragraph), "```"]
        else:
            lines += [paragraph, ""]
    return "\n".join(lines).replace("```\n```\n", "").strip()


def recipe_page() -> str:
    """Every stage with what it does, takes and makes, and its settings with types and defaults."""
    from gristmill.recipe.line import LINE

    page = [
        "# Recipes\n",
        _NOTE,
        "A recipe is a TOML file: `name`, `title`, `seed`, `size`, then one table a stage. A setting that is not",
        'written, or is written "auto", comes from `size` where it derives one, else from the default below.',
        "`--set stage.key=value` overrides all.\n",
    ]
    for stage, node in LINE.items():
        config = node.config_class()
        page += [f"## {stage}\n", f"{node.does[0].upper()}{node.does[1:]}. `{node.module}`.\n"]
        takes = ", ".join(f"`{name}` of {maker}" for name, (maker, _) in node.inputs.items())
        if takes:
            page.append(f"Takes {takes if stage != 'report' else 'the manifest of every stage'}.\n")
        about, settings = _described(inspect.cleandoc(config.__doc__ or ""), config.model_fields)
        page += [about, ""] if about else []
        if config.model_fields:
            page += ["| setting | type | default | |", "|---|---|---|---|"]
        for name, field in config.model_fields.items():
            default = field.get_default(call_default_factory=True)
            cells = [
                f"`{name}`",
                _cell(_type(field.annotation)),
                "required" if field.is_required() else _cell(f"`{_short(default)}`"),
                _cell(field.description or settings.get(name, "")),
            ]
            page.append(f"| {' | '.join(cells)} |")
        page.append("")
    return "\n".join(page).rstrip() + "\n"


def models_page() -> str:
    """Every family with its names elsewhere, and every type of GGUF file with what it may cost."""
    import sys

    from gristmill.formats.families import FAMILIES
    from gristmill.formats.gguf_models.names import ARCHITECTURES
    from gristmill.formats.parity import KNOWN_ERROR

    page = [
        "# Models that load, run and leave\n",
        _NOTE,
        "A family is a file in `gristmill/formats/families/`; all run on the one network of `gristmill/model/`. Each",
        "row is tested against transformers (logits, packing, caches, greedy text, saved files) and, where it has a",
        "GGUF name, against llama.cpp.\n",
        "| `model_type` | architecture | GGUF | |",
        "|---|---|---|---|",
    ]
    for name, family in FAMILIES.items():
        about = " ".join((sys.modules[family.read.__module__].__doc__ or "").split())
        gguf = f"`{ARCHITECTURES[name]}`" if name in ARCHITECTURES else "–"
        page.append(f"| `{name}` | `{family.architecture}` | {gguf} | {_cell(about)} |")
    page += [
        "\nTypes of GGUF file that are written, with the mean KL divergence (nats a token) above which",
        "`gristmill convert` refuses a copy. Q2_K, Q3_K, Q4_1, Q5_0, Q5_1 and MXFP4 are read as well.\n",
        "| `--type` | at most |",
        "|---|---|",
        *(f"| `{kind}` | {bound:g} |" for kind, bound in KNOWN_ERROR.items()),
    ]
    return "\n".join(page) + "\n"


SIZES = ("1M 4M 15M 50M 124M 350M 760M 1.5B 3B 8B 15M:8x2 1.5B:16x2 8B:64x4").split()


def sizes_page() -> str:
    """What the dial makes of sizes from 1M to 8B."""
    from gristmill.plan import counts, flops_per_token
    from gristmill.train.dial import derive
    from gristmill.train.pretrain import PretrainConfig, shape_of

    page = [
        "# Sizes\n",
        _NOTE,
        "`size` is the one dial of a recipe: `gristmill run pyhelp --set size=124M`. Everything below follows from it",
        "(`train/dial.py`), and any of it can be set instead. A size is a number of parameters, or one with experts:",
        "`15M:8x2` has 8 of them in the place of every MLP and sends each token to 2.\n",
        "- **Shape**: the nearest of the family. A layer for every 64 of width (2 below 128), heads of",
        "  32, 64 or 128, a quarter as many key-value heads, MLPs twice the width below 512 and 8/3 of it above.",
        "- **Vocabulary**: 1,024 below 1M, 8,192 below 60M, 16,384 below 600M, then 32,768; tied above 16,384.",
        "- **Tokens**: Chinchilla's 20 a parameter from 44M on; below, (parameters / 9.8M)² a parameter and at least",
        "  0.21, so that the small end is minutes on a laptop.",
        "- **Batch**: 1,024 tokens up to 4M tokens of training, then growing with tokens^0.383 (arXiv 2505.13738).",
        "- **Rates**: Muon moves every matrix by the same spectral size, so one rate serves all widths: 0.015;",
        "  embeddings and head have AdamW's 0.001.\n",
        "| size | parameters | for a token | layers | width | heads | MLP | vocabulary | context | batch | tokens "
        "| FLOPs |",
        f"|{'---|' * 12}",
    ]
    for size in SIZES:
        settings = derive(size)
        config = PretrainConfig(**settings["pretrain"])
        shape = shape_of(config, settings["tokenizer"]["vocab_size"])
        count, moe = counts(shape), shape.moe
        cells = [
            f"`{size}`",
            f"{count.total / 1e6:,.1f}M",
            f"{count.active / 1e6:,.1f}M",
            shape.num_layers,
            shape.hidden_size,
            f"{shape.num_heads}/{shape.num_kv_heads}",
            f"{moe.num_experts} x {moe.intermediate_size}" if moe else shape.intermediate_size,
            f"{shape.vocab_size:,}",
            config.context,
            f"{config.batch_tokens:,}",
            f"{config.tokens / 1e6:,.1f}M",
            f"{flops_per_token(shape, config.context).training * config.tokens:.1e}",
        ]
        page.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(page) + "\n"


def _described(doc: str, fields: Any) -> tuple[str, dict[str, str]]:
    """A settings class's docstring taken apart: what is said of all, and of each setting.

    A setting is described as `name: text` or `name, name: text`, at the start of a line or sentence.
    """
    name = "(?:" + "|".join(map(re.escape, fields)) + ")" if fields else "(?!)"
    parts = re.split(rf"(?:^|(?<=\. )|(?<=\n))({name}(?:, {name})*)(?:: | counts )", doc)
    settings = {}
    for names, text in zip(parts[1::2], parts[2::2], strict=True):
        for one in names.split(", "):
            settings[one] = " ".join(text.split()).rstrip(".")
    return parts[0].strip(), settings


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if getattr(annotation, "__args__", None):
        text = str(annotation)
    return re.sub(r"\b(typing|pathlib|collections\.abc)\.", "", text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {
    "cli.md": cli_page,
    "models.md": models_page,
    "recipe.md": recipe_page,
    "sizes.md": sizes_page,
}


def main() -> None:
    for name, write in PAGES.items():
        (HERE / name).write_text(write(), encoding="utf-8")
        print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
