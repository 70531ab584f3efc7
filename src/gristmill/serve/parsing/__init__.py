"""Reading answers: thoughts and calls of tools, out of text that is still arriving; and grammars that force calls."""

from gristmill.serve.parsing.events import (
    Call,
    Choice,
    Event,
    Message,
    Named,
    Parser,
    Reasoning,
    Text,
    Tool,
    ToolArguments,
    ToolEnd,
    ToolStart,
)
from gristmill.serve.parsing.fallback import for_template, knows_tools
from gristmill.serve.parsing.formats import Format, detect

__all__ = [
    "Call",
    "Choice",
    "Event",
    "Format",
    "Message",
    "Named",
    "Parser",
    "Reasoning",
    "Text",
    "Tool",
    "ToolArguments",
    "ToolEnd",
    "ToolStart",
    "detect",
    "for_template",
    "knows_tools",
]
