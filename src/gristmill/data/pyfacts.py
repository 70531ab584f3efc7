"""Public modules, functions, classes and methods of Python source, read with `ast` (nothing is imported).

A definition is known under its public name: the shortest dotted path by which a package hands it out. So
`asyncio/runners.py` defines `asyncio.run`, and `_collections` defines `collections.deque`.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

# Modules whose contents people know under another name (library reference of Python, `os` and `builtins`).
_PUBLIC_NAME = {"builtins": "", "posix": "os", "posixpath": "os.path", "genericpath": "os.path"}
_NOT_API = frozenset({"test", "tests", "idle_test", "conftest", "setup", "site-packages"})
_ROOT = re.compile(r"python\d+(\.\d+)?|site-packages|dist-packages|lib-dynload|src|lib")
SIGNATURE_CHARS = 240
_SKIPPED_DECORATORS = frozenset({"overload", "setter", "deleter"})


@dataclass(frozen=True)
class Definition:
    """`path` is the name inside its module ('' for the module itself); `line` is 1-based."""

    path: str
    kind: str
    signature: str
    annotation: str
    doc: str
    line: int
    listed: bool = True


@dataclass
class Scan:
    """One module as written. `exports` is its `__all__`, or None when absent or computed.

    imports: (module, name, as, guarded): what it takes from elsewhere at its top level; name '*' for a star,
        guarded when under `if TYPE_CHECKING`.
    """

    module: str
    is_package: bool
    exports: tuple[str, ...] | None = None
    imports: list[tuple[str, str, str, bool]] = field(default_factory=list)
    definitions: list[Definition] = field(default_factory=list)


def module_name(source: str) -> tuple[str, bool]:
    """The dotted module of a source path, and whether it is a package: 'python3.11/json/__init__.py' -> json."""
    if source.startswith("pydoc:"):
        return source.removeprefix("pydoc:"), False
    parts = re.sub(r"\.pyi?$", "", source).split("/")
    if len(parts) > 1:
        parts = parts[1:]
    while len(parts) > 1 and (_ROOT.fullmatch(parts[0]) or not parts[0].isidentifier()):
        parts = parts[1:]
    is_package = parts[-1] == "__init__" and len(parts) > 1
    return ".".join(parts[:-1] if is_package else parts), is_package


def scan(text: str, source: str) -> Scan:
    """Read one module. Raises SyntaxError (or ValueError, RecursionError) when it is not Python that parses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(text)
    module, is_package = module_name(source)
    found = Scan(module, is_package, _exports(tree))
    for statement, guarded in _top_level(tree.body):
        if isinstance(statement, ast.ImportFrom):
            origin = _origin(statement, module, is_package)
            for alias in statement.names:
                found.imports.append((origin, alias.name, alias.asname or alias.name, guarded))
    doc = ast.get_docstring(tree, clean=False)
    if doc:
        found.definitions.append(Definition("", "module", "", "", doc, 1))
    exported = set(found.exports) if found.exports is not None else None
    seen: set[str] = set()
    for definition in _definitions(tree.body, "", "function"):
        head = definition.path.split(".")[0]
        if definition.path in seen:
            continue
        seen.add(definition.path)
        listed = exported is None or head in exported
        found.definitions.append(Definition(**{**vars(definition), "listed": listed}))
    return found


def _definitions(body: list[ast.stmt], prefix: str, kind: str) -> Iterator[Definition]:
    """Documented public functions and classes of a body, methods included, in order."""
    for statement, _ in _top_level(body):
        if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if statement.name.startswith("_"):
            continue
        decorators = {_last_name(decorator) for decorator in statement.decorator_list}
        if decorators & _SKIPPED_DECORATORS:
            continue
        doc = ast.get_docstring(statement, clean=False) or ""
        path = f"{prefix}{statement.name}"
        if isinstance(statement, ast.ClassDef):
            if doc:
                yield Definition(
                    path, "class", _class_signature(statement), "", doc, statement.lineno
                )
            if prefix.count(".") < 2:
                yield from _definitions(statement.body, f"{path}.", "method")
        elif doc:
            method = kind == "method" and "staticmethod" not in decorators
            is_property = any("property" in decorator for decorator in decorators)
            signature = "" if is_property else _signature(statement.args, method)
            annotation = ast.unparse(statement.returns) if statement.returns else ""
            yield Definition(path, kind, signature, annotation, doc, statement.lineno)


