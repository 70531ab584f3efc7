"""Chat templates come with models from anywhere: Jinja as `transformers` sets it up, and kept within bounds.

The sandbox keeps a template from Python's internals and from changing what it is given. On top, every loop and
every text that grows is counted, so that a template cannot take all time or memory. Work hidden inside one filter
or method call ("x"|center(10**9)) is bounded by what Python itself does there, not by this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from gristmill.errors import RequestError

_MAX_ROUNDS = 1_000_000  # of all loops together; a million take about a tenth of a second
_MAX_LENGTH = 1 << 26  # of a string or list that the template makes, in characters or items
_MAX_BITS = 1 << 12  # of a number
# What foreign code raises when it meets values that it did not expect.
_WRONG = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
)


def run_template(template: str, values: Mapping[str, Any]) -> str:
    """The text. `values` are of JSON's types; generation_marks, a pair of strings, goes around what the
    assistant says.

    Raises RequestError when the template is no Jinja, refuses the values, or runs beyond all bounds.
    """
    try:
        return _compile(template).render(values, counted=_Rounds())
    except _WRONG as error:
        raise RequestError(f"the chat template refuses these messages: {error}") from error
    except (RecursionError, MemoryError) as error:
        what = (
            "calls itself without end" if isinstance(error, RecursionError) else "wants more memory"
        )
        raise RequestError(f"the chat template {what}") from None


class _Rounds:
    """Counts the rounds of every loop of one rendering."""

    def __init__(self) -> None:
        self._left = _MAX_ROUNDS

    def __call__(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._left -= 1
            if self._left < 0:
                raise jinja2.TemplateRuntimeError(f"its loops take more than {_MAX_ROUNDS} rounds")
            yield item


class _CountLoops(NodeTransformer):
    """`for x in items` becomes `for x in counted(items)`, and `a ~ b` is measured."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node = self.generic_visit(node)  # type: ignore[assignment]
        name = nodes.Name("counted", "load", lineno=node.lineno)
        node.iter = nodes.Call(name, [node.iter], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "bounded", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """What `transformers` renders with (utils/chat_template_utils.py), with bounds."""

    intercepted_binops = frozenset(["+", "*", "**"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _CountLoops().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, (str, list, tuple)) and isinstance(times, int):
                    _check_length(len(items) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * max(right, 0))
        return _bounded(SandboxedEnvironment.call_binop(self, context, operator, left, right))


def _check_length(length: int) -> None:
    if length > _MAX_LENGTH:
        raise jinja2.TemplateRuntimeError(f"a text or list grows beyond {_MAX_LENGTH}")


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise jinja2.TemplateRuntimeError(f"a number grows beyond {_MAX_BITS} bits")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _check_length(len(value))
    elif isinstance(value, int):
        _check_bits(value.bit_length())
    return value


class _Generation(Extension):
    """{% generation %}…{% endgeneration %}: what the assistant says, put between two marks when wanted."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        marks = nodes.Name("generation_marks", "load")
        call = self.call_method("_between", [marks])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _between(self, marks: Any, caller: Any) -> str:
        start, end = marks if isinstance(marks, tuple) else ("", "")
        return start + caller() + end


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` that refuses names which lead into Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _Namespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


class _Dict:
    """`dict(...)` as a callable without the class's other attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes <, >, & and ', which breaks prompts that hold JSON.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.filters["bounded"] = _bounded
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise RequestError(f"the chat template, line {error.lineno}: {error.message}") from error
    except (RecursionError, SyntaxError) as error:  # nested beyond what Python's compiler takes
        raise RequestError(f"the chat template cannot be compiled: {error}") from error
