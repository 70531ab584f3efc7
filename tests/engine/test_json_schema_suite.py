"""JSON Schema's own tests: what the engine takes for a schema it enforces, and the rest it refuses.

Each instance is written out and offered to the grammar byte for byte. A valid one must be let through, an invalid one
must not. A grammar has the keys of an object in one order (the schema's), so all orders are tried: of a valid instance
one must pass, of an invalid one none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

from gristmill.engine.grammar import compile_grammar
from gristmill.errors import RequestError
from gristmill.lm import Grammar
from tests.engine.test_grammar import accepts, tokenizer

SUITE: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "json_schema_suite" / "draft2020-12.json").read_text(encoding="utf-8")
)

# Groups that are refused, of those of a file: nobody is promised what is not kept.
REFUSED = {
    "additionalProperties": 2,  # with dependentSchemas, propertyNames
    "allOf": 2,  # false: nothing is valid
    "anyOf": 1,
    "boolean_schema": 2,  # true and false themselves
    "contains": 7,
    "defs": 1,
    "dependentRequired": 4,
    "dependentSchemas": 4,
    "format/ecmascript-regex": 1,
    "format/idn-email": 1,
    "format/idn-hostname": 2,
    "format/iri": 1,
    "format/iri-reference": 1,
    "format/json-pointer": 1,
    "format/regex": 1,
    "format/relative-json-pointer": 1,
    "format/uri-reference": 1,
    "format/uri-template": 1,
    "if-then-else": 10,
    "maxContains": 4,
    "maxItems": 1,  # 2.0 for 2, here and below
    "maxLength": 1,
    "maxProperties": 1,
    "minContains": 8,
    "minItems": 1,
    "minLength": 1,
    "minProperties": 1,
    "multipleOf": 1,  # of 17 digits
    "not": 9,
    "oneOf": 9,  # unless it is plain that no two hold at once
    "patternProperties": 3,  # where two patterns fit one key
    "propertyNames": 6,
    "ref": 6,
    "unevaluatedItems": 27,
    "unevaluatedProperties": 41,
    "uniqueItems": 6,
}

# Valid instances that cannot be written, of those of a file. Nothing invalid comes of it.
NOT_WRITTEN = {
    "const": 4,  # a whole number has one form: not 1.0 for 1
    "enum": 4,
    "type": 1,
    "format/email": 4,  # no quoted names, no addresses in brackets
    "format/ipv6": 4,  # not with the last part as IPv4
}

# Invalid ones that can: what the calendar knows and no automaton of a reasonable size.
NOT_PREVENTED = {
    "format/date": 2,  # 29 February in other years
    "format/date-time": 2,  # leap seconds at other times than midnight UTC
    "format/time": 10,
}


def orders(value: Any) -> Iterator[Any]:
    """The value with the keys of its objects in every order."""
    if isinstance(value, dict):
        for keys in permutations(value):
            for values in product(*(list(orders(value[key])) for key in keys)):
                yield dict(zip(keys, values, strict=True))
    elif isinstance(value, list):
        for values in product(*(list(orders(item)) for item in value)):
            yield list(values)
    else:
        yield value


def can_be_written(grammar: Grammar, instance: Any) -> bool:
    return any(
        accepts(grammar, json.dumps(value, ensure_ascii=False, separators=separators))
        for value in orders(instance)
        for separators in ((",", ":"), (", ", ": "))
    )


def test_what_is_accepted_is_enforced_and_the_rest_is_refused():
    refused, not_written, not_prevented = Counter[str](), Counter[str](), Counter[str]()
    tried = 0
    for name, groups in SUITE.items():
        for group in groups:
            try:
                grammar = Grammar("json_schema", group["schema"])
                compile_grammar(grammar, tokenizer())
            except RequestError:
                refused[name] += 1
                continue
            for test in group["tests"]:
                tried += 1
                written = can_be_written(grammar, test["data"])
                not_written[name] += test["valid"] and not written
                not_prevented[name] += written and not test["valid"]
    assert +not_prevented == NOT_PREVENTED
    assert +not_written == NOT_WRITTEN
    assert refused == REFUSED
    assert tried > 800
