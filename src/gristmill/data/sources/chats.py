"""Chat exports to one document a conversation, "role: text" turns with blank lines between.

JSON (an array, a line each, or one object): `messages`, ShareGPT's `conversations`, ChatGPT's `mapping` tree
(the branch that is shown), Claude's `chat_messages`, OASST trees (at each turn the reply of the best rank),
and instruction pairs. Text: WhatsApp and IRC logs, cut at days.
Reasons: "no_turns", "bad_record", "too_large", "unreadable", "broken_archive", those of `decode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gristmill.data.sources.chat_logs import Turns, is_log, read_log, turns_text
from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.json_records import BadRecord, json_records
from gristmill.data.sources.opening import opened

MAX_RECORD_CHARS = 16_000_000
MAX_TURNS = 10_000
_ROLES: dict[str, str] = dict.fromkeys(
    ("human", "user", "prompter", "customer", "instruction", "question", "input"), "user"
)
_ROLES |= dict.fromkeys(
    (
        "gpt",
        "assistant",
        "bot",
        "chatgpt",
        "bard",
        "model",
        "claude",
        "bing",
        "ai",
        "output",
        "response",
    ),
    "assistant",
)
_PAIRS = (
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
)
_PAIRS += (("question", "answer"), ("input", "output"))


def read_chats(path: Path) -> Iterator[Raw]:
    """The conversations of a file, in its order."""
    name, read = printable(path.name), 0
    try:
        with opened(path) as stream:
            if stream.read(2000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
                yield from read_log(path, name)
                return
        if is_log(path):  # "[31.12.20, 21:41:05] Anna: …" begins like an array
            yield from read_log(path, name)
            return
        with opened(path) as stream:
            for number, record in json_records(stream, MAX_RECORD_CHARS):
                read = number
                yield conversation(f"{name}#{number}", record)
            if not read:
                yield Raw(name, reason="no_turns", kind="chat")
    except OSError as error:
        detail = {"error": error.strerror or str(error), "records_read": read}
        yield Raw(
            name, reason="broken_archive" if read else "unreadable", detail=detail, kind="chat"
        )


def conversation(source: str, record: Any) -> Raw:
    """A record of an export as a document."""
    if isinstance(record, BadRecord):
        detail: dict[str, Any] = {"error": record.error}
        if record.last:
            detail["rest_of_file"] = "not read"
        return Raw(source, reason=record.reason, detail=detail, kind="chat")
    turns = conversation_turns(record)
    if not turns:
        found = sorted(map(str, record))[:20] if isinstance(record, dict) else type(record).__name__
        return Raw(source, reason="no_turns", detail={"found": found}, kind="chat")
    detail = {"turns": len(turns)}
    title = date = ""
    if isinstance(record, dict):
        title = _string(record.get("title")) or _string(record.get("name"))
        date = _date(
            record.get("create_time") or record.get("created_at") or record.get("created_date")
        )
        model = _string(record.get("model") or record.get("default_model_slug"))
        if model:
            detail["model"] = model
    if len(turns) > MAX_TURNS:
        turns, detail["turns_left_out"] = turns[:MAX_TURNS], len(turns) - MAX_TURNS
    return Raw(source, turns_text(turns), detail=detail, date=date, kind="chat", title=title[:300])


def conversation_turns(record: Any) -> Turns:
    """(role, text) of each turn, roles being "user", "assistant", "system" or a name; [] when it is no chat."""
    if isinstance(record, list):
        return _listed(record)
    if not isinstance(record, dict):
        return []
    if isinstance(record.get("mapping"), dict):
        return _mapping(record)
    if isinstance(record.get("prompt"), dict) and "text" in record["prompt"]:
        return _best_branch(record["prompt"])
    for key in (
        "messages",
        "conversations",
        "conversation",
        "chat_messages",
        "turns",
        "dialogue",
        "items",
    ):
        if isinstance(record.get(key), list) and (turns := _listed(record[key])):
            system = _string(record.get("system") or record.get("system_prompt"))
            return [("system", system), *turns] if system and turns[0][0] != "system" else turns
    for asked, answered in _PAIRS:
        question, answer = _string(record.get(asked)), _string(record.get(answered))
        if question and answer:
            more = _string(record.get("input")) if asked == "instruction" else ""
            return [("user", f"{question}\n\n{more}" if more else question), ("assistant", answer)]
    return []


def _listed(turns: list[Any]) -> Turns:
    said = []
    for turn in turns:
        if not isinstance(turn, dict):
            return []
        who = (
            turn.get("role")
            or turn.get("from")
            or turn.get("sender")
            or turn.get("speaker")
            or turn.get("author")
        )
        if isinstance(who, dict):
            who = who.get("role") or who.get("name")
        text = ""
        for key in ("content", "value", "text", "message"):
            text = text or _content(turn.get(key))
        if isinstance(who, str) and text:
            said.append((_role(who), text))
    return said


def _content(content: Any) -> str:
    """Text of a message's content: a string, {"parts": […]}, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content.strip()
    if isinstance(content, dict):
        content = content.get("parts") or content.get("text") or []
        if isinstance(content, str):
            return content.strip()
    if not isinstance(content, list):
        return ""
    parts = [
        part if isinstance(part, str) else part.get("text")
        for part in content
        if isinstance(part, (str, dict))
    ]
    return "\n\n".join(part.strip() for part in parts if isinstance(part, str) and part.strip())


def _mapping(record: dict[str, Any]) -> Turns:
    """ChatGPT keeps every edit and retry in a tree; `current_node` is the leaf that its user saw last."""
    nodes = record["mapping"]
    leaf = record.get("current_node")
    if not isinstance(leaf, str) or leaf not in nodes:
        leaf = next((k for k in reversed(nodes) if not _dict(nodes[k]).get("children")), None)
    said: Turns = []
    seen = set()
    while isinstance(leaf, str) and isinstance(nodes.get(leaf), dict) and leaf not in seen:
        seen.add(leaf)
        message = nodes[leaf].get("message")
        if isinstance(message, dict):
            hidden = _dict(message.get("metadata")).get("is_visually_hidden_from_conversation")
            role = _dict(message.get("author")).get("role")
            text = _content(message.get("content"))
            if text and not hidden and role in ("user", "assistant"):
                said.append((role, text))
        leaf = nodes[leaf].get("parent")
    return said[::-1]


def _best_branch(node: dict[str, Any]) -> Turns:
    """An OASST tree's best branch: people ranked the replies, 0 being the best; unranked ones come last."""
    said: Turns = []
    while node:
        text = _string(node.get("text"))
        if text:
            said.append((_role(_string(node.get("role"))), text))
        replies = [
            reply
            for reply in _list(node.get("replies"))
            if isinstance(reply, dict) and not reply.get("deleted") and _string(reply.get("text"))
        ]
        if not replies or len(said) >= MAX_TURNS:
            break
        node = min(replies, key=lambda reply: _rank(reply.get("rank")))
    return said


def _rank(rank: Any) -> float:
    return float(rank) if isinstance(rank, (int, float)) else float("inf")


def _role(who: str) -> str:
    """The usual name of a role; other names stay, made fit for one line."""
    return _ROLES.get(who.strip().lower(), " ".join(who.replace(":", " ").split())[:80] or "user")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _string(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _date(value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return datetime.fromtimestamp(int(value), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (OverflowError, ValueError, OSError):
            return ""
    found = re.match(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d)?", _string(value))
    return found[0].replace(" ", "T") + ("Z" if len(found[0]) > 10 else "") if found else ""
