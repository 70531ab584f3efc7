"""A server that speaks the app's contract with canned answers, so that a test decides what comes and when.

What a question says decides its answer: "markdown", "think", "tool", "slow", "wordless", "fail", "drop", "refuse".
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parents[2] / "src/gristmill/serve/static"
CSP = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
SOURCE = {
    "source": "python3.11/heapq.py",
    "line": 523,
    "title": "heapq.nlargest",
    "text": "Find the n largest elements in a dataset.\n\nEquivalent to: sorted(iterable, reverse=True)[:n]",
}
MARKDOWN = """## Heaps in *Python*

A **heap** is a list where `heap[k] <= heap[2*k+1]`. Use [the module](https://docs.python.org/3/library/heapq.html):

1. Push with `heappush`
2. Pop with `heappop`
   - in *O(log n)*
   - the smallest first

```python
import heapq

def largest(n: int, values: list[int]) -> list[int]:
    \"\"\"The n largest.\"\"\"
    return heapq.nlargest(n, values)  # sorted

print(largest(3, [1, 5, 2, 8]))
```

| Call | Cost | Note |
|:-----|-----:|:----:|
| `heappush` | O(log n) | in place |
| `nlargest` | O(n log k) | a new list |

> Heaps are binary trees for which every parent node has a value less than or equal to any of its children.

```diff
-values.sort()
+heapq.heapify(values)
```
"""
THOUGHT = "The person asks about heaps. I should say what they are, then show one."


@dataclass
class State:
    models: list[dict[str, Any]]
    key: str | None = None
    store: bool = True
    info_after: float = 0.0  # seconds until /app/info answers
    token_s: float = 0.004
    conversations: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies of chat requests
    stored: list[dict[str, Any]] = field(default_factory=list)  # bodies of PUTs
    votes: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    under_way: int = 0
    generated: int = 0


def model(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": 1_235_814_400,
        "context": 8192,
        "retrieval": False,
        "examples": ["How do I find the n largest elements?", "What does `shlex.quote` do?"],
        "reasoning": True,
        "tools": True,
        "adapter_of": None,
    } | more


def canned(state: State) -> Starlette:
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "index.html")),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    for path, handler, *methods in (
        ("/app/info", info),
        ("/app/models", models),
        ("/app/stats", stats),
        ("/app/conversations", conversations),
        ("/app/conversations/{id}", conversation, "GET", "PUT", "DELETE"),
        ("/app/conversations/{id}/export", export),
        ("/app/votes", vote, "POST"),
        ("/app/votes/summary", summary),
        ("/app/votes/export", preferences),
        ("/app/attachments", attach, "POST"),
        ("/app/attachments/{id}", detach, "DELETE"),
        ("/v1/chat/completions", chat, "POST"),
    ):
        routes.append(Route(path, handler, methods=methods or ["GET"]))
    app = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=_guard)])
    app.state.canned = state
    return app


def _of(request: Request) -> State:
    return request.app.state.canned


def _error(status: int, message: str, **more: Any) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None}} | more, status)


async def _guard(request: Request, call_next: Any) -> Response:
    key, path = _of(request).key, request.url.path
    given = request.headers.get("authorization")
    if key and path.startswith(("/app", "/v1")) and given != f"Bearer {key}":
        return _error(401, "a valid API key is missing")
    response = await call_next(request)
    response.headers["content-security-policy"] = CSP
    return response


async def info(request: Request) -> Response:
    state = _of(request)
    await asyncio.sleep(state.info_after)
    return JSONResponse(
        {
            "version": "0",
            "models": state.models,
            "store": state.store,
            "keys_required": bool(state.key),
        }
    )


async def models(request: Request) -> Response:
    loaded = [m for m in _of(request).models if m["adapter_of"] is None]
    return JSONResponse(
        {
            "models": [
                {
                    "name": m["name"],
                    "architecture": "LlamaForCausalLM",
                    "parameters": m["parameters"],
                    "quantization": "Q4_K, Q6_K",
                    "weights_bytes": 807_690_656,
                    "cache_bytes": 268_435_456,
                    "cache_tokens": 32768,
                    "context": m["context"],
                    "engine": "cpu, 2 threads, bf16 cache of 32,768 tokens in blocks of 16, prefix reuse on",
                    "adapters": ["poet"],
                }
                for m in loaded
            ]
        }
    )


async def stats(request: Request) -> Response:
    """Counters that grow with time as under a load that comes and goes."""
    state, now = _of(request), time.time()
    wave = (1 + math.sin(now / 7)) / 2
    counters = {
        "running": round(6 * wave),
        "waiting": round(2 * wave),
        "cache_usage": 0.2 + 0.6 * wave,
        "prefix_hits": int(now * 70) % 10**9,
        "prefix_queries": int(now * 100) % 10**9,
        "prompt_tokens": int(now * 400) % 10**9,
        "generation_tokens": int(80 * (now - 7 * math.cos(now / 7))) % 10**9 + state.generated,
        "spec_drafted": int(now * 40) % 10**9,
        "spec_accepted": int(now * 29) % 10**9,
        "preemptions": 3,
        "ttft_seconds": [0.08 + 0.05 * wave, 0.3 + 0.2 * wave],
        "inter_token_seconds": [0.012, 0.03 + 0.01 * wave],
    }
    names = [m["name"] for m in state.models if m["adapter_of"] is None]
    return JSONResponse(
        {"time": now, "models": {n: counters for n in names}, "memory_bytes": 1 << 30}
    )


async def conversations(request: Request) -> Response:
    query = request.query_params.get("q", "").lower()
    kept = [d for d in _of(request).conversations.values() if query in json.dumps(d).lower()]
    kept.sort(key=lambda d: -d["updated"])
    rows = [{k: d[k] for k in ("id", "title", "model", "updated")} for d in kept]
    return JSONResponse({"conversations": rows})


async def conversation(request: Request) -> Response:
    state, id = _of(request), request.path_params["id"]
    kept = state.conversations
    stored = kept.get(id)
    if request.method == "PUT":
        document = await request.json()
        state.stored.append(document)
        if document["revision"] != (stored["revision"] if stored else 0):
            return _error(409, "another tab wrote it", document=stored)
        kept[id] = document | {
            "id": id,
            "revision": document["revision"] + 1,
            "updated": time.time(),
        }
        return JSONResponse({"revision": kept[id]["revision"]})
    if stored is None:
        return _error(404, "there is no such conversation")
    if request.method == "DELETE":
        del kept[id]
        return JSONResponse({"id": id, "deleted": True})
    return JSONResponse(stored)


async def export(request: Request) -> Response:
    document = _of(request).conversations[request.path_params["id"]]
    return Response(f"{request.query_params['format']} of {document['title']}\n")


async def vote(request: Request) -> Response:
    votes = _of(request).votes
    votes.append(await request.json())
    return JSONResponse({"votes": len(votes)})


async def summary(request: Request) -> Response:
    """The tally as the contract has it: of each pair, `a` is the first by name."""
    pairs: dict[tuple[str, ...], Counter[str]] = {}
    for v in _of(request).votes:
        names = [answer["model"] for answer in v["answers"]]
        winner = {"first": names[0], "second": names[1]}.get(v["choice"])
        a, b = sorted(names)
        column = (
            {a: "a_wins", b: "b_wins"}[winner]
            if winner
            else {"tie": "ties"}.get(v["choice"], "bad")
        )
        pairs.setdefault((a, b), Counter())[column] += 1
    columns = ("a_wins", "b_wins", "ties", "bad")
    rows = [{"a": a, "b": b, **{c: n[c] for c in columns}} for (a, b), n in pairs.items()]
    return JSONResponse({"pairs": rows})


async def preferences(request: Request) -> Response:
    return Response(json.dumps(_of(request).votes))


async def attach(request: Request) -> Response:
    body, files = await request.body(), _of(request).files
    if b"\0" in body:
        return _error(400, "the file is not text")
    id = f"file{len(files)}"
    files[id] = request.query_params["name"]
    return JSONResponse({"id": id, "name": files[id], "bytes": len(body), "passages": 2})


async def detach(request: Request) -> Response:
    del _of(request).files[request.path_params["id"]]
    return JSONResponse({})


async def chat(request: Request) -> Response:
    state, body = _of(request), await request.json()
    state.asked.append(body)
    last = body["messages"][-1]["content"] or ""
    if "refuse" in last:
        return _error(400, "the prompt has 9000 tokens, and the context holds 8192")
    return StreamingResponse(_stream(state, body, last), media_type="text/event-stream")


def _words(text: str) -> list[str]:
    return [w + (" " if i < text.count(" ") else "") for i, w in enumerate(text.split(" "))]


def _deltas(body: dict[str, Any], last: str) -> list[dict[str, Any]]:
    """The deltas of an answer, one a token."""
    if body.get("continue_final_message"):
        return [{"content": w} for w in _words(", and so it goes on.")]
    if body["messages"][-1]["role"] == "tool":
        return [{"content": w} for w in _words(f"The tool said: {last}")]
    if "markdown" in last:
        return [{"content": MARKDOWN[i : i + 7]} for i in range(0, len(MARKDOWN), 7)]
    if "think" in last:
        thought = [{"reasoning_content": w} for w in _words(THOUGHT)]
        return thought + [{"content": w} for w in _words("A heap is a list.")]
    if "tool" in last:
        call = {"index": 0, "id": "call_1", "type": "function"}
        parts = ['{"city"', ': "Bern', '"}']
        return [
            {"content": "Let me see. "},
            {"tool_calls": [call | {"function": {"name": "weather", "arguments": ""}}]},
            *({"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in parts),
        ]
    if "slow" in last:
        return [{"content": f"word{i} "} for i in range(400)]
    turn = sum(m["role"] == "user" for m in body["messages"])
    said = f"Answer {turn} of {body['model']} at {body.get('temperature')}: {last}"
    return [{"content": w} for w in _words(said)]


def _logprobs(text: str, place: int) -> dict[str, Any]:
    p = [0.97, 0.62, 0.31, 0.08][place % 4]
    others = [("perhaps ", (1 - p) * 0.6), ("a\nbreak", (1 - p) * 0.3), (" <b>", (1 - p) * 0.1)]
    top = [
        {"token": t, "logprob": math.log(q), "bytes": list(t.encode())}
        for t, q in [(text, p), *others]
    ]
    return {"content": [top[0] | {"top_logprobs": top}]}


async def _stream(state: State, body: dict[str, Any], last: str) -> AsyncIterator[str]:
    def event(choice: dict[str, Any] | None, **more: Any) -> str:
        return "data: " + json.dumps({"choices": [choice] if choice else []} | more) + "\n\n"

    state.under_way += 1
    try:
        yield event({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        deltas = [] if "wordless" in last else _deltas(body, last)
        for place, delta in enumerate(deltas):
            logprobs = None
            if body.get("logprobs") and "content" in delta:
                logprobs = _logprobs(delta["content"], place)
            yield event({"delta": delta, "logprobs": logprobs, "finish_reason": None})
            state.generated += 1
            await asyncio.sleep(0.04 if "slow" in last else state.token_s)
            if place == 2 and "drop" in last:
                return
            if place == 2 and "fail" in last:
                yield event(None, error={"message": "the engine ran out of memory"})
                return
        finish = "tool_calls" if any("tool_calls" in d for d in deltas) else "stop"
        if "long" in last:
            finish = "length"
        cited = {"citations": [SOURCE], "found": True} if body.get("retrieval") else {}
        yield event({"delta": cited, "finish_reason": finish})
        used = {"prompt_tokens": 9, "completion_tokens": len(deltas), "total_tokens": 0}
        yield event(None, usage=used)
        yield "data: [DONE]\n\n"
    finally:
        state.under_way -= 1
