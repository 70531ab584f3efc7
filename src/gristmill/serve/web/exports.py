"""A conversation as a file: to read, to keep, to train on."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import Response

from gristmill.serve.errors import FieldError
from gristmill.serve.web.origin import download

_OF_A_MESSAGE = ("role", "content", "tool_calls", "tool_call_id")


def export(document: dict[str, Any], form: str) -> Response:
    """markdown: the branch that is shown. json: all of the document. messages: the branch as a row of SFT data.

    Raises FieldError for another form.
    """
    stem = re.sub(r"[^\w\-]+", "-", document["title"]).strip("-")[:80] or "conversation"
    match form:
        case "markdown":
            return _download(markdown(document), f"{stem}.md", "text/markdown")
        case "json":
            text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
            return _download(text, f"{stem}.json", "application/json")
        case "messages":
            row = {"messages": messages(document)}
            return _download(
                json.dumps(row, ensure_ascii=False) + "\n", f"{stem}.jsonl", "application/jsonl"
            )
    raise FieldError("format", f"must be markdown, json or messages, not {form!r:.80}")


def _download(text: str, name: str, media_type: str) -> Response:
    return download(text.encode(), name, media_type)


def branch(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes from the root to the current one."""
    nodes = {node["id"]: node for node in document["nodes"]}
    at, found = document["current"], []
    while at is not None:
        found.append(nodes[at])
        at = nodes[at]["parent"]
    return found[::-1]


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Without answers that have nothing in them, which teach nothing."""
    system = [{"role": "system", "content": document["system"]}] if document["system"] else []
    said = [
        {name: node[name] for name in _OF_A_MESSAGE if node.get(name) is not None}
        for node in branch(document)
        if node["role"] != "assistant" or node["content"] or node.get("tool_calls")
    ]
    return system + said


def markdown(document: dict[str, Any]) -> str:
    """A heading for the title and for each message; thoughts are quoted, and passages listed, as they stand in it."""
    parts = [f"# {' '.join(document['title'].split()) or 'Conversation'}"]
    if document["system"]:
        parts += ["## System", document["system"]]
    for node in branch(document):
        who = node["role"].capitalize()
        by = node.get("model") if node["role"] == "assistant" else None
        parts.append(f"## {who} ({by})" if by else f"## {who}")
        parts += [f"Attached: {each['name']}" for each in node.get("attachments") or ()]
        if node.get("reasoning"):
            parts.append("\n".join(f"> {line}".rstrip() for line in node["reasoning"].split("\n")))
        parts.append(node["content"])
        calls = [call["function"] for call in node.get("tool_calls") or ()]
        parts += [f"Calls `{call['name']}`:\n\n```json\n{call['arguments']}\n```" for call in calls]
        cited = node.get("citations") or ()
        parts += ["\n".join(f"- {c['title']} (`{c['source']}:{c['line']}`)" for c in cited)]
    return "\n\n".join(part for part in parts if part) + "\n"
