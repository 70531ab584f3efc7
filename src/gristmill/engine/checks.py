"""What is asked of the engine, looked at before anything is done: each fault is a RequestError that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index

from gristmill.errors import RequestError
from gristmill.lm import Request, SamplingParams
from gristmill.tokenizer import Tokenizer


def listed(given: object, example: str) -> list:
    """A list of what was given as one. A single text is none: its characters would be taken for texts."""
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise RequestError(f"give a list, as in {example}, not {given!r:.60}")
    return list(given)


def check_request(request: object) -> None:
    if not isinstance(request, Request):
        raise RequestError(f'a request is a Request("…", SamplingParams(…)), not {request!r:.60}')


def check_ids(params: SamplingParams, vocab_size: int) -> None:
    for name, ids in (
        ("logit_bias", params.logit_bias),
        ("allowed_token_ids", params.allowed_token_ids or ()),
    ):
        for id in ids:
            if not 0 <= id < vocab_size:
                raise RequestError(
                    f"{name}: there is no token {id} in a vocabulary of {vocab_size}"
                )


def as_ids(text: str | Sequence[int], tokenizer: Tokenizer, size: int) -> list[int]:
    """The token ids of a text, which may be given as such; `size`: of the model's vocabulary."""
    given = tokenizer.prompt_ids(text) if isinstance(text, str) else text
    try:
        ids = [index(i) for i in given]
    except TypeError:
        raise RequestError(f"a text is a string or token ids, not {text!r:.60}") from None
    for i in ids:
        if not 0 <= i < size:
            raise RequestError(f"token id {i} is outside the vocabulary of {size}")
    return ids


def check_sizes(
    block_size: int, cache_tokens: int | str, max_rows: int, step_tokens: int, draft_tokens: int
) -> None:
    if block_size < 16 or block_size % 16:
        raise RequestError(f"block_size must be a multiple of 16, not {block_size}")
    if cache_tokens != "auto" and (isinstance(cache_tokens, str) or cache_tokens < 1):
        raise RequestError(f'cache_tokens must be "auto" or at least 1, not {cache_tokens!r}')
    for name, value in (
        ("max_rows", max_rows),
        ("step_tokens", step_tokens),
        ("draft_tokens", draft_tokens),
    ):
        if value < 1:
            raise RequestError(f"{name} must be at least 1, not {value}")
