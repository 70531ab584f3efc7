"""Right beside wrong: preference pairs and the four-way multiple-choice test, both made of siblings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

from gristmill.data.facts import Fact
from gristmill.data.grounding import described, grounded, passage
from gristmill.data.phrasings import questions

Row = dict[str, Any]


def draw(seed: int, *names: object) -> random.Random:
    """A generator that is a function of (seed, names) alone, whatever else is made and in which order."""
    text = "|".join([str(seed), *map(str, names)])
    return random.Random(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))


class Siblings:
    """Who stands near a fact: same kind and module; failing that same kind and package, group, any."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._near: dict[tuple[str, ...], list[Fact]] = {}
        for fact in facts:
            for key in self._keys(fact):
                self._near.setdefault(key, []).append(fact)

    @staticmethod
    def _keys(fact: Fact) -> list[tuple[str, ...]]:
        return [
            ("module", fact.kind, fact.module),
            ("package", fact.kind, fact.package),
            ("group", fact.kind, fact.group),
            ("kind", fact.kind),
        ]

    def some(self, fact: Fact, count: int, rng: random.Random) -> list[Fact]:
        """Up to `count` different siblings, the nearest first, none with the fact's own summary or name."""
        found: list[Fact] = []
        taken = {fact.summary.lower()}
        names = {fact.name}
        for key in self._keys(fact):
            near = self._near.get(key, [])
            for other in rng.sample(near, min(len(near), 4 * count + 4)):
                if len(found) == count:
                    return found
                if other.summary.lower() not in taken and other.name not in names:
                    found.append(other)
                    taken.add(other.summary.lower())
                    names.add(other.name)
        return found


def passages_with(fact: Fact, others: Sequence[Fact], rng: random.Random) -> list[str]:
    """The passages of `others` with the fact's own put at a random place among them."""
    texts = [passage(other) for other in others]
    texts.insert(rng.randint(0, len(texts)), passage(fact))
    return texts


def preference_pairs(
    facts: Sequence[Fact],
    siblings: Siblings,
    seed: int,
    grounded_share: float,
    seen: bool,
    other: bool = False,
) -> list[Row]:
    """For each fact its name with its own summary against a sibling's, asked closed-book ("sibling"), and for
    about `grounded_share` of the facts once more with the passages of both before the question ("grounded").

    With `other`, a second set about the same facts: other wordings, other siblings.
    """
    rows: list[Row] = []
    for fact in facts:
        near = siblings.some(fact, 2, draw(seed, "siblings", fact.id))
        wrong = near[1:] if other else near[:1]
        if not wrong:
            continue
        rng = draw(seed, "preference", other, fact.id)
        wordings = questions("what", fact)[int(other) :: 2]
        prompts = [("sibling", rng.choice(wordings))]
        told = all(one.summary in passage(one) for one in (fact, wrong[0]))
        if rng.random() < grounded_share and told:
            texts = passages_with(fact, wrong, rng)
            prompts.append(("grounded", grounded(rng.choice(wordings), texts)))
        rows += [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": described(fact.name, fact.summary)}],
                "rejected": [
                    {"role": "assistant", "content": described(fact.name, wrong[0].summary)}
                ],
                "annotator": "derived",
                "fact": fact.id,
                "form": form,
                "seen": seen,
            }
            for form, prompt in prompts
        ]
    return rows


def choice_items(facts: Sequence[Fact], count: int, seed: int, seen: bool) -> list[Row]:
    """ "Which description belongs to this name", four choices each, at most `count` items.

    The rule that makes it fair: facts of one kind are sorted by the length of their summaries and taken in
    groups of four neighbours; a group gives four items with the *same* four summaries, each right once.
    A reader who ignores the name therefore scores exactly 25%, however it likes lengths, words or
    descriptions it has met; all four come from the same split, so having met them tells nothing either.
    The order of the choices is drawn anew for each item.
    """
    groups: list[list[Fact]] = []
    for kind in sorted({fact.kind for fact in facts}):
        same_kind = [fact for fact in facts if fact.kind == kind]
        same_kind.sort(key=lambda fact: (len(fact.summary), draw(seed, "choice", fact.id).random()))
        group: list[Fact] = []
        for fact in same_kind:
            if all(_tell_apart(fact.summary, other.summary) for other in group):
                group.append(fact)
            if len(group) == 4:
                groups.append(group)
                group = []
    groups.sort(key=lambda group: draw(seed, "group", *(fact.id for fact in group)).random())
    items: list[Row] = []
    for group in groups[: count // 4]:
        for fact in group:
            order = list(group)
            draw(seed, "order", fact.id).shuffle(order)
            items.append(
                {
                    "fact": fact.id,
                    "name": fact.name,
                    "question": questions("what", fact)[0],
                    "choices": [other.summary for other in order],
                    "answer": order.index(fact),
                    "seen": seen,
                }
            )
    return items


def _tell_apart(one: str, other: str) -> bool:
    """Whether two descriptions differ in more than a few words (Jaccard distance of their words ≥ 1/3)."""
    left, right = set(one.lower().split()), set(other.lower().split())
    return len(left & right) * 3 < 2 * len(left | right)
