"""Facts against what `inspect`, `pydoc` and `doctest` say about the same modules."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import pydoc
import re

import pytest

from gristmill.data import facts as stage
from gristmill.data import pyfacts
from gristmill.data.facts import FactsConfig, extract, read_facts
from tests.stdlib_documents import document, stdlib_documents, topic_documents, write_documents


@pytest.fixture(scope="module")
def facts():
    return extract(stdlib_documents())[0]


@pytest.fixture(scope="module")
def by_name(facts):
    return {fact.name: fact for fact in facts}


def test_every_public_name_can_be_imported_under_that_name(facts):
    assert len(facts) > 600
    lost = [fact.name for fact in facts if pydoc.locate(fact.name) is None]
    assert lost == []


def test_signatures_have_the_parameters_that_inspect_sees(facts):
    checked = 0
    for fact in facts:
        target = pydoc.locate(fact.name)
        # Replaced by C at import, or decorated: what runs is then not what the file says.
        in_python = inspect.isfunction(target) and not hasattr(target, "__wrapped__")
        if fact.kind not in ("function", "method") or not in_python or not fact.signature:
            continue
        if inspect.getsourcefile(target) is None or fact.line != target.__code__.co_firstlineno:
            continue
        expected = list(inspect.signature(target).parameters)
        if fact.kind == "method" and expected[:1] in (["self"], ["cls"]):
            expected = expected[1:]
        made = eval(
            f"lambda {without_annotations(fact.signature)}: 0", {"__builtins__": {}}, Anything()
        )
        assert list(inspect.signature(made).parameters) == expected, fact.name
        checked += 1
    assert checked > 300


class Anything(dict):
    """Every name a default may mention."""

    def __missing__(self, key):
        return Anything()

    def __getattr__(self, name):
        return Anything()

    def __call__(self, *_):
        return self


def without_annotations(signature: str) -> str:
    from gristmill.data.grounding import bare_signature

    return bare_signature(signature)[1:-1]


def test_summaries_are_the_first_lines_that_inspect_sees(facts):
    checked = 0
    for fact in facts:
        doc = inspect.getdoc(pydoc.locate(fact.name) or object) or ""
        first, _, rest = doc.partition("\n")
        one_sentence = re.fullmatch(r"[A-Z][\w ,'()/-]+\.", first) and (
            not rest or rest.startswith("\n")
        )
        # Else C or a decorator has its own docstring.
        is_ours = fact.doc.startswith(first)
        if is_ours and one_sentence and len(first.split()) > 3 and len(first) <= 160:
            assert fact.summary == first, fact.name
            checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    "name", ["heapq", "textwrap", "statistics", "shlex", "fnmatch", "json", "calendar"]
)
def test_no_documented_public_function_is_missing(name, by_name):
    module = importlib.import_module(name)
    for exported in module.__all__:
        target = getattr(module, exported)
        documented = inspect.isfunction(target) and target.__module__.split(".")[0] == name
        if documented and len((target.__doc__ or "").split("\n\n")[0].split()) >= 4:
            assert f"{name}.{exported}" in by_name


def test_examples_are_what_doctest_finds(facts):
    parser = doctest.DocTestParser()
    with_example = [fact for fact in facts if fact.example]
    assert len(with_example) > 10
    for fact in with_example:
        found = parser.get_examples(fact.example)
        whole = parser.get_examples(pydoc.locate(fact.name).__doc__)
        flags = re.compile(r"\s*#\s*doctest:.*")
        assert found[0].source == flags.sub("", whole[0].source), fact.name
        assert found[-1].want


def test_lines_point_at_the_definition(facts):
    texts = {row.source: row.text.split("\n") for row in stdlib_documents()}
    for fact in facts:
        if fact.kind in ("function", "method", "class"):
            word = "class" if fact.kind == "class" else "def"
            assert f"{word} {fact.name.rsplit('.', 1)[-1]}" in texts[fact.source][fact.line - 1]


def test_reexported_and_renamed_names():
    rows = stdlib_documents(["asyncio", "concurrent", "json"])
    names = {fact.name for fact in extract(rows)[0]}
    assert {
        "asyncio.run",
        "concurrent.futures.Future.result",
        "json.JSONDecoder",
        "json.dumps",
    } <= names
    assert not any(name.startswith("asyncio.runners.run") for name in names)
    stubs = [
        document(
            'def len(obj, /):\n    """Return the number of items in a container."""',
            "p/builtins.pyi",
        ),
        document('def getcwd():\n    """Return the current working directory."""', "p/posix.pyi"),
        document(
            'def join(a, *p):\n    """Join two or more pathname components."""', "p/posixpath.py"
        ),
        document("from _c import deque\n__all__ = ['deque']", "p/box/__init__.py"),
        document(
            'class deque:\n    """A list-like sequence with fast ends."""', "p/_c.pyi", kind="pydoc"
        ),
    ]
    assert {f.name for f in extract(stubs)[0]} == {"len", "os.getcwd", "os.path.join", "box.deque"}


def test_guarded_imports_name_things_only_when_listed():
    init = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f\n"
    body = document('def f(x):\n    """Do one thing to x."""', "site-packages/pk/a.py")
    unlisted = [document(init, "site-packages/pk/__init__.py"), body]
    listed = [document(init + "__all__ = ('f',)\n", "site-packages/pk/__init__.py"), body]
    assert [f.name for f in extract(unlisted)[0]] == ["pk.a.f"]
    assert [f.name for f in extract(listed)[0]] == ["pk.f"]
    assert [f.name for f in extract([body], names_from=listed[:1])[0]] == ["pk.f"]


def test_a_c_function_without_signature_takes_its_arguments_from_its_docstring():
    text = '''
def getattr(*args, **kwargs):
    """getattr(object, name[, default]) -> value

    Get a named attribute from an object.
    """
def mystery(*args, **kwargs):
    """Do something with whatever is given."""
def random():
    """random() -> x in the interval [0, 1)."""
'''
    found = {f.name: f for f in extract([document(text, "p/m.pyi", kind="pydoc")])[0]}
    assert found["m.getattr"].signature == "(object, name[, default])"
    assert found["m.getattr"].summary == "Get a named attribute from an object."
    assert found["m.mystery"].signature == ""
    assert found["m.random"].summary == "x in the interval [0, 1)."


@pytest.mark.parametrize(
    ("doc", "returns"),
    [
        (
            "Do a thing well.\n\n:param x: it\n:return: The sum of\n    all parts. More.\n:rtype: int",
            "The sum of all parts.",
        ),
        ("Do a thing well.\n\nReturns\n-------\nfloat\n    The mean value.\n", "The mean value."),
        ("Do a thing well.\n\nReturns:\n    A list of names. Sorted.\n", "A list of names."),
        ("Return the mean of data. Fast.", "the mean of data."),
        ("Do a thing well.", "`int`"),
    ],
)
def test_returns_in_every_convention(doc, returns):
    row = document(f'def f(x) -> int:\n    """{doc}"""\n', "p/m.py")
    assert extract([row])[0][0].returns == returns


@pytest.mark.parametrize(
    "doc",
    [
        "",
        "Short one.",
        "TODO: write this text",
        "See base class for this.",
        "----- === ... ???",
        "Alias for `g` here",
    ],
)
def test_docstrings_that_say_nothing_give_no_fact(doc):
    found, counts = extract([document(f'def f(x):\n    """{doc}"""\n', "p/m.py")])
    assert found == []
    assert counts["undescribed"] == (1 if doc else 0)


def test_what_is_shared_or_private_is_marked_or_left_out():
    text = (
        'def a():\n    """Does the same thing."""\ndef b():\n    """Does the same thing."""\n'
        'def c():\n    """Does another thing."""\ndef _d():\n    """Does a hidden thing."""\n'
    )
    found = extract([document(text, "p/m.py"), document(text, "p/_hidden.py")])[0]
    assert [(f.name, f.unique) for f in found] == [("m.a", False), ("m.b", False), ("m.c", True)]


@pytest.mark.parametrize(
    "text",
    [
        "def f(:",
        "\0",
        "(" * 5000,
        "x = " + "-" * 20000 + "1",
        "é = 'ü'\n",
        "",
        "\ufeff",
        "print 'two'",
    ],
)
def test_text_that_is_not_python_is_passed_over(text):
    good = document('def f(x):\n    """Do one thing to x."""', "p/good.py")
    found, counts = extract([document(text, "p/bad.py"), good])
    assert [fact.name for fact in found] == ["good.f"]
    assert counts["unparsed"] in (0, 1)


def test_topics_have_their_title_and_first_sentence():
    found = {fact.name: fact for fact in extract(topic_documents())[0]}
    assert len(found) > 60
    assert found["with"].module == "The `with` statement"
    assert found["with"].summary.startswith(
        'The "with" statement is used to wrap the execution of a block'
    )


def test_sections_of_markdown_and_rst():
    text = """# My notes

