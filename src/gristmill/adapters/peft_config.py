"""adapter_config.json, as the `peft` library writes and reads it.

What changes no number is passed over; an option that would change one and is not done here is refused by its
name, also one that `peft` gains later: any key unknown to us must be off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gristmill.adapters.config import ALL_LINEAR, LoraConfig
from gristmill.errors import RequestError
from gristmill.files import read_object

# Read below.
_READ = {
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
    "bias",
}
# Where it came from, settings of options that are themselves refused, and how `peft` stores Conv1D weights.
_PASSED_OVER = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
# The others begin with a changed base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA): their A and B belong to that one.
_BASE_LEFT_ALONE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def read_peft_config(directory: Path) -> LoraConfig:
    """Raises RequestError, naming the file and the key."""
    file = directory / "adapter_config.json"
    if not file.is_file():
        raise RequestError(f"{directory} is not an adapter: adapter_config.json is missing")
    found = read_object(file)
    try:
        return _from_peft(found)
    except RequestError as error:
        raise RequestError(f"{file}: {error}") from None


def _from_peft(found: dict[str, Any]) -> LoraConfig:
    if found.get("peft_type") != "LORA":
        raise RequestError(
            f"peft_type {found.get('peft_type')!r} is not supported; supported is LORA"
        )
    for key, value in found.items():
        if key not in _READ | _PASSED_OVER and value not in (None, False, "", [], {}):
            raise RequestError(f"the option {key} ({value!r}) is not supported")
    _one_of(found, "task_type", (None, "CAUSAL_LM"))
    _one_of(found, "bias", (None, "none"))
    _one_of(found, "init_lora_weights", _BASE_LEFT_ALONE)
    _one_of(found, "layers_pattern", (None, "", [], "layers", ["layers"]))

    def get(key: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = default if found.get(key) is None else found[key]
        if not fits(value):
            raise RequestError(f"{key} must be {what}, not {value!r}")
        return value

    def flag(key: str) -> bool:
        return get(key, False, lambda v: isinstance(v, bool), "true or false")

    def names(key: str, default: Any) -> Any:
        value = get(key, default, _is_names, "a list of names or a regular expression")
        return value if isinstance(value, str) else tuple(value)

    target = names("target_modules", ())
    if isinstance(target, str) and target.lower() == ALL_LINEAR:
        target = ALL_LINEAR
    layers = get("layers_to_transform", "all", _is_layers, "a list of layer numbers")
    return LoraConfig(
        rank=found.get("r", 8),
        alpha=found.get("lora_alpha", 8),
        dropout=found.get("lora_dropout", 0.0),
        rslora=flag("use_rslora"),
        dora=flag("use_dora"),
        target_modules=target,
        exclude_modules=names("exclude_modules", ()),
        rank_pattern=get("rank_pattern", {}, lambda v: isinstance(v, dict), "an object"),
        alpha_pattern=get("alpha_pattern", {}, lambda v: isinstance(v, dict), "an object"),
        layers_to_transform=(layers,) if isinstance(layers, int) else layers or "all",
    )


def to_peft(config: LoraConfig, base: str | None) -> dict[str, Any]:
    """adapter_config.json's content; `base` is the name or path of the model that it is for."""

    def names(value: Any) -> Any:
        return value if isinstance(value, str) else sorted(value)

    layers = config.layers_to_transform
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "target_modules": names(config.target_modules),
        "exclude_modules": names(config.exclude_modules) or None,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "layers_to_transform": None if layers == "all" else list(layers),
        "layers_pattern": None,
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def _one_of(found: dict[str, Any], key: str, supported: tuple[Any, ...]) -> None:
    value = found.get(key)
    # `1 == True` in Python, not in JSON
    if not any(type(value) is type(known) and value == known for known in supported):
        raise RequestError(f"{key} {value!r} is not supported")


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    )


def _is_layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return value == "all" or all(type(number) is int for number in numbers)
