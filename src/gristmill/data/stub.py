"""What Python can tell about a module that has no Python source, as text that `ast.parse` accepts."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import keyword
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_INDENT = "    "
# Attributes every object has; their inherited docstrings say nothing about the class.
_EVERY_OBJECT = set(dir(object)) - {"__init__", "__new__", "__call__"}


def render_module(name: str) -> str:
    """`name` imported and written as a stub: docstring, functions, classes with methods, constants.

    A module that has Python source contributes only what that source does not define. "" when nothing is left.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
    defined = _defined_in_source(module)
    lines: list[str] = []
    if not defined:
        lines += [*_docstring(module, ""), ""]
    constants: list[str] = []
    body: list[str] = []
    for attribute in sorted(_public(module)):
        value = getattr(module, attribute)
        if attribute in defined or not attribute.isidentifier() or keyword.iskeyword(attribute):
            continue
        if inspect.isclass(value):
            if _belongs(value, module, attribute):
                body += ["", *_class(attribute, value)]
        elif inspect.isroutine(value):
            if _belongs(value, module, attribute):
                body += ["", *_function(attribute, value, "")]
        elif not defined and isinstance(value, (int, float, complex, str, bytes)):
            constants.append(f"{attribute}: {type(value).__name__}")
    if not body and not constants:
        return ""
    if defined:
        lines = [f'"""Names of the module {name} that its source file does not define."""', ""]
    text = "\n".join(lines + constants + body).strip("\n") + "\n"
    ast.parse(text)
    return text


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    return [n for n in (names or dir(module)) if not n.startswith("_") and hasattr(module, n)]


def _belongs(value: Any, module: ModuleType, attribute: str) -> bool:
    """Whether `value` is the module's own and in C: not Python code, not imported from a public module."""
    if module.__name__ == "builtins":  # also `open`, which says that it is of io
        return True
    home = getattr(value, "__module__", None) or module.__name__
    own = home == module.__name__ or home.startswith("_")
    if inspect.isclass(value):
        return own and value.__name__ == attribute and not _is_python(value)
    return (own or home == "builtins") and not inspect.isfunction(value)


def _is_python(cls: type) -> bool:
    return bool(cls.__flags__ & (1 << 9)) and "__dict__" in cls.__dict__  # Py_TPFLAGS_HEAPTYPE


def _defined_in_source(module: ModuleType) -> set[str]:
    """Top-level names that the module's own .py file defines with def or class; empty without a file."""
    path = getattr(module, "__file__", None)
    if not path or not path.endswith(".py"):
        return set()
    tree = ast.parse(Path(path).read_bytes())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = {node.name for node in tree.body if isinstance(node, kinds)}
    return names | {"__file__"}


def _signature(name: str, value: Any, method: bool) -> str:
    """A parameter list that parses: what Python tells, else what the docstring's first line tells."""
    try:
        text = re.sub(r"<[^<>]*>", "...", _ADDRESS.sub("", str(inspect.signature(value))))
        ast.parse(f"def f{text}: ...")
        return text
    except (ValueError, TypeError, SyntaxError):
        stated = _stated_signature(name, value.__doc__ or "", method)
        return stated or ("(self, /, *args, **kwargs)" if method else "(*args, **kwargs)")


def _stated_signature(name: str, doc: str, method: bool) -> str:
    """`getattr(object, name[, default]) -> value` as "(object, name, default=...)"; "" when it says nothing."""
    first = next((line for line in doc.splitlines() if line.strip()), "")
    found = re.match(rf"\s*(?:[\w]+\.)?{re.escape(name)}\(([^()]*)\)", first)
    if not found:
        return ""
    parameters, depth = [], 0
    for part in found[1].split(","):
        opened = depth + part.count("[") if part.lstrip().startswith("[") else depth
        parameter = part.strip(" []")
        if parameter:
            plain = "=" not in parameter and not parameter.startswith(("*", "/"))
            parameters.append(f"{parameter}=..." if opened and plain else parameter)
        depth += part.count("[") - part.count("]")
    text = f"({', '.join(['self'] * method + parameters)})"
    try:
        ast.parse(f"def f{text}: ...")
    except SyntaxError:
        return ""
    return text


def _docstring(value: Any, indent: str) -> list[str]:
    doc = value.__doc__ if isinstance(value.__doc__, str) else ""
    doc = inspect.cleandoc(_ADDRESS.sub("", doc))
    if not doc:
        return []
    quote = '"""'
    doc = doc.replace("\\", "\\\\").replace(quote, '\\"\\"\\"')
    if doc.endswith('"'):
        doc = doc[:-1] + '\\"'
    lines = (quote + doc + ("\n" if "\n" in doc else "") + quote).split("\n")
    return [(indent + line).rstrip() for line in lines]


def _function(name: str, value: Any, indent: str, method: bool = False) -> list[str]:
    signature = _signature(name, value, method)
    doc = _docstring(value, indent + _INDENT)
    if not doc:
        return [f"{indent}def {name}{signature}: ..."]
    return [f"{indent}def {name}{signature}:", *doc, f"{indent}{_INDENT}..."]


def _class(name: str, cls: type) -> list[str]:
    bases = [base.__name__ for base in cls.__bases__ if base is not object]
    lines = [f"class {name}({', '.join(bases)}):" if bases else f"class {name}:"]
    lines += _docstring(cls, _INDENT)
    for attribute, value in sorted(vars(cls).items()):
        if attribute in _EVERY_OBJECT or attribute.startswith("_"):
            continue
        if not attribute.isidentifier() or keyword.iskeyword(attribute):
            continue
        inner = getattr(cls, attribute, value)
        if isinstance(value, classmethod) or type(value).__name__ == "classmethod_descriptor":
            lines += ["", f"{_INDENT}@classmethod", *_function(attribute, inner, _INDENT)]
        elif isinstance(value, staticmethod):
            lines += ["", f"{_INDENT}@staticmethod", *_function(attribute, inner, _INDENT)]
        elif inspect.isroutine(value):
            lines += ["", *_function(attribute, inner, _INDENT, method=True)]
        elif inspect.isdatadescriptor(value) and getattr(value, "__doc__", None):
            lines += ["", f"{_INDENT}@property", f"{_INDENT}def {attribute}(self):"]
            lines += [*_docstring(value, _INDENT * 2), f"{_INDENT * 2}..."]
    return [*lines, f"{_INDENT}..."] if len(lines) == 1 else lines
