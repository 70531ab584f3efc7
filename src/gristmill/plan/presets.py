"""Models and devices by name: from presets.toml and devices.toml, from a user's own files, from disk."""

from __future__ import annotations

import os
import time
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError, nearest
from gristmill.files import read_object
from gristmill.model import LatentConfig, ModelConfig, MoEConfig, RopeScaling
from gristmill.plan.kept import Kernels

GB, GIB, TERA = 1e9, 2**30, 1e12
HERE = "here"  # the device's name that means this machine, measured
_NESTED = {"moe": MoEConfig, "latent": LatentConfig, "rope_scaling": RopeScaling}
_OF_CONFIG = {field.name for field in fields(ModelConfig)}
_ABOUT = {"title", "source", "published", "tokens", "extra_per_layer", "note"}


@dataclass(frozen=True)
class Preset:
    """A model to plan for. published: parameters, exact (int) or rounded ("70B"). tokens: it was trained on.

    extra_per_layer: parameters of a layer of the published network that `config` cannot say; they are multiplied with
    each token like any other matrix. context, optimizer: of the run that made it, None where no run is known.
    """

    name: str
    config: ModelConfig
    title: str = ""
    source: str = ""
    published: int | str | None = None
    tokens: float | None = None
    extra_per_layer: int = 0
    note: str = ""
    context: int | None = None
    optimizer: str | None = None


@dataclass(frozen=True)
class Device:
    """One device as its maker prints it. Bytes, bytes/s, FLOP/s (dense, by precision), watts, US dollars an hour
    (None where nobody asks a price).

    kernels: which ones train there, since they differ in what they keep (`plan.kept`).
    """

    name: str
    title: str
    memory: float
    bandwidth: float
    flops: dict[str, float]
    link: float
    network: float
    node: int
    power: float
    price: float | None
    kernels: Kernels = "cuda"

    def peak(self, precision: str) -> float:
        """FLOP/s of matrix products; a precision that the device has not is computed in the next wider one."""
        wider = {"fp8": "bfloat16", "int8": "bfloat16", "bfloat16": "float32"}
        while precision not in self.flops:
            precision = wider[precision]
        return self.flops[precision]


def presets(extra: Path | None = None) -> dict[str, Preset]:
    """name -> preset; those of the file `extra` replace ours. Raises RequestError naming file, table and key."""
    return _presets(_shipped("presets.toml"), extra)


def devices(extra: Path | None = None) -> dict[str, Device]:
    """name -> device, as `presets`."""
    tables = read_toml(_shipped("devices.toml"))
    tables |= {} if extra is None else read_toml(extra)
    return {name: _device(name, table, extra) for name, table in tables.items()}


def model(name: str, extra: Path | None = None) -> Preset:
    """A preset by its name, or any model on disk: run, directory, config.json, .gguf, llama2.c. No weight is read.

    Raises RequestError that names the nearest preset.
    """
    known = presets(extra)
    if name.lower() in known:
        return known[name.lower()]
    path = Path(name).expanduser()
    if not path.exists():
        hint = nearest(name.lower(), known)
        raise RequestError(
            f'"{name}" is no preset and no model on disk.{hint} `gristmill plan` lists the presets.'
        )
    from gristmill.formats import load_config, resolve
    from gristmill.formats.families import config_from_hf

    if path.suffix == ".json":
        return Preset(str(path), config_from_hf(read_object(path), path), str(path))
    place = resolve(path)
    return Preset(name, load_config(place), name, **_trained(path, place))


def _trained(path: Path, place: Path) -> dict[str, Any]:
    """Tokens, context and optimizer of the run that MODEL is, or lies in; {} where there is none."""
    for run in (path, *place.absolute().parents[:2]):
        manifest = read_object(run / "pretrain" / "manifest.json")
        try:
            config, metrics = manifest["config"], manifest["metrics"]
            return {
                "tokens": float(metrics["tokens"]),
                "context": int(config["context"]),
                "optimizer": str(config["optimizer"]),
            }
        except (KeyError, TypeError, ValueError):  # none, or of another program
            continue
    return {}


