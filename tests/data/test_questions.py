"""What must hold for every row that the questions stage makes of real facts."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter

import pytest

from gristmill.data import NOT_FOUND, described, passage
from gristmill.data import questions as stage
from gristmill.data.contrasts import choice_items
from gristmill.data.facts import FactsConfig, extract
from gristmill.data.facts import run as run_facts
from gristmill.data.phrasings import FORMS, answer, questions
from gristmill.data.questions import QuestionsConfig, choose, derive
from gristmill.errors import WorkError
from gristmill.files import read_jsonl
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.stdlib_documents import document, stdlib_documents, topic_documents, write_documents

CONFIG = QuestionsConfig(
    max_facts=200,
    heldout_facts=60,
    choices_seen=80,
    choices_heldout=40,
    max_answer_tokens=40,
    max_tokens=300,
)


def in_bytes(text: str) -> int:
    return len(text.encode()) // 3 + 1


@pytest.fixture(scope="module")
def facts():
    return extract([*stdlib_documents(), *topic_documents()])[0]


@pytest.fixture(scope="module")
def by_id(facts):
    return {fact.id: fact for fact in facts}


@pytest.fixture(scope="module")
def made(facts):
    return derive(facts, CONFIG, in_bytes)


@pytest.fixture(scope="module")
def files(made):
    return made[0]


def test_counts_are_what_was_asked_for(made):
    files, metrics = made
    assert metrics["seen_facts"] == 200
    assert metrics["choices_seen"] == 80
    assert metrics["choices_heldout"] == 40
    assert metrics["sft_train"] == len(files["sft.train"]) == sum(metrics["forms"].values())
    forms = metrics["forms"]
    assert set(forms) >= {
        "what",
        "args",
        "which",
        "returns",
        "example",
        "grounded",
        "unknown",
        "dialogue",
    }
    assert 0.25 < (forms["grounded"] + forms["unknown"]) / metrics["sft_train"] < 0.4
    assert 0.08 < forms["unknown"] / (forms["unknown"] + forms["grounded"]) < 0.25


def test_no_heldout_fact_is_in_training_data(files, by_id):
    heldout = {fact.id: fact for fact in by_id.values() if fact.split == "heldout"}
    assert len(heldout) > 60
    # Also not as a passage: a summary of some length is then nowhere in the text.
    trained = [fact.doc + fact.summary for fact in by_id.values() if fact.split == "train"]
    summaries = {
        fact.summary
        for fact in heldout.values()
        if len(fact.summary) > 40 and not any(fact.summary in text for text in trained)
    }
    assert len(summaries) > 30
    for name in ("sft.train", "preferences.train"):
        for row in files[name]:
            assert row["fact"] not in heldout
            kinds = ("messages", "prompt", "chosen", "rejected")
            said = "\n".join(m["content"] for kind in kinds for m in row.get(kind, []))
            assert not any(summary in said for summary in summaries)
    assert all(row["fact"] in heldout for row in files["sft.heldout"])


def test_closed_book_answers_are_parts_of_the_fact(files, by_id):
    for row in files["sft.train"]:
        if row["form"] not in FORMS:
            continue
        fact = by_id[row["fact"]]
        asked, told = (message["content"] for message in row["messages"])
        assert told == answer(row["form"], fact)
        assert asked in questions(row["form"], fact)
        known = f"{fact.name} {fact.name}: {fact.summary} {fact.signature} {fact.example} {fact.returns} {fact.doc}"
        words = set(told.replace("`", " ").replace("(", " ").replace(")", " ").split()) - {"python"}
        if row["form"] != "args":
            assert words <= set(known.replace("`", " ").replace("(", " ").replace(")", " ").split())


def test_every_closed_book_fact_is_asked_as_the_test_will_ask(files):
    asked = {row["messages"][0]["content"] for row in files["sft.train"] if row["form"] == "what"}
    seen = [row for row in files["choices"] if row["seen"]]
    assert seen
    assert all(row["question"] in asked for row in seen)
    wordings = Counter(row["fact"] for row in files["sft.train"] if row["form"] == "what")
    assert set(wordings.values()) == {CONFIG.phrasings}


def test_messages_alternate_and_end_with_the_assistant(files):
    for name in ("sft.train", "sft.heldout"):
        for row in files[name]:
            roles = [message["role"] for message in row["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert all(message["content"].strip() for message in row["messages"])


def test_rows_and_answers_keep_within_their_lengths(files):
    for name in ("sft.train", "sft.heldout"):
        for row in files[name]:
            assert sum(in_bytes(m["content"]) for m in row["messages"]) <= CONFIG.max_tokens
            if row["form"] in FORMS:
                assert in_bytes(row["messages"][1]["content"]) <= CONFIG.max_answer_tokens


def test_grounded_rows_hold_the_answer_and_unknown_rows_do_not(files, by_id):
    places = Counter()
    for row in [*files["sft.train"], *files["sft.heldout"]]:
        fact = by_id[row["fact"]]
        asked, told = row["messages"][-2]["content"], row["messages"][-1]["content"]
        before = asked.rpartition("\n\nQuestion: ")[0]
        if row["form"] == "grounded":
            assert passage(fact) in before
            places[before.count("\n\n[", 0, before.index(passage(fact)))] += 1
            inner = told.removeprefix("```python\n").removesuffix("\n```").strip("`")
            assert inner in before
        elif row["form"] == "unknown":
            assert told == NOT_FOUND
            assert before
            assert passage(fact) not in before
            assert fact.summary not in before
    assert set(places) == {0, 1, 2}


def test_most_grounded_rows_are_about_facts_outside_the_closed_book_list(files):
    closed = {row["fact"] for row in files["sft.train"] if row["form"] == "what"}
    reading = [row["fact"] in closed for row in files["sft.train"] if row["form"] == "grounded"]
    assert 0.1 < sum(reading) / len(reading) < 0.4


def test_preferences_are_right_against_a_siblings_answer(files, by_id):
    own = {fact.summary: fact for fact in by_id.values() if fact.unique}
    asked = {row["fact"] for row in files["sft.train"] if row["form"] == "what"}
    for name in ("preferences.train", "preferences.heldout"):
        for row in files[name]:
            fact = by_id[row["fact"]]
            chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
            assert chosen == described(fact.name, fact.summary) != rejected
            wrong = rejected.removeprefix(f"{fact.name}: ")
            assert own[wrong].kind == fact.kind
            assert row["seen"] == (fact.id in asked)
            if row["form"] == "grounded":
                assert fact.summary in row["prompt"][0]["content"]
                assert wrong in row["prompt"][0]["content"]


def test_held_out_pairs_are_other_pairs(files, by_id):
    """Of seen facts another wording with another wrong answer; of held-out facts nothing is trained on."""

    def pairs(name):
        return {
            (row["prompt"][0]["content"], row["rejected"][0]["content"])
            for row in files[f"preferences.{name}"]
        }

    assert {prompt for prompt, _ in pairs("train")}.isdisjoint(p for p, _ in pairs("heldout"))
    assert {by_id[row["fact"]].split for row in files["preferences.train"]} == {"train"}
    again = {row["fact"] for row in files["preferences.heldout"] if row["seen"]}
    trained = {row["fact"] for row in files["preferences.train"] if row["seen"]}
    assert 0.15 < len(again) / len(trained) < 0.45


def test_choices_have_one_right_answer_among_four_of_one_kind_and_split(files, by_id):
    by_summary = {fact.summary: fact for fact in by_id.values() if fact.unique}
    answers = Counter()
    for item in files["choices"]:
        fact = by_id[item["fact"]]
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["answer"]] == fact.summary
        assert fact.name == item["name"] in item["question"]
        others = [by_summary[text] for text in item["choices"]]
        assert {(other.kind, other.split) for other in others} == {(fact.kind, fact.split)}
        assert item["seen"] == (fact.split == "train")
        answers[item["answer"]] += 1
    assert set(answers) == {0, 1, 2, 3}
    assert max(answers.values()) < 0.4 * len(files["choices"])


@pytest.mark.parametrize(
    "likes",
    [len, lambda text: -len(text), str.lower, lambda text: hashlib.sha256(text.encode()).digest()],
    ids=["long", "short", "alphabet", "hash"],
)
def test_a_reader_who_ignores_the_name_scores_exactly_chance(files, likes):
    """The fairness that `choice_items` promises: the same four descriptions are each right once."""
    for seen in (True, False):
        items = [item for item in files["choices"] if item["seen"] == seen]
        # Ties (equal lengths) are broken by the text, as a deterministic reader would.
        picks = [max(item["choices"], key=lambda text: (likes(text), text)) for item in items]
        right = sum(
            item["choices"][item["answer"]] == pick for item, pick in zip(items, picks, strict=True)
        )
        assert right == len(items) / 4


def test_a_reader_who_has_learned_the_facts_scores_all(facts):
    items = choice_items([fact for fact in facts if fact.unique], 400, 7, seen=True)
    known = {fact.id: fact.summary for fact in facts}
    assert len(items) == 400
    assert all(item["choices"].index(known[item["fact"]]) == item["answer"] for item in items)


def test_equal_input_gives_equal_rows_in_whatever_order_the_facts_come(facts, made):
    mixed = list(facts)
    random.Random(3).shuffle(mixed)
    assert derive(mixed, CONFIG, in_bytes) == made
    other = derive(facts, CONFIG.model_copy(update={"seed": 1}), in_bytes)[0]
    assert other["sft.train"] != made[0]["sft.train"]


def test_what_people_call_is_asked_first(facts):
    order = choose([fact for fact in facts if fact.group == "stdlib"], 0)
    kinds = [fact.kind == "method" for fact in order]
    assert kinds == sorted(kinds)
    mine = document('def f(x):\n    """Mill one sack of grain."""', "mine/a.py", group="mine")
    theirs = document(
        'def g(x):\n    """Bake one loaf of bread."""', "site-packages/b.py", group="packages"
    )
    found = choose(extract([theirs, mine])[0], 0)
    assert [fact.name for fact in found] == ["a.f", "b.g"]


def test_a_users_folder_of_notes_gives_questions_too():
    text = "".join(
        f"# Plan {i}\n\nStep {i} moves the {i} mills to the river.\n\n" for i in range(40)
    )
    found = extract([document(text, "n/plans.md", kind="markdown", group="n")])[0]
    files, metrics = derive(found, QuestionsConfig(), in_bytes)
    assert metrics["seen_facts"] == 40
    assert set(metrics["forms"]) == {"what", "grounded", "unknown", "dialogue"}
    assert files["choices"] == [] or all(len(item["choices"]) == 4 for item in files["choices"])


def test_nothing_to_ask_about_is_said():
    with pytest.raises(WorkError, match=r"data\.sources"):
        derive([], QuestionsConfig(), in_bytes)


def test_the_stage_writes_rows_that_the_chat_template_can_mask(tmp_path):
    rows = stdlib_documents(
        ["heapq", "json", "shlex", "statistics", "textwrap", "pathlib", "calendar"]
    )
    documents = write_documents(tmp_path / "documents", rows)
    facts = run_facts(FactsConfig(), {"documents": documents}, tmp_path).outputs["facts"]
    tokenizer = train_bpe(iter([row.text for row in rows]), 1024)
    tokenizer.save(tmp_path / "tokenizer")
    inputs = {"facts": facts, "tokenizer": tmp_path / "tokenizer"}
    config = QuestionsConfig(max_facts=60, heldout_facts=20, choices_seen=20, choices_heldout=8)
    first = stage.run(config, inputs, tmp_path / "a")
    again = stage.run(config, inputs, tmp_path / "b")
    assert first.metrics == again.metrics == json.loads(json.dumps(first.metrics))
    names = {"sft.train", "sft.heldout", "preferences.train", "preferences.heldout", "choices"}
    for name in names:
        one = first.outputs["questions"] / f"{name}.jsonl"
        assert one.read_bytes() == (again.outputs["questions"] / f"{name}.jsonl").read_bytes()
    loaded = Tokenizer.load(tmp_path / "tokenizer")
    for row in read_jsonl(first.outputs["questions"] / "sft.train.jsonl"):
        ids, mask = loaded.chat_ids_with_mask(row["messages"])
        assert len(ids) <= config.max_tokens + 4
        target = loaded.decode([i for i, is_target in zip(ids, mask, strict=True) if is_target])
        assert (
            target.strip()
            == "".join(m["content"] for m in row["messages"] if m["role"] == "assistant").strip()
        )
        if row["form"] in FORMS:
            assert len(loaded.encode(row["messages"][1]["content"])) <= config.max_answer_tokens
