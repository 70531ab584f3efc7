"""A small model that has learned a few conversations by heart: it thinks, calls a tool, and reads what that gave."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from gristmill.formats import Model
from gristmill.model import ModelConfig
from gristmill.tokenizer import train_bpe
from tests.tiny_model import learned

TEMPLATE = """\
{%- if tools %}<|im_start|>tools
{{ tools | map(attribute='function') | map(attribute='name') | join(' ') }}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% generation %}{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>{% endgeneration %}
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Bergen"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
ASKED, THOUGHT, SAID, TOLD = (
    "How is the weather in Oslo?",
    "I do not know; a tool does.",
    "Let me look.",
    "It rains in Oslo.",
)
ARGUMENTS = '{"city": "Oslo"}'
RESULT = "rain, 4 degrees"
GREETING, ANSWER, NEXT, LAST = "Good day!", "Good day to you.", "And who are you?", "A small model."
PUZZLE, PUZZLING, SOLVED = "Two and two?", "That is easy.", "Four."

_CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
}
_TOOLS = [{"type": "function", "function": {"name": "weather"}}]
_LESSONS: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    (
        [
            {"role": "user", "content": ASKED},
            {
                "role": "assistant",
                "content": SAID,
                "reasoning_content": THOUGHT,
                "tool_calls": [_CALL],
            },
            {"role": "tool", "content": RESULT},
            {"role": "assistant", "content": TOLD},
        ],
        _TOOLS,
    ),
    (
        [
            {"role": "user", "content": GREETING},
            {"role": "assistant", "content": ANSWER},
            {"role": "user", "content": NEXT},
            {"role": "assistant", "content": LAST},
        ],
        [],
    ),
    (
        [
            {"role": "user", "content": PUZZLE},
            {"role": "assistant", "content": SOLVED, "reasoning_content": PUZZLING},
        ],
        [],
    ),
]


@cache
def thinking_model(steps: int = 300) -> Model:
    texts = [
        TEMPLATE,
        *(str(message) for messages, _ in _LESSONS for message in messages),
    ]
    tokenizer = train_bpe(iter(texts * 3), 448)
    tokenizer.config["chat_template"] = TEMPLATE
    config = ModelConfig(
        vocab_size=448,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=128,
        max_seq_len=1024,
    )
    rows, masks = [], []
    for messages, tools in _LESSONS:
        ids, mask = tokenizer.chat_ids_with_mask(messages, tools=tools)
        rows.append(torch.tensor(ids))
        # What the user and the tool say is between the same marks.
        turns = [message["role"] == "assistant" for message in messages]
        masks.append(_only(torch.tensor(mask), turns))
    return Model(learned(config, rows, masks, steps), tokenizer)


def _only(mask: torch.Tensor, turns: list[bool]) -> torch.Tensor:
    """The mask without the turns that are not wanted; a turn is a run of True."""
    begins = mask & ~torch.cat([torch.tensor([False]), mask[:-1]])
    number = torch.cumsum(begins, 0) - 1
    return mask & torch.tensor(turns)[number.clamp(min=0)]
