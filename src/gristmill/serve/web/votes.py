"""Votes between two answers, and the preferences that they make: what `gristmill align` and others train on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gristmill.serve.store import Store, Vote
from gristmill.serve.web.origin import (
    State,
    Strict,
    answer,
    download,
    octets,
    parsed,
    route,
    store_of,
)

MAX_BYTES = 8 << 20
MAX_TEXT = 1 << 20  # characters
Text = Annotated[str, Field(max_length=MAX_TEXT)]
ANONYMOUS = "anonymous"


class Message(Strict):
    role: Literal["system", "user", "assistant"]
    content: Text


class Candidate(Strict):
    model: Annotated[str, Field(min_length=1, max_length=200)]
    text: Text


class Ballot(Strict):
    """answers: the first and the second, as they were shown. choice: "bad" when neither is any good."""

    prompt: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    answers: Annotated[list[Candidate], Field(min_length=2, max_length=2)]
    choice: Literal["first", "second", "tie", "bad"]
    reason: Annotated[str | None, Field(max_length=4000)] = None
    annotator: Annotated[str | None, Field(max_length=200)] = None
    blind: bool


def routes(state: State) -> list[Route]:
    async def vote(request: Request) -> Response:
        store, raw = store_of(state), await octets(request, MAX_BYTES)
        return answer({"votes": await run_in_threadpool(_add, store, raw)})

    async def summary(request: Request) -> Response:
        counts = await run_in_threadpool(store_of(state).vote_counts)
        return answer({"pairs": pairs(counts)})

    async def export(request: Request) -> Response:
        content, left_out = await run_in_threadpool(_exported, store_of(state))
        told = {"x-gristmill-left-out": str(left_out)}
        return download(content, "preferences.jsonl", "application/jsonl", **told)

    return [
        route("/app/votes", "POST", vote),
        route("/app/votes/summary", "GET", summary),
        route("/app/votes/export", "GET", export),
    ]


def _add(store: Store, raw: bytes) -> int:
    ballot = parsed(raw, Ballot)
    first, second = ballot.answers
    vote = Vote(
        [message.model_dump() for message in ballot.prompt],
        (first.model, second.model),
        (first.text, second.text),
        ballot.choice,
        ballot.reason or "",
        ballot.annotator or "",
        ballot.blind,
    )
    return store.add_vote(vote)


def pairs(counts: list[tuple[str, str, str, int]]) -> list[dict[str, Any]]:
    """What was chosen between each two models, whichever was shown first; `a` is the first by name."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for first, second, choice, count in counts:
        straight = first <= second
        a, b = (first, second) if straight else (second, first)
        won = "a_wins" if (choice == "first") == straight else "b_wins"
        column = {"tie": "ties", "bad": "bad"}.get(choice, won)
        found.setdefault((a, b), Counter())[column] += count
    columns = ("a_wins", "b_wins", "ties", "bad")
    return [
        {"a": a, "b": b, **{c: seen[c] for c in columns}} for (a, b), seen in sorted(found.items())
    ]


def preference(vote: Vote) -> dict[str, Any] | None:
    """A row of a preferences file in conversational form; None where neither answer is the better one."""
    if vote.choice not in ("first", "second"):
        return None
    order = (0, 1) if vote.choice == "first" else (1, 0)
    chosen, rejected = ([{"role": "assistant", "content": vote.texts[i]}] for i in order)
    return {
        "prompt": vote.prompt,
        "chosen": chosen,
        "rejected": rejected,
        "annotator": vote.annotator or ANONYMOUS,
        "reason": vote.reason,
        "models": {"chosen": vote.models[order[0]], "rejected": vote.models[order[1]]},
    }


def _exported(store: Store) -> tuple[bytes, int]:
    """(JSONL, votes without a row)."""
    given = [preference(vote) for vote in store.votes()]
    rows = [row for row in given if row is not None]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return lines.encode(), len(given) - len(rows)