def device(name: str, extra: Path | None = None) -> Device:
    """A device by its name; "here": this machine, measured. Raises RequestError that names the nearest."""
    if name.lower() == HERE:
        return this_machine()
    known = devices(extra)
    if name.lower() not in known:
        raise RequestError(
            f'there is no device "{name}".{nearest(name.lower(), known)} Known are {", ".join(known)} and {HERE}; '
            "describe others in a file (--device-file)."
        )
    return known[name.lower()]


@cache
def this_machine() -> Device:
    """This machine as a device: memory from the system; a matrix product and a copy timed now (half a second)."""
    import torch

    from gristmill.kernels.training import extension

    a = torch.ones(1024, 1024)
    source = torch.ones(16 * 2**20)  # 64 MB: beyond the caches
    target = torch.empty_like(source)
    flops = 2 * 1024**3 / _best(lambda: torch.mm(a, a))
    bandwidth = 2 * source.nbytes / _best(lambda: target.copy_(source))
    threads = torch.get_num_threads()
    return Device(
        name=HERE,
        title=f"this machine: {threads} thread{'' if threads == 1 else 's'}, measured",
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        bandwidth=bandwidth,
        flops={"float32": flops},
        link=bandwidth,
        network=GB,
        node=1,
        power=20.0 * (os.cpu_count() or 1),  # a guess: systems do not say
        price=None,
        kernels="native" if extension is not None else "cpu",
    )


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises RequestError with the place of what is wrong."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not TOML: {error}") from None


@cache
def _presets(shipped: Path, extra: Path | None) -> dict[str, Preset]:
    found: dict[str, Preset] = {}
    bases: dict[str, dict[str, Any]] = {}
    for file in [shipped] if extra is None else [shipped, extra]:
        tables = read_toml(file)
        bases |= tables.pop("bases", {})
        for name, table in tables.items():
            try:
                found[name] = _preset(name, _on_base(table, bases))
            except (RequestError, TypeError, KeyError, AttributeError) as error:
                raise RequestError(f"{file}: [{name}]: {error}") from None
    return found


def _on_base(table: dict[str, Any], bases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if "base" not in table:
        return table
    base = table["base"]
    if base not in bases:
        raise RequestError(f'there is no base "{base}".{nearest(base, bases)}')
    return _on_base(bases[base], bases) | {k: v for k, v in table.items() if k != "base"}


def _preset(name: str, table: dict[str, Any]) -> Preset:
    unknown = table.keys() - _OF_CONFIG - _ABOUT
    if unknown:
        key = min(unknown)
        raise RequestError(f'there is no key "{key}".{nearest(key, _OF_CONFIG | _ABOUT)}')
    keys = {k: v for k, v in table.items() if k in _OF_CONFIG}
    for key, kind in _NESTED.items():
        if key in keys:
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in keys[key].items()}
            keys[key] = kind(**given)
    types = keys.get("layer_types", ())  # one for all layers, or a list
    keys["layer_types"] = (types,) * keys["num_layers"] if isinstance(types, str) else tuple(types)
    return Preset(name, ModelConfig(**keys), **{k: table[k] for k in _ABOUT & table.keys()})


def _device(name: str, table: dict[str, Any], file: Path | None) -> Device:
    try:
        return Device(
            name,
            str(table["title"]),
            table["memory_gib"] * GIB,
            table["bandwidth_gb_s"] * GB,
            {precision: value * TERA for precision, value in table["tflops"].items()},
            table["link_gb_s"] * GB,
            table["network_gb_s"] * GB,
            int(table["node"]),
            float(table["power_w"]),
            float(table["price_per_hour"]) or None,
            table.get("kernels", "cuda"),
        )
    except KeyError as error:
        raise RequestError(
            f"{file or 'devices.toml'}: [{name}]: {error.args[0]} is missing"
        ) from None
    except (TypeError, AttributeError, ValueError) as error:
        raise RequestError(f"{file or 'devices.toml'}: [{name}]: {error}") from None


def _shipped(name: str) -> Path:
    return Path(__file__).with_name(name)


def _best(work: Any, seconds: float = 0.2) -> float:
    """Seconds of the fastest of several goes: other work on the machine is not ours."""
    work()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
