"""The HTTP server as a path of `parity`: started on loopback in this process, asked as any client asks it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from gristmill.engine import Engine, Generation
from gristmill.errors import WorkError
from gristmill.evaluate.parity_paths import MESSAGES, NEW, Probes, Reading, said
from gristmill.formats import Model
from gristmill.lm import Request
from gristmill.serve import Served, build_app, served

NAME = "HTTP server"
_SECONDS = 300


class _Recording(Engine):
    """Keeps what it was asked, so that the server's ids can be compared and not only their number."""

    def __init__(self, model: Model) -> None:
        super().__init__(model, cache_dtype="float32")
        self.asked: list[Generation] = []

    def prepare(self, request: Request) -> Generation:
        self.asked.append(super().prepare(request))
        return self.asked[-1]


def read_http(model: Model, probes: Probes) -> tuple[list[Reading], list[int] | None]:
    """What the server says after the chat, and the ids it made of it. Raises WorkError when it answers wrongly."""
    engine = _Recording(model)
    body = {
        "messages": MESSAGES,
        "temperature": 0,
        "max_tokens": NEW,
        "logprobs": True,
        "top_logprobs": 1,
    }
    with served(build_app([Served("parity", engine)])) as url:
        answer = _post(f"{url}/v1/chat/completions", body)
    (asked,) = engine.asked
    completion = asked.completion
    assert completion is not None
    entries = answer["choices"][0]["logprobs"]["content"]
    (reading,) = said([asked.prompt], [completion])
    spelled = [bytes(entry["bytes"]) for entry in entries]
    if spelled != [model.tokenizer.token_bytes(id) for id in completion.token_ids[: len(spelled)]]:
        raise WorkError(
            "the bytes of the tokens in the response are not those of the engine's tokens"
        )
    if answer["usage"]["prompt_tokens"] != len(asked.prompt):
        raise WorkError("usage.prompt_tokens is not the number of tokens that were read")
    # What counts is what the client got; the ids are only known here.
    got = tuple(entry["logprob"] for entry in entries)
    ids = reading.ids[: reading.first + len(got)]
    return [Reading(ids, reading.first, got, reading.likeliest[: len(got)])], asked.prompt


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
    try:
        with opener.open(request, timeout=_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        told = error.read().decode(errors="replace")[:300]
        raise WorkError(f"the server answered {error.code}: {told}") from None
    except OSError as error:
        raise WorkError(f"the server could not be asked: {error}") from None
