"""The page of a blind comparison: two answers side by side, one key to choose, the result at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gristmill.errors import GristmillError
from gristmill.evaluate.blind import Choice, Comparison, sentence
from gristmill.serve.app import STATIC
from gristmill.serve.origins import PAGE_HEADERS

Answers = Callable[[str], tuple[str, str]]
"""A prompt -> the first model's answer and the second's."""

_CHOICES: dict[
    str, tuple[Choice, Choice]
] = {  # key -> what it means straight, and with sides swapped
    "1": ("first", "second"),
    "2": ("second", "first"),
    "0": ("neither", "neither"),
}


class _Page:
    """One comparison and the answers that are ready for it; the next pair is made while this one is read."""

    def __init__(self, comparison: Comparison, answers: Answers, names: tuple[str, str]) -> None:
        self.comparison, self.names = comparison, names
        self._answers = answers
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="blind")
        self._made: dict[int, Future[tuple[str, str]]] = {}
        self._lock = threading.Lock()  # two tabs may ask at once

    def _pair(self, number: int) -> tuple[str, str]:
        for near in (number, number + 1):
            if near < len(self.comparison.prompts) and near not in self._made:
                prompt = self.comparison.prompts[near]
                self._made[near] = self._maker.submit(self._answers, prompt)
        try:
            return self._made[number].result()
        except BaseException:
            del self._made[number]  # the next to ask tries again
            raise

    def state(self) -> dict[str, Any]:
        """What the page shows: a pair, or the result. Pairs of equal answers are passed over."""
        comparison = self.comparison
        shown: dict[str, Any] = {}
        while not comparison.ended and not shown:
            number = comparison.next
            first, second = self._pair(number)
            if first.strip() == second.strip():
                comparison.answer(number, "neither", identical=True)
                continue
            left, right = (second, first) if comparison.swapped(number) else (first, second)
            shown = {"number": number, "prompt": comparison.prompts[number]}
            shown |= {"left": left, "right": right}
        told: dict[str, Any] = {"done": comparison.next, "total": len(comparison.prompts)}
        told["judged"] = comparison.judged
        if shown:
            return told | {"pair": shown}
        result = comparison.result()
        told["names"] = self.names
        return told | {"result": asdict(result) | {"sentence": sentence(result, *self.names)}}

    def _locked_state(self) -> dict[str, Any]:
        with self._lock:
            return self.state()

    def _locked_turn(self, key: str, number: int) -> dict[str, Any]:
        """Do what the key says, and show what follows."""
        comparison = self.comparison
        with self._lock:
            if key == "u":
                comparison.undo()
            elif key == "end":
                comparison.end()
            else:
                comparison.answer(number, _CHOICES[key][comparison.swapped(number)])
            return self.state()

    async def get(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._locked_state))

    async def post(self, request: Request) -> Response:
        """{"number", "key"}: 1 or 2 for the better answer, 0 cannot tell, u takes the last one back, end ends."""
        # A page elsewhere can send a form here, but no JSON without asking this server first.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "send application/json"}, status_code=415)
        try:
            body = await request.json()
            key, number = body["key"], int(body["number"])
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "send {number, key}"}, status_code=400)
        if key not in (*_CHOICES, "u", "end"):
            return JSONResponse({"error": "the keys are 1, 2, 0, u, end"}, status_code=400)
        return JSONResponse(await run_in_threadpool(self._locked_turn, key, number))


def build_blind_app(comparison: Comparison, answers: Answers, names: tuple[str, str]) -> Starlette:
    """The application, for loopback alone: it answers to no other name, so no page elsewhere can reach it."""
    page = _Page(comparison, answers, names)

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / "blind.html", headers=PAGE_HEADERS)

    async def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status_code=503)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/state", page.get),
            Route("/state", page.post, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={GristmillError: failed, OSError: failed},
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )
