"""The questions stage: facts to conversations (SFT), preference pairs (DPO) and a multiple-choice test.

Closed-book questions are about at most `max_facts` facts of the train split. Grounded questions carry
passages, and most are about facts outside that list, so that what they teach is reading, not recall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt

from gristmill.data.contrasts import (
    Row,
    Siblings,
    choice_items,
    draw,
    passages_with,
    preference_pairs,
)
from gristmill.data.facts import Fact, read_facts
from gristmill.data.grounding import NOT_FOUND, grounded, passage
from gristmill.data.phrasings import FORMS, answer, questions
from gristmill.errors import WorkError
from gristmill.files import write_jsonl
from gristmill.stage import Progress, Result, StageConfig, quiet

# Parts of the standard library that few people call: asked about only when nothing else is left.
_RARELY_CALLED = set(
    """antigravity curses distutils encodings ensurepip idlelib lib2to3 msilib nturl2path ntpath pydoc_data
    sre_compile sre_constants sre_parse this tkinter turtle turtledemo""".split()
)
_MESSAGE_TOKENS = 6  # <|im_start|>role\n … <|im_end|>\n around each message


class QuestionsConfig(StageConfig):
    """What is asked, and how often.

    max_facts: facts of the train split asked closed-book. heldout_facts: facts of the held-out split.
    phrasings: wordings of the "what" question per fact. other_phrasings: of every other form it has.
    grounded_share: part of the training rows that carries passages. not_found_share: part of those whose
        passages do not hold the answer. dialogue_share: part of the training rows with two turns.
    max_answer_tokens, max_tokens: longer answers and rows are left out.
    heldout_pairs_share: part of the seen facts that have a second pair, for measuring.
    """

    seed: int = 0
    max_facts: PositiveInt = 2500
    heldout_facts: NonNegativeInt = 400
    phrasings: PositiveInt = 4
    other_phrasings: NonNegativeInt = 1
    grounded_share: float = Field(0.35, ge=0, lt=0.95)
    not_found_share: float = Field(0.15, ge=0, le=1)
    dialogue_share: float = Field(0.05, ge=0, le=1)
    choices_seen: NonNegativeInt = 400
    choices_heldout: NonNegativeInt = 200
    heldout_pairs_share: float = Field(0.3, ge=0, le=1)
    max_answer_tokens: PositiveInt = 64
    max_tokens: PositiveInt = 384


def run(
    config: QuestionsConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Read `inputs["facts"]` and `inputs["tokenizer"]`, write the five files of out_dir/questions."""
    from gristmill.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(inputs["tokenizer"])
    progress(0, 1, "facts")
    files, metrics = derive(read_facts(inputs["facts"]), config, _counter(tokenizer.encode))
    directory = out_dir / "questions"
    for name, rows in files.items():
        write_jsonl(directory / f"{name}.jsonl", rows)
    progress(1, 1, "facts", rows=metrics["sft_train"])
    return Result({"questions": directory}, metrics)


def _counter(encode: Callable[[str], Sequence[int]]) -> Callable[[str], int]:
    counted: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in counted:
            counted[text] = len(encode(text))
        return counted[text]

    return count


