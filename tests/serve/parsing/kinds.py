"""The formats as models write them, spelled out here once more, and a tiny model with the vocabulary of each."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from tokenizers import AddedToken

from gristmill.engine import Engine
from gristmill.formats import Model
from gristmill.model import ModelConfig, Transformer
from gristmill.serve.parsing import Event, Format, Message, Parser, Tool, detect
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.tiny_model import randomized

Call = tuple[str, str]  # a name, and arguments as JSON


def _hermes(calls: Sequence[Call]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{n}", "arguments": {a}}}\n</tool_call>' for n, a in calls
    )


def _llama(calls: Sequence[Call]) -> str:
    return "; ".join(f'{{"name": "{n}", "parameters": {a}}}' for n, a in calls)


def _python_tag(calls: Sequence[Call]) -> str:
    return "<|python_tag|>" + "; ".join(
        f'{{"type": "function", "name": "{n}", "parameters": {a}}}' for n, a in calls
    )


def _mistral(calls: Sequence[Call]) -> str:
    listed = ", ".join(f'{{"arguments": {a}, "name": "{n}", "id": "x"}}' for n, a in calls)
    return f"[TOOL_CALLS] [{listed}]"


def _mistral_named(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{n}[ARGS]{a}" for n, a in calls)


def _deepseek(calls: Sequence[Call]) -> str:
    each = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{n}\n```json\n{a}\n```<｜tool▁call▁end｜>"
        for n, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"


def _deepseek_newer(calls: Sequence[Call]) -> str:
    each = "".join(
        f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{a}<｜tool▁call▁end｜>" for n, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{each}<｜tool▁calls▁end｜>"


def _json(calls: Sequence[Call]) -> str:
    return "\n".join(f'{{"name": "{n}", "arguments": {a}}}' for n, a in calls)


DEEPSEEK = "<｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> <｜tool▁sep｜> <｜tool▁call▁end｜> <｜tool▁calls▁end｜>"


@dataclass(frozen=True)
class Kind:
    """written: calls as the model writes them. bare: no text may stand before them."""

    template: str
    marks: str
    special: bool
    written: Callable[[Sequence[Call]], str]
    bare: bool = False

    @cached_property
    def format(self) -> Format:
        return detect(self.template, self.tokenizer.special_tokens, self.tokenizer.is_special)

    @property
    def tokenizer(self) -> Tokenizer:
        return _tokenizer(self.marks, self.special)

    @property
    def engine(self) -> Engine:
        return _engine(self.marks, self.special)

    def ids(self, text: str) -> list[int]:
        """With the marks in it as the tokens that they are."""
        return self.tokenizer.backend.encode(text, add_special_tokens=False).ids


THINKS = "{% if false %}<think></think>{% endif %}"
TELLS = "{% for tool in tools %}{{ tool }}{% endfor %}"
KINDS = {
    "hermes": Kind(
        TELLS + THINKS + "<tool_call>",
        "<tool_call> </tool_call> <think> </think>",
        False,
        _hermes,
    ),
    "hermes, in letters": Kind("", "", False, _hermes),
    "llama3": Kind(TELLS, "<|python_tag|>", True, _llama, bare=True),
    "llama3, tag": Kind(TELLS, "<|python_tag|>", True, _python_tag),
    "mistral": Kind(TELLS + "[TOOL_CALLS] [", "[TOOL_CALLS]", True, _mistral),
    "mistral, named": Kind(
        TELLS + "[TOOL_CALLS] [ARGS][/THINK]",
        "[TOOL_CALLS] [ARGS] [THINK] [/THINK]",
        True,
        _mistral_named,
    ),
    "deepseek": Kind(TELLS + DEEPSEEK + "```json</think>", DEEPSEEK, False, _deepseek),
    "deepseek, newer": Kind(TELLS + DEEPSEEK, DEEPSEEK, False, _deepseek_newer),
    "json": Kind(TELLS, "", False, _json, bare=True),
}


def fold(parser: Parser, pieces: Sequence[str]) -> tuple[Message, list[Event]]:
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    message = Message()
    for event in events:
        message.add(event)
    return message, events


def seen(message: Message) -> tuple[str, str, list[tuple[str, str, bool]]]:
    """All but the ids, which are made anew for every answer."""
    calls = [(call.name, call.arguments, call.complete) for call in message.tool_calls]
    return message.content, message.reasoning, calls


@cache
def _tokenizer(marks: str, special: bool) -> Tokenizer:
    tokenizer = train_bpe(iter([Path(heapq.__file__).read_text(encoding="utf-8"), "naïve 🙂"]), 450)
    tokenizer.backend.add_tokens([AddedToken(mark, special=special) for mark in marks.split()])
    return Tokenizer(tokenizer.backend, tokenizer.config)


@cache
def _engine(marks: str, special: bool) -> Engine:
    config = ModelConfig(
        vocab_size=512,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
        max_seq_len=320,
    )
    network = randomized(Transformer(config), seed=0)
    return Engine(Model(network, _tokenizer(marks, special)))


TOOLS = [Tool("get_weather"), Tool("get"), Tool("ask.user-2")]
