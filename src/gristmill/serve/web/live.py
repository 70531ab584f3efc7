"""What is loaded, and how it is doing."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import gristmill
from gristmill.formats.families import family_of
from gristmill.formats.quantized import quantized_layers
from gristmill.kernels import CodedMatrix
from gristmill.model import ModelConfig, Transformer
from gristmill.serve.auth import key_of
from gristmill.serve.errors import ApiError
from gristmill.serve.models import Served
from gristmill.serve.web.origin import State, answer, route


def routes(state: State) -> list[Route]:
    async def info(request: Request) -> Response:
        key = key_of(request.scope)
        served = [m for m in state.models if key is None or key.may_use(m.name)]
        if not served:
            raise ApiError(
                404, "this key may use none of the server's models", code="model_not_found"
            )
        return answer(
            {
                "version": gristmill.__version__,
                "models": await run_in_threadpool(lambda: [_offer(m, served) for m in served]),
                "store": state.store is not None,
                "keys_required": state.keys_required,
            }
        )

    async def models(request: Request) -> Response:
        loaded = [m for m in state.models if m.adapter is None]
        return answer({"models": await run_in_threadpool(lambda: [_loaded(m) for m in loaded])})

    async def stats(request: Request) -> Response:
        return answer(state.stats())

    return [
        route("/app/info", "GET", info),
        route("/app/models", "GET", models),
        route("/app/stats", "GET", stats),
    ]


def _offer(model: Served, served: list[Served]) -> dict[str, Any]:
    """A model as the chat's menu needs it."""
    base = next((m.name for m in served if m.engine is model.engine and m.adapter is None), None)
    return {
        "name": model.name,
        "parameters": num_parameters(model.engine.model.config),
        "context": model.context,
        "retrieval": model.index is not None,
        "examples": list(model.examples),
        "reasoning": model.format.thought is not None,
        "tools": model.template
        is not None,  # with a template that knows none, the system message tells of them
        "adapter_of": None if model.adapter is None else base,
    }


def _loaded(model: Served) -> dict[str, Any]:
    """A model as its own page shows it. bytes: in memory; of the cache, when it is full."""
    engine = model.engine
    network = engine.model.network
    return {
        "name": model.name,
        "architecture": family_of(network.config).architecture,
        "parameters": num_parameters(network.config),
        "quantization": quantization(network),
        "weights_bytes": weights_bytes(network),
        "cache_bytes": engine.cache_bytes,
        "cache_tokens": engine.cache_tokens,
        "context": engine.context,
        "engine": engine.describe(),
        "adapters": list(engine.adapters),
    }


@lru_cache(maxsize=64)
def num_parameters(config: ModelConfig) -> int:
    return config.num_parameters


def weights_bytes(network: Transformer) -> int:
    """Of all tensors of the network; shared ones count once."""
    tensors = (*network.parameters(), *network.buffers())
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def quantization(network: Transformer) -> str | None:
    """How the quantized layers hold their weights, the coding of most layers first; None where none is quantized."""
    layers = quantized_layers(network).values()
    codings = Counter(m.coding if isinstance(m, CodedMatrix) else "int8" for m in layers)
    return ", ".join(name for name, _ in codings.most_common()) or None