def derive(
    facts: Sequence[Fact], config: QuestionsConfig, count: Callable[[str], int]
) -> tuple[dict[str, list[Row]], dict[str, Any]]:
    """All rows by file name, and the stage's metrics: a pure function of the facts and the settings.

    count: tokens of a text. Raises WorkError when the train split states nothing that can be asked.
    """
    usable = [fact for fact in facts if _askable(fact, config, count)]
    train = choose([fact for fact in usable if fact.split == "train"], config.seed)
    heldout = choose([fact for fact in usable if fact.split == "heldout"], config.seed)
    seen, outside = train[: config.max_facts], train[config.max_facts :]
    heldout = heldout[: config.heldout_facts]
    if not seen:
        raise WorkError(
            f"the documents state nothing that a question can be made of ({len(facts)} facts, none with a "
            "description of its own). Add documented Python code, or Markdown with headings, to data.sources."
        )
    make = _Rows(config, count)
    plain = make.plain(seen, config.phrasings, config.other_phrasings)
    wanted = round(len(plain) * config.grounded_share / max(1e-9, 1 - config.grounded_share))
    reading = make.grounded(_readers(seen, outside, wanted, config.seed), Siblings(train))
    dialogues = make.dialogues(plain, round(len(plain) * config.dialogue_share))
    sft_train = make.shuffled(plain + reading + dialogues)
    sft_heldout = make.plain(heldout, 1, 1)
    sft_heldout += make.grounded([(fact, 0) for fact in heldout], Siblings(heldout))
    pairs_train, pairs_heldout = _pairs(seen, outside, heldout, config)
    choices_seen = choice_items(seen, config.choices_seen, config.seed, seen=True)
    choices_heldout = choice_items(heldout, config.choices_heldout, config.seed, seen=False)
    files = {
        "sft.train": sft_train,
        "sft.heldout": sft_heldout,
        "preferences.train": make.shuffled(pairs_train),
        "preferences.heldout": pairs_heldout,
        "choices": choices_seen + choices_heldout,
    }
    metrics = {
        "seen_facts": len(seen),
        "heldout_facts": len(heldout),
        "outside_facts": len(outside),
        "sft_train": len(sft_train),
        "sft_heldout": len(sft_heldout),
        "preferences_train": len(pairs_train),
        "preferences_heldout": len(pairs_heldout),
        "choices_seen": len(choices_seen),
        "choices_heldout": len(choices_heldout),
        "forms": dict(sorted(Counter(row["form"] for row in sft_train).items())),
        "tokens_by_form": make.tokens_by_form(sft_train),
        "samples": make.samples(sft_train),
    }
    return files, metrics


def _askable(fact: Fact, config: QuestionsConfig, count: Callable[[str], int]) -> bool:
    whole = fact.unique and not fact.summary.endswith("…")
    return whole and count(answer("what", fact) or "") <= config.max_answer_tokens


