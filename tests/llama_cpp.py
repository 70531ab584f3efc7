"""llama.cpp (through xllamacpp) as the oracle of GGUF files: what it says next, and its log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class LlamaCpp:
    """One loaded file, asked in process; url: where it also listens, on loopback."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url: str = server.listening_address

    def top(self, ids: list[int], count: int = 20) -> dict[int, float]:
        """Log-probabilities of the likeliest next tokens after `ids`, by id."""
        answer = self._ask({"prompt": ids, "max_tokens": 1, "logprobs": count, "n_probs": count})
        (position,) = answer["choices"][0]["logprobs"]["content"]
        return {entry["id"]: entry["logprob"] for entry in position["top_logprobs"]}

    def continues(self, prompt: str | list[int], count: int) -> str:
        """The greedy continuation's text."""
        return self._ask({"prompt": prompt, "max_tokens": count})["choices"][0]["text"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = self._server.handle_completions(
            {"temperature": 0, "cache_prompt": False, **request}
        )
        assert "choices" in answer, answer
        return answer


@contextmanager
def running(path: Path, context: int) -> Iterator[LlamaCpp]:
    """With a float32 cache and plain attention: its defaults cost 4e-3 of a log-probability."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = context, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    try:
        yield LlamaCpp(server)
    finally:
        del server
