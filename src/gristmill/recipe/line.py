"""The line: which stages a recipe runs, where each is defined, and what each takes from the others.

The table is plain data and a parameter of everything that uses it (recipe, runner, page), so a test
or another program can run a line of its own. Stage modules are imported only when their stage is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

from gristmill.stage import Result, StageConfig

MANIFEST = "manifest"  # an input that means: the other stage's manifest.json itself


@dataclass(frozen=True)
class Node:
    """One stage of the line.

    module: where `run(config, inputs, out_dir, progress) -> Result` is. The module may also define
        `check(config) -> None`: raises RequestError for a request that cannot work;
        `source_fingerprint(config) -> str`: cheap hash of what it reads from outside the run;
        `VERSION: int`: raised when its output changes for equal settings.
    config: name of the StageConfig in that module.
    does: one line for people.
    paths: settings that hold paths (one, or a list) -> the words they may hold instead of a path.
    follows: setting -> (stage, setting) whose written value it takes when it has none of its own.
    inputs: artifact name -> (stage that makes it, name of its output).
    model: the output is a model that one can chat with; the last such stage is the run's model.
    publish: output name -> file name under which the run directory's top shows it.
    """

    module: str
    config: str
    does: str = ""
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    follows: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    model: bool = False
    publish: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> ModuleType:
        return import_module(self.module)

    def config_class(self) -> type[StageConfig]:
        return getattr(self.load(), self.config)

    def runner(self) -> Callable[..., Result]:
        return self.load().run

    def hook(self, name: str) -> Callable[[Any], Any] | None:
        return getattr(self.load(), name, None)


Line = Mapping[str, Node]

_MAKERS = (
    "data", "facts", "tokenizer", "questions", "tokens", "baselines",
    "pretrain", "sft", "dpo", "index", "quantize", "evaluate",
)  # fmt: skip

LINE: dict[str, Node] = {
    "data": Node(
        "gristmill.data.build",
        "BuildConfig",
        "read, clean, deduplicate and split the documents",
        paths={"sources": ("python",), "path": ()},
    ),
    "facts": Node(
        "gristmill.data.facts",
        "FactsConfig",
        "collect functions, classes, topics and sections that can be asked about",
        inputs={"documents": ("data", "documents")},
    ),
    "tokenizer": Node(
        "gristmill.tokenizer.training",
        "TokenizerConfig",
        "learn a byte-level BPE vocabulary",
        paths={"base": ()},
        follows={"base": ("pretrain", "base")},
        inputs={"documents": ("data", "documents")},
    ),
    "questions": Node(
        "gristmill.data.questions",
        "QuestionsConfig",
        "turn facts into questions, answers, preference pairs and tests",
        inputs={"facts": ("facts", "facts"), "tokenizer": ("tokenizer", "tokenizer")},
    ),
    "tokens": Node(
        "gristmill.data.tokens",
        "TokensConfig",
        "encode the documents into token shards",
        inputs={"documents": ("data", "documents"), "tokenizer": ("tokenizer", "tokenizer")},
    ),
    "baselines": Node(
        "gristmill.evaluate.baselines",
        "BaselinesConfig",
        "measure what xz and a 5-gram make of the held-out text",
        inputs={
            "tokens": ("tokens", "tokens"),
            "tokenizer": ("tokenizer", "tokenizer"),
        },
    ),
    "pretrain": Node(
        "gristmill.train.pretrain",
        "PretrainConfig",
        "train the base model to predict the next token",
        paths={"base": ()},
        inputs={"tokens": ("tokens", "tokens"), "tokenizer": ("tokenizer", "tokenizer")},
        model=True,
    ),
    "sft": Node(
        "gristmill.train.sft",
        "SFTConfig",
        "teach it to answer questions",
        inputs={
            "model": ("pretrain", "model"),
            "questions": ("questions", "questions"),
            "tokenizer": ("tokenizer", "tokenizer"),
        },
        model=True,
    ),
    "dpo": Node(
        "gristmill.align.dpo",
        "DPOConfig",
        "teach it to prefer the right answer to a similar wrong one",
        inputs={
            "model": ("sft", "model"),
            "questions": ("questions", "questions"),
            "tokenizer": ("tokenizer", "tokenizer"),
        },
        model=True,
    ),
    "index": Node(
        "gristmill.retrieval.index",
        "IndexConfig",
        "index the documents for answers with citations",
        inputs={"documents": ("data", "documents"), "facts": ("facts", "facts")},
    ),
    "quantize": Node(
        "gristmill.quantize.int8",
        "Int8Config",
        "export the model with 8-bit weights",
        inputs={"model": ("dpo", "model")},
    ),
    "evaluate": Node(
        "gristmill.evaluate.stage",
        "EvaluateConfig",
        "measure every model beside the baselines",
        inputs={
            "tokens": ("tokens", "tokens"),
            "tokenizer": ("tokenizer", "tokenizer"),
            "questions": ("questions", "questions"),
            "index": ("index", "index"),
            "baselines": ("baselines", "baselines"),
            "base_model": ("pretrain", "model"),
            "sft_model": ("sft", "model"),
            "dpo_model": ("dpo", "model"),
            "int8_model": ("quantize", "model"),
        },
    ),
    "report": Node(
        "gristmill.recipe.page",
        "ReportConfig",
        "write the run's page and its model card",
        inputs={stage: (stage, MANIFEST) for stage in _MAKERS},
        publish={"report": "report.html"},
    ),
}


def parents(line: Line, stage: str) -> list[str]:
    """The stages whose outputs `stage` takes, in the line's order."""
    makers = {maker for maker, _ in line[stage].inputs.values()}
    return [name for name in line if name in makers]


def ancestors(line: Line, stages: Iterable[str]) -> set[str]:
    """`stages` and everything they need, directly or not."""
    found: set[str] = set()
    waiting = list(stages)
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found.add(stage)
            waiting += parents(line, stage)
    return found


def descendants(line: Line, stage: str) -> set[str]:
    """`stage` and everything that is made from it, directly or not."""
    found = {stage}
    for name in line:  # the table is in an order in which makers come first
        if found & set(parents(line, name)):
            found.add(name)
    return found
