"""Tools for any chat template: those that do not know `tools` are told them in words, in the Hermes way.

Then what earlier calls and their results were stands in the conversation as text, and the answer is read as Hermes
writes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gristmill.serve.parsing.events import Tool
from gristmill.serve.parsing.hermes import CLOSE, OPEN

Messages = list[dict[str, Any]]

_BLOCK = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_STRING = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)
_ARGUMENTS = r"""(?:\.arguments|\[['"]arguments['"]\])"""
# DeepSeek's: `… + tool['function']['arguments'] + …`, which only a string can be.
_JOINS_ARGUMENTS = re.compile(rf"\+\s*[\w.\[\]'\"]*{_ARGUMENTS}\s*(?:\+|\}}|-)")
_REFUSES_SYSTEM = re.compile(r"raise_exception\(\s*['\"][^'\"]*[Ss]ystem")
_WANTS_NINE = re.compile(r"length\s*!=\s*9")  # Mistral's, of the ids of calls

_INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def knows_tools(template: str) -> bool:
    """Whether a chat template does something with `tools`."""
    blocks = _BLOCK.findall(_COMMENT.sub("", template))
    return any(re.search(r"(?<![.\w])tools\b", _STRING.sub("", block)) for block in blocks)


def for_template(
    template: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> tuple[Messages, list[dict[str, Any]]]:
    """Messages in OpenAI's form as this template takes them, and the tools for its variable `tools`: none where they
    are told in the messages. What is malformed in them is passed on as it is."""
    offered = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in tools
    ]
    if knows_tools(template):
        as_text = _JOINS_ARGUMENTS.search(template) is not None
        short = _WANTS_NINE.search(template) is not None
        return [_understood(message, as_text, short) for message in messages], offered
    told = _in_words(messages)
    if not offered:
        return told, []
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in offered)
    introduction = _INTRODUCTION.format(tools=lines)
    role = "user" if _REFUSES_SYSTEM.search(template) else "system"
    if told and told[0].get("role") == role:
        first, rest = told[0], told[1:]
        parts = [str(first.get("content") or ""), introduction]
        content = "\n\n".join(part for part in (parts if role == "system" else parts[::-1]) if part)
        return [{**first, "content": content}, *rest], []
    return [{"role": role, "content": introduction}, *told], []


def _understood(message: Mapping[str, Any], as_text: bool, short_ids: bool) -> dict[str, Any]:
    """Arguments as objects, where they are JSON of one, or as text; ids of nine characters."""
    made = dict(message)
    if isinstance(made.get("tool_calls"), list):
        made["tool_calls"] = [_call(call, as_text, short_ids) for call in made["tool_calls"]]
    if short_ids and isinstance(made.get("tool_call_id"), str):
        made["tool_call_id"] = _nine(made["tool_call_id"])
    return made


def _call(call: Any, as_text: bool, short_ids: bool) -> Any:
    if not isinstance(call, Mapping):
        return call
    made = dict(call)
    if isinstance(made.get("function"), Mapping):
        made["function"] = function = dict(made["function"])
        if "arguments" in function:
            change = _text if as_text else _object
            function["arguments"] = change(function["arguments"])
    if short_ids and isinstance(made.get("id"), str):
        made["id"] = _nine(made["id"])
    return made


def _object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _nine(id: str) -> str:
    if re.fullmatch("[a-zA-Z0-9]{9}", id):
        return id
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


def _in_words(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Calls and results as text. Results come as the user's, joined with what the user says next: many templates
    insist that user and assistant take turns."""
    told: Messages = []
    after_result = False
    for message in messages:
        made = dict(message)
        calls = made.pop("tool_calls", None)
        is_result = made.get("role") == "tool"
        if isinstance(calls, list) and calls:
            parts = [made.get("content") or "", *map(_written, calls)]
            made["content"] = "\n".join(str(part) for part in parts if part)
        elif is_result:
            content = made.get("content") or ""
            made = {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
        if after_result and made.get("role") == "user":
            told[-1]["content"] += f"\n{made.get('content') or ''}"
        else:
            told.append(made)
        after_result = is_result
    return told


def _written(call: Any) -> str:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return f"{OPEN}\n{json.dumps(call, ensure_ascii=False, default=str)}\n{CLOSE}"
    name = json.dumps(function.get("name"), ensure_ascii=False, default=str)
    arguments = _text(function.get("arguments", "{}"))
    return f'{OPEN}\n{{"name": {name}, "arguments": {arguments}}}\n{CLOSE}'
