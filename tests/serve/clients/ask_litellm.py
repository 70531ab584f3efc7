"""Ask a server by litellm. usage: ask_litellm.py PACKAGES RESULT URL"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

packages, result, url = sys.argv[1:]
sys.path.append(packages)

import litellm  # noqa: E402

MESSAGES = [{"role": "user", "content": "How is the weather in Oslo?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Bergen"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


def joined(chunks: Any) -> Any:
    whole = litellm.stream_chunk_builder(list(chunks))
    assert whole is not None
    return whole.model_dump()


def by(prefix: str, base: str) -> dict[str, Any]:
    where: dict[str, Any] = {"api_base": base, "api_key": "none", "num_retries": 0}
    plain = {**where, "model": f"{prefix}/plain", "messages": MESSAGES, "max_tokens": 20}
    thinker = {**where, "model": f"{prefix}/thinker", "messages": MESSAGES, "temperature": 0}
    thinker["max_tokens"] = 300
    told = {
        "whole": litellm.completion(**plain, temperature=0).model_dump(),
        "streamed": joined(
            litellm.completion(
                **plain, temperature=0, stream=True, stream_options={"include_usage": True}
            )
        ),
        "called": litellm.completion(**thinker, tools=TOOLS).model_dump(),
        "called, streamed": joined(litellm.completion(**thinker, tools=TOOLS, stream=True)),
    }
    try:
        litellm.completion(**{**plain, "model": f"{prefix}/gpt-9"})
    except Exception as error:
        told["unknown model"] = type(error).__name__
    try:
        litellm.completion(**{**plain, "messages": [{"role": "user", "content": "a b " * 2000}]})
    except Exception as error:
        told["too long"] = type(error).__name__
    return told


told: dict[str, Any] = {
    "openai": by("openai", f"{url}/v1"),
    "hosted_vllm": by("hosted_vllm", f"{url}/v1"),
    "anthropic": by("anthropic", url),
}
for prefix in ("openai", "hosted_vllm"):
    embedded = litellm.embedding(
        model=f"{prefix}/plain", input=["Heaps"], api_base=f"{url}/v1", api_key="none"
    )
    told[prefix]["embedding"] = embedded.model_dump()["data"][0]["embedding"]
told["text"] = litellm.text_completion(
    model="text-completion-openai/plain",
    prompt="Heaps",
    max_tokens=8,
    seed=3,
    api_base=f"{url}/v1",
    api_key="none",
).model_dump()["choices"][0]["text"]
Path(result).write_text(json.dumps(told, default=str), encoding="utf-8")