Notes on everything that matters to me.

## Setup

Run `make` **twice** in the [root](http://x).
Then wait.

```
# not a heading
```

## Empty

## Code

```python
only code here, nothing said
```

Underlined
==========

This one has an underline below.
"""
    found = extract([document(text, "notes/a.md", kind="markdown", group="notes")])[0]
    shown = [(f.name, f.summary, f.line) for f in found]
    assert shown == [
        ("My notes", "Notes on everything that matters to me.", 1),
        ("Setup", "Run `make` twice in the root.", 5),
        ("Underlined", "This one has an underline below.", 22),
    ]


def test_headings_that_repeat_carry_their_documents_title():
    one = "# Alpha\n\nAll about alpha things.\n\n## Use\n\nUse alpha like this always.\n"
    two = one.replace("lpha", "rgon")
    rows = [
        document(text, f"n/{i}.md", kind="markdown", group="n") for i, text in enumerate([one, two])
    ]
    assert [f.name for f in extract(rows)[0]] == ["Alpha", "Alpha: Use", "Argon", "Argon: Use"]


def test_the_stage_writes_the_same_bytes_whatever_the_order(tmp_path):
    rows = [*stdlib_documents(["heapq", "json", "shlex"]), *topic_documents()]
    outs = []
    for name, given in (("a", rows), ("b", rows[::-1])):
        documents = write_documents(tmp_path / name / "documents", given)
        result = stage.run(FactsConfig(), {"documents": documents}, tmp_path / name)
        outs.append(result.outputs["facts"].read_bytes())
        assert result.metrics["facts"] == len(read_facts(tmp_path / name)) > 100
        assert json.loads(json.dumps(result.metrics)) == result.metrics
    assert outs[0] == outs[1]
    read = read_facts(tmp_path / "a" / "facts.jsonl")
    assert len({fact.id for fact in read}) == len(read)
    assert {fact.split for fact in read} <= {"train", "heldout"}


@pytest.mark.parametrize(
    ("source", "module", "package"),
    [
        ("python3.11/heapq.py", "heapq", False),
        ("python3.11/json/__init__.py", "json", True),
        ("site-packages/rich/console.py", "rich.console", False),
        ("python3.11/lib-dynload/_x.py", "_x", False),
        ("my-notes/src/pk/mod.py", "pk.mod", False),
        ("pydoc:math", "math", False),
        ("python3.11/math.pyi", "math", False),
        ("alone.py", "alone", False),
    ],
)
def test_module_of_a_source(source, module, package):
    assert pyfacts.module_name(source) == (module, package)
