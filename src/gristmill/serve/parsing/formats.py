"""How a model writes thoughts and calls, known from its chat template and vocabulary.

With the choice "none" the tools are not told to the model at all, and the parser is made for none: whatever looks
like a call is content.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gristmill.lm import Grammar
from gristmill.serve.parsing import bare, deepseek, hermes, mistral
from gristmill.serve.parsing.calls import CallScript
from gristmill.serve.parsing.events import Choice, Named, Parser, Tool
from gristmill.serve.parsing.fallback import knows_tools
from gristmill.serve.parsing.forms import after_thought
from gristmill.serve.parsing.grammars import Mark, Shape, Writer
from gristmill.serve.parsing.plain import PlainParser
from gristmill.serve.parsing.reasoning import THOUGHTS, ReasoningParser, Thought


@dataclass(frozen=True)
class Format:
    """`marks`: by their text, those around calls and thoughts. thought: None for a model that does not think."""

    name: str
    marks: Mapping[str, Mark]
    calls: Callable[[Sequence[Tool]], CallScript]
    shape: Shape
    thought: Thought | None = None

    @property
    def needs_special(self) -> bool:
        """Whether decoding must show special tokens, for the parser to see the marks."""
        return any(mark.special for mark in self.marks.values())

    def parser(self, tools: Sequence[Tool] = (), in_reasoning: bool = False) -> Parser:
        """For one answer. in_reasoning: the prompt opens a thought."""
        answer: Parser = self.calls(tools) if tools else PlainParser()
        if self.thought is None:
            return answer
        return ReasoningParser(answer, self.thought, in_reasoning)

    def grammar(
        self, tools: Sequence[Tool], choice: Choice = "auto", parallel: bool = True
    ) -> Grammar | None:
        """What the answer, after any thought, must be: calls where the choice asks for them; under "auto", where a
        tool is strict or only one call may come, text and calls; else None. parallel: more than one may."""
        writer = Writer(self.shape, self._mark)
        if isinstance(choice, Named):
            named = [tool for tool in tools if tool.name == choice.name]
            return writer.forced(named, parallel) if named else None
        if not tools or choice == "none":
            return None
        if choice == "required":
            return writer.forced(tools, parallel)
        bound = not parallel or any(tool.strict for tool in tools)
        return writer.free(tools, parallel) if bound else None

    def with_reasoning(self, grammar: Grammar, opened: bool) -> Grammar:
        """`grammar`, for the answer, and before it the thought that the prompt opened or that the model may open."""
        if self.thought is None:
            return grammar
        opening = None if opened else self._mark(self.thought.open)
        return after_thought(grammar, self._mark(self.thought.close), opening)

    def opens_thought(self, prompt: str) -> bool:
        """Whether the end of the rendered prompt is the tag that opens a thought."""
        return self.thought is not None and prompt.rstrip().endswith(self.thought.open)

    def still_in_thought(self, beginning: str) -> bool:
        """Whether an answer that began in a thought is in it still."""
        return self.thought is not None and self.thought.close not in beginning

    def _mark(self, text: str) -> Mark:
        return self.marks.get(text, Mark(text))


def detect(
    template: str | None,
    added_tokens: Mapping[str, int],
    special: Callable[[int], bool] = lambda id: True,
) -> Format:
    """added_tokens: ids by their text; special: which of these decoding hides.

    A template that does not know tools is told them in the Hermes way (`fallback`); one that does, and with marks that
    we do not know, is taken to make calls of bare JSON.
    """
    text = template or ""
    name, calls, shape = _calls_of(text, added_tokens)
    thought = next((t for t in THOUGHTS if t.close in text or t.close in added_tokens), None)
    written = (*shape.marks, *((thought.open, thought.close) if thought else ()))
    marks = {
        mark: Mark(mark, added_tokens[mark], special(added_tokens[mark]))
        if mark in added_tokens
        else Mark(mark)
        for mark in written
    }
    return Format(name, marks, calls, shape, thought)


_Calls = tuple[str, Callable[[Sequence[Tool]], CallScript], Shape]


def _calls_of(template: str, added_tokens: Mapping[str, int]) -> _Calls:
    if not knows_tools(template):
        return "hermes", hermes.HermesParser, hermes.SHAPE
    if mistral.OPEN in template:
        spaced = mistral.OPEN + " [" in template
        shape = mistral.SPACED_LIST if spaced else mistral.LIST
        shape = mistral.NAMED if mistral.ARGS in template else shape
        return "mistral", mistral.MistralParser, shape
    if deepseek.CALL in template:
        shape = deepseek.FENCED if deepseek.FENCE in template else deepseek.UNFENCED
        return "deepseek", deepseek.DeepSeekParser, shape
    if hermes.OPEN in template and "<function=" not in template:
        return "hermes", hermes.HermesParser, hermes.SHAPE
    if bare.PYTHON_TAG in template or bare.PYTHON_TAG in added_tokens:
        return "llama3", lambda tools: bare.BareParser(tools, bare.PYTHON_TAG), bare.LLAMA3
    return "json", bare.BareParser, bare.JSON
