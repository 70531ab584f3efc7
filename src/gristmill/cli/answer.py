"""An answer of `generate` as JSON, the same from --json and from a line of --batch; and whether it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gristmill.lm import Completion, Grammar, SamplingParams

if TYPE_CHECKING:
    from gristmill.engine import Engine

CUT = "cut before it had the form that was asked for; --max-tokens gives more room"


def answer(engine: Engine, params: SamplingParams, found: Sequence[Completion]) -> dict[str, Any]:
    """The first of the answers, the others in `alternatives`; without what was not asked for.

    `complete` says of a text that must have a form whether it has it; `seed` is there where one was drawn with.
    """
    first, *others = (_one(engine, params, completion) for completion in found)
    return first | ({"alternatives": others} if others else {})


def is_cut(engine: Engine, params: SamplingParams, completion: Completion) -> bool:
    """Whether the limit of tokens came before the text had the form that was asked for.

    A text at the limit may have it all the same: "12" of [0-9]+, or JSON whose last token was the last allowed.
    """
    if params.grammar is None or completion.finish_reason != "length":
        return False
    return not _fits(engine, params.grammar, completion.token_ids)


def _fits(engine: Engine, grammar: Grammar, ids: Sequence[int]) -> bool:
    from gristmill.engine.grammar import compile_grammar

    matcher = compile_grammar(grammar, engine.tokenizer).fresh.deep_copy()
    return matcher.consume_tokens(list(ids)) and matcher.is_accepting()


def _one(engine: Engine, params: SamplingParams, completion: Completion) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": completion.text, "finish_reason": completion.finish_reason}
    if params.grammar is not None:
        shown["complete"] = not is_cut(engine, params, completion)
    shown["prompt_tokens"] = completion.prompt_tokens
    shown["output_tokens"] = len(completion.token_ids)
    shown["token_ids"] = completion.token_ids
    if params.temperature > 0:
        shown["seed"] = completion.seed
    if completion.logprobs is not None:
        shown["logprobs"] = [
            {
                **_token(engine, token.token_id, token.logprob),
                "rank": token.rank,
                "sampled": token.sampled,
                "top": [_token(engine, id, logprob) for id, logprob in token.top],
            }
            for token in completion.logprobs
        ]
    return shown


def _token(engine: Engine, id: int, logprob: float) -> dict[str, Any]:
    from gristmill.engine.inspection import spelled

    text = spelled(engine.tokenizer.token_bytes(id))
    return {"token": text, "token_id": id, "logprob": logprob}
