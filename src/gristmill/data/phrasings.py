"""How each question is worded, and what its answer is. Answers are parts of the fact, never invented.

A form has several phrasings; the first of "what" is the one that the multiple-choice test asks.
"""

from __future__ import annotations

from gristmill.data.docstrings import clip
from gristmill.data.facts import Fact
from gristmill.data.grounding import bare_signature, described

_CODE = ("module", "class", "function", "method")

_WHAT = (
    "What does `{name}` do?",
    "Explain `{name}`.",
    "What is `{name}` for?",
    "Tell me about `{name}`.",
    "Describe `{name}` in one sentence.",
    "what does {name} do",
    "I have a question about `{name}`. What does it do?",
    "In Python, what does `{name}` do?",
)
_WHAT_THING = (
    "What is `{name}`?",
    "Explain `{name}`.",
    "What is `{name}` for?",
    "Tell me about `{name}`.",
    "Describe the {kind} `{name}` in one sentence.",
    "what is {name}",
    "What is the {kind} `{name}` for?",
    "In Python, what is `{name}`?",
)
_TOPIC = (
    "Explain `{name}`.",
    "What does Python's help say about `{name}`?",
    "What is `{name}` in Python?",
    "Tell me about {title}.",
    "Describe `{name}` in one sentence.",
    "what is {name}",
)
_SECTION = (
    "What do the documents say about {name}?",
    "Tell me about {name}.",
    'What does the section "{name}" say?',
    "Summarize {name}.",
    "Explain {name}.",
    "What is written about {name}?",
)
_ARGS = (
    "What arguments does `{name}` take?",
    "What is the signature of `{name}`?",
    "How do I call `{name}`?",
    "Which parameters does `{name}` have?",
    "How is `{name}` called?",
)
_EXAMPLE = (
    "Show an example of `{name}`.",
    "Give me an example of `{name}`.",
    "How do I use `{name}`? Show code.",
    "example of {name}",
)
_RETURNS = (
    "What does `{name}` return?",
    "What do I get back from `{name}`?",
    "What is the return value of `{name}`?",
)
_WHICH = (
    "Which {kind} does this: {summary}",
    "Which {kind} fits this description? {summary}",
    "Name the {kind}: {summary}",
    "I need this {kind}: {summary} What is it called?",
)

FORMS = ("what", "args", "example", "returns", "which")


def questions(form: str, fact: Fact) -> tuple[str, ...]:
    """Every phrasing of a form about a fact; () where the form does not fit the fact."""
    if answer(form, fact) is None:
        return ()
    if form == "what":
        templates = {
            "topic": _TOPIC,
            "section": _SECTION,
            "class": _WHAT_THING,
            "module": _WHAT_THING,
        }.get(fact.kind, _WHAT)
    else:
        templates = {"args": _ARGS, "example": _EXAMPLE, "returns": _RETURNS, "which": _WHICH}[form]
    words = {
        "name": fact.name,
        "kind": fact.kind,
        "summary": fact.summary,
        "title": fact.module,
    }
    return tuple(template.format(**words) for template in templates)


def answer(form: str, fact: Fact) -> str | None:
    """The right answer, or None where the fact does not have one.

    what: the name with the summary. args: name and arguments without annotations. example: the doctest. returns: the
    returned thing. which: the name.
    """
    if form == "what":
        return described(fact.name, fact.summary)
    if fact.kind not in _CODE:
        return None
    if form == "which":
        return f"`{fact.name}`"
    if form == "args":
        call = f"{fact.name}{bare_signature(fact.signature)}"
        fits = fact.kind in ("function", "method", "class") and fact.signature
        return f"`{call}`" if fits and call == clip(call, 120) else None
    if form == "example":
        return f"```python\n{fact.example}\n```" if fact.example else None
    if form == "returns":
        return fact.returns if fact.returns and fact.returns != fact.summary else None
    raise ValueError(f"unknown form {form!r}; forms are {', '.join(FORMS)}")
