"""An answer as content blocks, and the events by which a stream tells them: both from the same parsed events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gristmill.serve.anthropic.arguments import Arguments
from gristmill.serve.openai.shapes import dumps
from gristmill.serve.parsing import Event, Reasoning, Text, ToolArguments, ToolEnd, ToolStart

# Required, and sent back by clients that keep thoughts. Nobody signs them here, and nobody checks it.
SIGNATURE = "unsigned"


def event(type: str, fields: str = "") -> bytes:
    """fields: the others, as they stand in a JSON object."""
    separator = ", " if fields else ""
    return f'event: {type}\ndata: {{"type": "{type}"{separator}{fields}}}\n\n'.encode()


PING = event("ping")
STOP = event("message_stop")


@dataclass
class Block:
    type: Literal["text", "thinking", "tool_use"]
    id: str = ""
    name: str = ""
    said: list[str] = field(default_factory=list)
    arguments: Arguments = field(default_factory=Arguments)

    def start(self) -> str:
        """Its JSON before anything was said."""
        match self.type:
            case "text":
                return '{"type": "text", "text": ""}'
            case "thinking":
                return '{"type": "thinking", "thinking": "", "signature": ""}'
            case "tool_use":
                return self._call("{}")

    def whole(self) -> str:
        """Its JSON."""
        match self.type:
            case "text":
                return dumps({"type": "text", "text": "".join(self.said)})
            case "thinking":
                thought = "".join(self.said)
                return dumps({"type": "thinking", "thinking": thought, "signature": SIGNATURE})
            case "tool_use":
                return self._call(self.arguments.input())

    def _call(self, input: str) -> str:
        head = dumps({"type": "tool_use", "id": self.id, "name": self.name})
        return f'{head[:-1]}, "input": {input}}}'


class Content:
    """The blocks so far; the last one may still be open."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open = False

    @property
    def called(self) -> bool:
        """Whether there is a call that can be made."""
        return any(block.arguments.complete for block in self.blocks)

    def take(self, event: Event) -> list[bytes]:
        """Add it; what a stream says of it."""
        match event:
            case Text(text):
                return [*self._ensure("text"), self._said("text", text)]
            case Reasoning(text):
                return [*self._ensure("thinking"), self._said("thinking", text)]
            case ToolStart(_, id, name):
                return self._begin(Block("tool_use", id, name))
            case ToolArguments(_, text):
                sound = self.blocks[-1].arguments.sound(text)
                return [self._delta("input_json_delta", "partial_json", sound)] if sound else []
            case ToolEnd():
                return self.close()

    def close(self) -> list[bytes]:
        """End the open block, if there is one."""
        if not self._open:
            return []
        self._open = False
        stop = event("content_block_stop", f'"index": {len(self.blocks) - 1}')
        if self.blocks[-1].type == "thinking":
            return [self._delta("signature_delta", "signature", SIGNATURE), stop]
        return [stop]

    def whole(self) -> str:
        """The JSON of all blocks."""
        return f"[{', '.join(block.whole() for block in self.blocks)}]"

    def _ensure(self, type: Literal["text", "thinking"]) -> list[bytes]:
        return [] if self._open and self.blocks[-1].type == type else self._begin(Block(type))

    def _begin(self, block: Block) -> list[bytes]:
        told = self.close()
        self.blocks.append(block)
        self._open = True
        fields = f'"index": {len(self.blocks) - 1}, "content_block": {block.start()}'
        return [*told, event("content_block_start", fields)]

    def _said(self, name: str, text: str) -> bytes:
        self.blocks[-1].said.append(text)
        return self._delta(f"{name}_delta", name, text)

    def _delta(self, type: str, name: str, text: str) -> bytes:
        delta = f'"delta": {{"type": "{type}", "{name}": {dumps(text)}}}'
        return event("content_block_delta", f'"index": {len(self.blocks) - 1}, {delta}')


def usage(
    prompt_tokens: int, cached_tokens: int, output_tokens: int, thinking_tokens: int = 0
) -> dict[str, Any]:
    """What is put into the cache is not counted apart: it costs nothing."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": output_tokens,
        "output_tokens_details": {"thinking_tokens": thinking_tokens},
    }