def choose(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts in the order in which they are worth asking about.

    First what a person brought along, Python's help topics, and the standard library's public modules,
    classes and functions; then its methods; then packages; last what few people call. Within each tier in
    an order drawn by hash, so that any number of them spreads over all modules.
    """
    return sorted(facts, key=lambda fact: (_tier(fact), draw(seed, "choose", fact.id).random()))


def _tier(fact: Fact) -> int:
    if fact.group == "packages":
        return 3 if fact.kind in ("method", "section") or fact.name.count(".") > 3 else 2
    if fact.group == "stdlib":
        if fact.name.split(".")[0] in _RARELY_CALLED:
            return 4
        return 1 if fact.kind == "method" else 0
    return 0


def _readers(
    seen: Sequence[Fact], outside: Sequence[Fact], wanted: int, seed: int
) -> list[tuple[Fact, int]]:
    """(fact, how often it came before) for the grounded rows: three of four outside the closed-book list."""
    pools = {"outside": outside or seen, "seen": seen}
    used: Counter[str] = Counter()
    readers = []
    for index in range(wanted):
        name = "seen" if index % 4 == 3 else "outside"
        pool = pools[name]
        readers.append((pool[used[name] % len(pool)], used[name] // len(pool)))
        used[name] += 1
    return readers


def _pairs(
    seen: Sequence[Fact],
    outside: Sequence[Fact],
    heldout: Sequence[Fact],
    config: QuestionsConfig,
) -> tuple[list[Row], list[Row]]:
    """(training, held-out) pairs. Facts outside the closed-book list give pairs with passages only: which of
    two passages is meant can be learnt from them, what they say need not be known. Held out are pairs of seen
    facts in other wordings with other wrong answers, and pairs of facts that no training has seen.
    """
    share = config.grounded_share
    known = Siblings(seen)
    train = preference_pairs(seen, known, config.seed, share, seen=True)
    readers = preference_pairs(
        outside[: len(seen)], Siblings(outside), config.seed, grounded_share=1.0, seen=False
    )
    train += [row for row in readers if row["form"] == "grounded"]
    again = [
        fact
        for fact in seen
        if draw(config.seed, "pair split", fact.id).random() < config.heldout_pairs_share
    ]
    kept = preference_pairs(again, known, config.seed, share, seen=True, other=True)
    unseen = preference_pairs(heldout, Siblings(heldout), config.seed, share, seen=False)
    return train, kept + unseen


class _Rows:
    """Makes conversation rows within the configured lengths."""

    def __init__(self, config: QuestionsConfig, count: Callable[[str], int]) -> None:
        self.config = config
        self.count = count

    def plain(self, facts: Sequence[Fact], what: int, others: int) -> list[Row]:
        """Every form that each fact has, in `what` or `others` wordings; the first "what" is always in."""
        rows: list[Row] = []
        for fact in facts:
            for form in FORMS:
                wordings = questions(form, fact)
                if not wordings:
                    continue
                rng = draw(self.config.seed, "wording", fact.id, form)
                if form == "what":
                    chosen = [wordings[0], *rng.sample(wordings[1:], min(what, len(wordings)) - 1)]
                else:
                    chosen = rng.sample(wordings, min(others, len(wordings)))
                reply = answer(form, fact) or ""
                if self.count(reply) <= self.config.max_answer_tokens:
                    rows += [_row(fact, form, question, reply) for question in chosen]
        return [row for row in rows if self.tokens(row) <= self.config.max_tokens]

    def grounded(self, readers: Sequence[tuple[Fact, int]], siblings: Siblings) -> list[Row]:
        """One row a reader: one to three passages, then a question that the right one answers, or none does."""
        rows: list[Row] = []
        for fact, turn in readers:
            rng = draw(self.config.seed, "grounded", fact.id, turn)
            missing = rng.random() < self.config.not_found_share
            others = siblings.some(fact, rng.randint(1, 3) if missing else rng.randint(0, 2), rng)
            text = passage(fact)
            held = [form for form in FORMS if _holds(text, form, fact)]
            if not held:
                continue
            form = "what" if rng.random() < 0.4 and "what" in held else rng.choice(held)
            if missing and form == "which":
                form = "what"  # a sibling's passage might fit a description
            question = rng.choice(questions(form, fact))
            while True:
                texts = (
                    [passage(o) for o in others] if missing else passages_with(fact, others, rng)
                )
                reply = NOT_FOUND if missing else answer(form, fact) or ""
                row = _row(
                    fact, "unknown" if missing else "grounded", grounded(question, texts), reply
                )
                if self.tokens(row) <= self.config.max_tokens or not others:
                    break
                others = others[:-1]
            if texts and self.tokens(row) <= self.config.max_tokens:
                rows.append(row)
        return rows

    def dialogues(self, plain: Sequence[Row], count: int) -> list[Row]:
        """Two questions about different facts in one conversation, so that a second turn is not a surprise."""
        rows: list[Row] = []
        for index in range(count if len(plain) > 1 else 0):
            first, second = draw(self.config.seed, "dialogue", index).sample(list(plain), 2)
            messages = [*first["messages"], *second["messages"]]
            row = {"messages": messages, "fact": second["fact"], "form": "dialogue"}
            if self.tokens(row) <= self.config.max_tokens:
                rows.append(row)
        return rows

    def shuffled(self, rows: list[Row]) -> list[Row]:
        draw(self.config.seed, "order").shuffle(rows)
        return rows

    def tokens(self, row: Row) -> int:
        return sum(self.count(m["content"]) + _MESSAGE_TOKENS for m in row["messages"])

    def tokens_by_form(self, rows: Sequence[Row]) -> dict[str, int]:
        total: Counter[str] = Counter()
        for row in rows:
            total[row["form"]] += self.tokens(row)
        return dict(sorted(total.items()))

    def samples(self, rows: Sequence[Row]) -> list[Row]:
        """The first row of every form."""
        found: dict[str, Row] = {}
        for row in rows:
            found.setdefault(row["form"], row)
        return [found[form] for form in sorted(found)]


def _row(fact: Fact, form: str, question: str, reply: str) -> Row:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": reply},
    ]
    return {"messages": messages, "fact": fact.id, "form": form}


def _holds(text: str, form: str, fact: Fact) -> bool:
    """Whether the passage holds the answer word for word."""
    reply = answer(form, fact)
    if reply is None:
        return False
    if form == "example":
        return fact.example in text
    return reply.strip("`") in text
