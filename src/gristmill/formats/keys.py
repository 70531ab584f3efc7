"""Reading config.json: each key with its type, its default, and an error that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError
from gristmill.model import FULL, SLIDING, RopeScaling

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
_ROPE_KINDS = {"linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_ROPE_KINDS |= {"longrope": "longrope", "su": "longrope"}  # Phi-3's first releases say su


class Keys:
    """config.json's content; `file` is named in errors. A key that is null counts as absent."""

    def __init__(self, hf: Mapping[str, Any], file: Path) -> None:
        self.hf, self.file = hf, file

    def get(self, key: str) -> Any:
        return self.hf.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        value = self.hf.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"{key} must be a whole number, not {value!r}")
        return value

    def kv_heads(self, heads: int, default: int | None) -> int:
        """`num_key_value_heads`: null means as many as heads, absent the default of the family's class."""
        if default is None or "num_key_value_heads" in self.hf:
            default = heads
        return self.count("num_key_value_heads", default)

    def number(self, key: str, default: float | None = None) -> float:
        return self._number(key, self.hf.get(key), default)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A number, or None where the key is null; `default` where it is absent."""
        value = self.hf.get(key, default)
        return None if value is None else self._number(key, value, None)

    def flag(self, key: str, default: bool) -> bool:
        value = self.hf.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(f"{key} must be true or false, not {value!r}")
        return value

    def numbers(self, key: str) -> list[int]:
        value = self.hf.get(key) or []
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self.error(f"{key} must be a list of whole numbers, not {value!r}")
        return value

    def activation(self, key: str, default: str) -> Any:
        name = self.hf.get(key) or default
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise self.error(
                f"{key} {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}"
            )
        return _ACTIVATIONS[name]

    def refuse(self, **keys: Any) -> None:
        """Keys that change what is computed and are not supported; each with its harmless value."""
        for key, harmless in keys.items():
            value = self.hf.get(key)
            if value is not None and value != harmless:
                raise self.error(f"{key} {value!r} is not supported (only {harmless!r} is)")

    def layer_types(self, layers: int, derived: list[str]) -> tuple[str, ...]:
        """`layer_types` where it is given, `derived` from older keys where not."""
        given = self.hf.get("layer_types")
        if given is None:
            given = derived
        if not isinstance(given, list) or any(kind not in (FULL, SLIDING) for kind in given):
            raise self.error(
                f"layer_types must be a list of {FULL!r} and {SLIDING!r}, not {given!r}"
            )
        if len(given) != layers:
            raise self.error(f"layer_types has {len(given)} entries for {layers} layers")
        return tuple(given) if SLIDING in given else ()

    def windows(self, layers: int, derived: list[str], default: int) -> dict[str, Any]:
        """`layer_types` and `sliding_window` of a ModelConfig; neither where no layer slides."""
        types = self.layer_types(layers, derived)
        if not types:
            return {}
        return {"layer_types": types, "sliding_window": self.count("sliding_window", default)}

    def rope(
        self, head_dim: int, theta: float = 10_000.0, layer_type: str = FULL
    ) -> dict[str, Any]:
        """`rope_theta`, `rope_scaling` and `rotary_dim` of a ModelConfig, from the new keys or the old ones."""
        # As in transformers, the old key wins: people add it to a config.json to stretch the context.
        rope = self.hf.get("rope_scaling") or self.hf.get("rope_parameters") or {}
        if isinstance(rope, Mapping) and isinstance(rope.get(layer_type), Mapping):
            rope = rope[layer_type]  # Gemma 3 has a set for each type of layer
        if not isinstance(rope, Mapping):
            raise self.error(f"rope_parameters must be an object, not {rope!r}")
        inner = self.hf.get("rope_parameters")
        share = self._first(
            rope.get("partial_rotary_factor"),
            self.hf.get("partial_rotary_factor"),
            self.hf.get("rotary_pct"),
        )
        share = self._number("partial_rotary_factor", share, 1.0)
        found = self._first(
            rope.get("rope_theta"),
            self.hf.get("rope_theta"),
            self.hf.get("rotary_emb_base"),
            inner.get("rope_theta") if isinstance(inner, Mapping) else None,
        )
        theta = self._number("rope_theta", found, theta)
        if not 0 < share <= 1:
            raise self.error(f"partial_rotary_factor must be from 0 to 1, not {share}")
        if theta <= 1:
            raise self.error(f"rope_theta must be a number above 1, not {theta!r}")
        rotated = int(head_dim * share)
        return {
            "rope_theta": theta,
            "rope_scaling": self._scaling(rope, rotated),
            "rotary_dim": "head_dim" if rotated == head_dim else rotated,
        }

    def _scaling(self, rope: Mapping[str, Any], rotated: int) -> RopeScaling | None:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return None
        if not isinstance(kind, str) or kind not in _ROPE_KINDS:
            raise self.error(
                f"positions of rope_type {kind!r} are not supported; supported are "
                f"{', '.join(['default', *_ROPE_KINDS])}"
            )
        kind = _ROPE_KINDS[kind]

        def number(key: str, default: float | None = None) -> float:
            return self._number(f"rope_parameters.{key}", rope.get(key), default)

        def optional(key: str) -> float | None:
            return None if rope.get(key) is None else number(key)

        longest = self.count("max_position_embeddings", 0)
        original = self._first(
            self.hf.get("original_max_position_embeddings") if kind == "longrope" else None,
            rope.get("original_max_position_embeddings"),
            self.hf.get("original_max_position_embeddings"),
            None if kind == "linear" else longest,
        )
        original = int(self._number("original_max_position_embeddings", original, 0.0))
        settings: dict[str, Any] = {}
        if kind == "llama3":
            settings = {k: number(k) for k in ("low_freq_factor", "high_freq_factor")}
        elif kind == "yarn":
            settings = {
                "beta_fast": number("beta_fast", 32.0),
                "beta_slow": number("beta_slow", 1.0),
            }
            settings["truncate"] = bool(rope.get("truncate", True))
            settings |= {k: optional(k) for k in ("mscale", "mscale_all_dim", "attention_factor")}
        elif kind == "longrope":
            settings["attention_factor"] = optional("attention_factor")
            for key in ("short", "long"):
                factors: Any = rope.get(f"{key}_factor")
                good = isinstance(factors, list) and len(factors) == rotated // 2
                if not good or any(type(f) not in (int, float) or f <= 0 for f in factors):
                    raise self.error(
                        f"{key}_factor must be a list of {rotated // 2} numbers above 0"
                    )
                settings[f"{key}_factors"] = tuple(map(float, factors))
        # Where yarn and longrope leave the factor out, it is how much longer the context became.
        stretched = longest / original if original and kind in ("yarn", "longrope") else None
        factor = number("factor", stretched)
        return RopeScaling(kind, factor, 0 if kind == "linear" else original, **settings)  # type: ignore[arg-type]

    def error(self, problem: str) -> RequestError:
        return RequestError(f"{self.file}: {problem}")

    @staticmethod
    def _first(*values: Any) -> Any:
        return next((value for value in values if value is not None), None)

    def _number(self, key: str, value: Any, default: float | None) -> float:
        value = default if value is None else value
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not abs(value) < 1e300:  # type: ignore[arg-type]  # nor infinity, nor NaN
            raise self.error(f"{key} must be a number, not {value!s:.40}")
        return float(value)  # type: ignore[arg-type]


def rope_to_hf(theta: float, scaling: RopeScaling | None, share: float = 1.0) -> dict[str, Any]:
    """The content of `rope_parameters`."""
    rope: dict[str, Any] = {
        "rope_type": scaling.kind if scaling else "default",
        "rope_theta": theta,
    }
    if share != 1.0:
        rope["partial_rotary_factor"] = share
    if scaling is None:
        return rope
    rope["factor"] = scaling.factor
    if scaling.kind != "linear":
        rope["original_max_position_embeddings"] = scaling.original_max_seq_len
    if scaling.kind == "llama3":
        rope["low_freq_factor"] = scaling.low_freq_factor
        rope["high_freq_factor"] = scaling.high_freq_factor
    if scaling.kind == "yarn":
        rope |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        rope["truncate"] = scaling.truncate
    if scaling.kind == "longrope":
        rope["short_factor"] = list(scaling.short_factors)
        rope["long_factor"] = list(scaling.long_factors)
    for key in ("mscale", "mscale_all_dim", "attention_factor"):
        if getattr(scaling, key) is not None:
            rope[key] = getattr(scaling, key)
    return rope