def _top_level(body: list[ast.stmt], guarded: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Statements of a body, also those under `if`, `try` and `with`; guarded under `if TYPE_CHECKING`."""
    for statement in body:
        if isinstance(statement, ast.If):
            checking = "TYPE_CHECKING" in ast.unparse(statement.test)
            yield from _top_level(statement.body, guarded or checking)
            yield from _top_level(statement.orelse, guarded)
        elif isinstance(statement, ast.Try):
            yield from _top_level(statement.body, guarded)
            for handler in statement.handlers:
                yield from _top_level(handler.body, guarded)
            yield from _top_level(statement.orelse + statement.finalbody, guarded)
        elif isinstance(statement, ast.With):
            yield from _top_level(statement.body, guarded)
        else:
            yield statement, guarded


def _last_name(decorator: ast.expr) -> str:
    target = decorator.func if isinstance(decorator, ast.Call) else decorator
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def _signature(arguments: ast.arguments, drop_first: bool) -> str:
    """The arguments as written, without self or cls; without annotations where it would be very long."""
    if drop_first:
        positional = arguments.posonlyargs or arguments.args
        if positional:
            defaults = len(arguments.posonlyargs) + len(arguments.args) == len(arguments.defaults)
            arguments = ast.arguments(
                posonlyargs=arguments.posonlyargs[1:],
                args=arguments.args if arguments.posonlyargs else arguments.args[1:],
                vararg=arguments.vararg,
                kwonlyargs=arguments.kwonlyargs,
                kw_defaults=arguments.kw_defaults,
                kwarg=arguments.kwarg,
                defaults=arguments.defaults[1:] if defaults else arguments.defaults,
            )
    written = ast.unparse(arguments)
    if len(written) > SIGNATURE_CHARS:
        for argument in ast.walk(arguments):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        written = ast.unparse(arguments)
    return f"({written})"


def _class_signature(node: ast.ClassDef) -> str:
    """The arguments of `__init__`, or of `__new__`; '' when the class writes neither."""
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    constructor = methods.get("__init__") or methods.get("__new__")
    return _signature(constructor.args, True) if constructor else ""


def _exports(tree: ast.Module) -> tuple[str, ...] | None:
    names: list[str] | None = None
    for statement, _ in _top_level(tree.body):
        target = value = None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], statement.value
        elif isinstance(statement, ast.AugAssign | ast.AnnAssign):
            target, value = statement.target, statement.value
        if not (isinstance(target, ast.Name) and target.id == "__all__"):
            continue
        listed = _strings(value)
        if listed is None:
            return None
        names = [*(names or ()), *listed] if isinstance(statement, ast.AugAssign) else listed
    return tuple(names) if names is not None else None


def _strings(value: ast.expr | None) -> list[str] | None:
    """The strings of a literal list or tuple (or a sum of such), None for anything computed."""
    if isinstance(value, ast.List | ast.Tuple):
        items = [item.value for item in value.elts if isinstance(item, ast.Constant)]
        strings = [item for item in items if isinstance(item, str)]
        return strings if len(strings) == len(value.elts) else None
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        left, right = _strings(value.left), _strings(value.right)
        return None if left is None or right is None else left + right
    return None


def _origin(statement: ast.ImportFrom, module: str, is_package: bool) -> str:
    """The absolute module that `from X import …` names."""
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    up = statement.level - (1 if is_package else 0)
    base = parts[: len(parts) - up] if up else parts
    return ".".join([*base, *([statement.module] if statement.module else [])])


def public_names(scans: list[Scan]) -> dict[str, list[str]]:
    """For each re-exported top-level definition ('asyncio.runners.run'): the public names it also has.

    A re-export counts when the importing module lists the name in `__all__`, or is a package's
    `__init__` without `__all__` that imports it for real; it must stay inside one top-level package, or
    lead out of a private module of the standard library (`_collections` to `collections`).
    """
    by_module = {scan.module: scan for scan in scans}
    edges: dict[str, list[str]] = {}
    for taker in scans:
        if not is_public(taker.module):
            continue
        listed = set(taker.exports) if taker.exports is not None else None
        for origin, name, as_name, guarded in taker.imports:
            top = origin.split(".")[0]
            same_top = top == taker.module.split(".")[0]
            if not same_top and not (top.startswith("_") and "." not in origin):
                continue
            for given, known in _imported(by_module.get(origin), name, as_name):
                imported = not guarded and (taker.is_package or not same_top)
                visible = imported if listed is None else known in listed
                if visible and not known.startswith("_"):
                    edges.setdefault(f"{origin}.{given}", []).append(f"{taker.module}.{known}")
    names: dict[str, list[str]] = {}
    for start in edges:
        reached, front = [], [start]
        while front:
            front = [name for old in front for name in edges.get(old, []) if name not in reached]
            reached += dict.fromkeys(front)
        names[start] = [name for name in reached if name != start]
    return names


def _imported(origin: Scan | None, name: str, as_name: str) -> list[tuple[str, str]]:
    if name != "*":
        return [(name, as_name)]
    if origin is None:
        return []
    if origin.exports is not None:
        return [(item, item) for item in origin.exports]
    own = [d.path for d in origin.definitions if d.path and "." not in d.path]
    taken = [as_ for _, item, as_, _ in origin.imports if item != "*" and not as_.startswith("_")]
    return [(item, item) for item in dict.fromkeys(own + taken)]


def is_public(dotted: str) -> bool:
    """No private component, and not part of a test suite."""
    return not any(part.startswith("_") or part in _NOT_API for part in dotted.split("."))


def public_name(scan_: Scan, definition: Definition, aliases: dict[str, list[str]]) -> str | None:
    """The name a person would import the definition by, None when it has no public one."""
    if not definition.path:
        renamed = scan_.module in _PUBLIC_NAME and scan_.module != "builtins"
        return scan_.module if is_public(scan_.module) and not renamed else None
    head, _, tail = definition.path.partition(".")
    own = f"{scan_.module}.{head}"
    candidates = [*aliases.get(own, []), *([own] if is_public(scan_.module) else [])]
    if not candidates:
        return None
    best = min(candidates, key=lambda name: (name.count("."), len(name), name))
    module, _, name = best.rpartition(".")
    if module in _PUBLIC_NAME:
        module = _PUBLIC_NAME[module]
    return ".".join(part for part in (module, name, tail) if part)
