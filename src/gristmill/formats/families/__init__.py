"""Families of models: config.json to `ModelConfig` and back, and the names of their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.errors import RequestError, nearest
from gristmill.formats.families import (
    deepseek_v3,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from gristmill.formats.families.family import Family
from gristmill.formats.keys import Keys
from gristmill.model import ModelConfig

__all__ = ["FAMILIES", "Family", "config_from_hf", "config_to_hf", "family_of"]

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        llama,
        mistral,
        mixtral,
        qwen2,
        qwen3,
        qwen3_moe,
        gemma2,
        gemma3_text,
        olmo2,
        phi3,
        gpt2,
        gpt_neox,
        gpt_oss,
        deepseek_v3,
    )
}
_BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES.values()}


def config_from_hf(hf: dict[str, Any], file: Path) -> ModelConfig:
    """Read config.json as transformers 4 and 5 write it. `file` is named in errors.

    Raises RequestError for what the network does not do: it never computes something else in silence.
    """
    family = _family(hf, file)
    try:
        return family.read(Keys(hf, file))
    except RequestError as error:
        if str(error).startswith(str(file)):
            raise
        raise RequestError(f"{file}: {error}") from error


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """config.json's content. Raises RequestError for a shape that the family's config.json cannot say."""
    family = family_of(config)
    hf = {
        "architectures": [family.architecture],
        "model_type": family.name,
        "attention_dropout": 0.0,
        **family.write(config),
    }
    # What the file says must be this very network: a setting it cannot hold would be lost in silence.
    said = family.read(Keys(hf, Path("config.json")))
    lost = [name for name in vars(config) if getattr(said, name) != getattr(config, name)]
    if lost:
        raise RequestError(
            f"a {family.name} config.json cannot say {lost[0]} = {getattr(config, lost[0])!r}; "
            "choose another family"
        )
    return hf


def family_of(config: ModelConfig) -> Family:
    """Raises RequestError for a name that is none."""
    if config.family not in FAMILIES:
        raise RequestError(
            f"family {config.family!r} is not one of {', '.join(FAMILIES)}."
            f"{nearest(config.family, FAMILIES)}"
        )
    return FAMILIES[config.family]


def _family(hf: dict[str, Any], file: Path) -> Family:
    names = hf.get("architectures")
    if names:
        name = names[0] if isinstance(names, list) else names
        family = _BY_ARCHITECTURE.get(str(name))
    else:
        name = hf.get("model_type")
        family = FAMILIES.get(str(name))
    if family is None:
        if isinstance(hf.get("text_config"), dict):
            raise RequestError(
                f"{file}: {name!r} reads images too, and only text models are supported; take the "
                "family's text-only release"
            )
        known = ", ".join(sorted(_BY_ARCHITECTURE))
        raise RequestError(f"{file}: architecture {name!r} is not supported; supported are {known}")
    return family
