"""A load of streaming clients, in a process of its own: bare sockets, so that the client costs little.

    python -m benchmarks.serve.load URL PLAN.json RESULT.json

PLAN: {"model", "clients", "seconds", "prompts": [[text, tokens], ...]}. Each client asks one after the other, the
prompts by turns, and starts no new one after `seconds`. It runs under any Python and imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

LIMIT = 300.0  # seconds for one answer, beyond which it is counted lost


@dataclass
class Answer:
    prompt: int
    client: int
    started: float
    times: list[float] = field(default_factory=list)  # of pieces, since `started`
    text: str = ""
    tokens: int = 0
    error: str = ""


async def ask(url: str, model: str, prompt: str, tokens: int, answer: Answer) -> None:
    """Fill in `answer`."""
    place = urlsplit(url)
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    try:
        answer.started = perf_counter()
        writer.write(head.encode() + body)
        status = await reader.readline()
        done = False
        async for line in reader:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                answer.error = str(event["error"])[:200]
                return
            if event.get("usage"):
                answer.tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                if choice["text"]:
                    answer.text += choice["text"]
                    answer.times.append(perf_counter() - answer.started)
        if b" 200 " not in status:
            answer.error = status.decode(errors="replace").strip()
        elif not done:
            answer.error = "the stream ended without [DONE]"
    finally:
        writer.close()


async def client(number: int, url: str, plan: dict, answers: list[Answer], end: float) -> None:
    prompts, turn = plan["prompts"], number
    while perf_counter() < end:
        prompt, tokens = prompts[turn % len(prompts)]
        answer = Answer(turn % len(prompts), number, perf_counter())
        answers.append(answer)
        try:
            await asyncio.wait_for(ask(url, plan["model"], prompt, tokens, answer), LIMIT)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        turn += plan["clients"]


async def run(url: str, plan: dict) -> dict:
    answers: list[Answer] = []
    start = perf_counter()
    end = start + plan["seconds"]
    await asyncio.gather(*(client(i, url, plan, answers, end) for i in range(plan["clients"])))
    return {"seconds": perf_counter() - start, "answers": [vars(answer) for answer in answers]}


if __name__ == "__main__":
    with open(sys.argv[2]) as file:
        wanted = json.load(file)
    result = asyncio.run(run(sys.argv[1], wanted))
    with open(sys.argv[3], "w") as file:
        json.dump(result, file)
