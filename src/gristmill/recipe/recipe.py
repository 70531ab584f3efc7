"""A recipe: a TOML file with one table a stage, checked whole before anything runs.

Where a stage's setting comes from, first match wins: `--set`, the recipe file, the dial (what the
recipe's `size` derives), the stage's own default. "auto" in a file asks for the dial's value.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gristmill.errors import RequestError, nearest
from gristmill.recipe import toml
from gristmill.recipe.complaints import complaints, shown
from gristmill.recipe.line import LINE, Line
from gristmill.stage import StageConfig

if TYPE_CHECKING:
    from gristmill.recipe.runner import RunResult
    from gristmill.recipe.view import View

SHIPPED = Path(__file__).with_name("shipped")
_HEAD = {
    "name": (str, "text in quotes"),
    "title": (str, "text in quotes"),
    "seed": (int, "a whole number"),
    "size": (str, 'a size such as "small"'),
    "requires": (dict, "a table of key -> what it is"),
    "resolved": (bool, "true or false"),
}

Dial = Callable[[str], Mapping[str, Mapping[str, Any]]]


def derived_by(size: str) -> Mapping[str, Mapping[str, Any]]:
    """stage -> key -> value that a size derives. Raises RequestError for an impossible size."""
    from gristmill.train.dial import derive

    return derive(size)


@dataclass(frozen=True)
class Recipe:
    """What a recipe file and its overrides say.

    stages: stage -> settings as written (nothing filled in).
    requires: key -> what it is, for settings that only the person can give.
    resolved: the file is one that a run saved, with every value spelled out.
    origin: dotted key -> where it was written, for messages ("my.toml:12", "--set").
    """

    name: str
    title: str
    seed: int
    size: str
    stages: Mapping[str, Mapping[str, Any]]
    requires: Mapping[str, str] = field(default_factory=dict)
    resolved: bool = False
    source: str = ""
    home: Path | None = None
    line: Line = field(default_factory=lambda: LINE, repr=False)
    dial: Dial = field(default=derived_by, repr=False)
    origin: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        source: str | Path,
        overrides: Mapping[str, Any] | None = None,
        *,
        line: Line = LINE,
        dial: Dial = derived_by,
    ) -> Recipe:
        """Read a recipe: a TOML file, a run directory, or the name of a shipped recipe.

        overrides: dotted key -> value, as `--set` gives them ("size", "pretrain.tokens").
        Raises RequestError for what cannot be read, is no TOML, or names no stage of the line.
        """
        path = find(source)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read the recipe {path}: {error}") from error
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RequestError(f"{path} is not valid TOML: {error}") from error

        def written(key: tuple[str, ...]) -> str:
            number = toml.line_of(text, key)
            return f"{path}:{number}" if number else str(path)

        origin = {".".join(key): written(key) for key in _paths(document)}
        _check_head(document, line, lambda key: origin.get(key, str(path)))
        recipe = cls(
            name=document.get("name", path.stem),
            title=document.get("title", document.get("name", path.stem)),
            seed=document.get("seed", 0),
            size=document.get("size", "small"),
            stages={stage: document.get(stage, {}) for stage in line},
            requires=document.get("requires", {}),
            resolved=document.get("resolved", False),
            source=str(path),
            home=path.parent if document.get("resolved") else None,
            line=line,
            dial=dial,
            origin=origin,
        )
        return recipe.override(overrides or {})

    def override(self, overrides: Mapping[str, Any]) -> Recipe:
        """A copy with some keys replaced. Raises RequestError for what is no stage or key."""
        head: dict[str, Any] = {}
        stages: dict[str, dict[str, Any]] = json.loads(json.dumps(self.stages, default=str))
        origin = dict(self.origin)
        for key, value in overrides.items():
            first, *rest = key.split(".")
            origin[key] = "--set"
            if not rest and first not in self.line:
                head[first] = value
                continue
            if first not in self.line:
                hint = nearest(first, self.line)
                raise RequestError(f'--set {key}: there is no stage "{first}".{hint}')
            if not rest:
                keys = f"--set {first}.KEY=VALUE"
                raise RequestError(f"--set {key}: {first} is a stage; set one of its keys: {keys}")
            table: Any = stages[first]
            for part in rest[:-1]:
                table = table.setdefault(part, {})
                if not isinstance(table, dict):
                    raise RequestError(f"--set {key}: {first}.{part} is no table")
            table[rest[-1]] = value
        if isinstance(head.get("size"), int):  # `--set size=30` parses as a number
            head["size"] = str(head["size"])
        _check_head(head, self.line, lambda key: f"--set {key}")
        if self.resolved and head.keys() & {"size", "seed"}:
            key = min(head.keys() & {"size", "seed"})
            raise RequestError(
                f"{self.source} was saved by a run with every value spelled out, so --set {key} "
                "would change nothing. Run the recipe that it came from "
                f"(`gristmill run {self.name} --set …`), or set the stage's own keys."
            )
        return replace(self, **head, stages=stages, origin=origin)

    def resolve(self) -> dict[str, StageConfig]:
        """Every stage's typed settings. Nothing is touched on disk.

        Raises RequestError that lists all that is wrong: unknown keys, wrong types, missing files,
        an impossible size.
        """
        problems = [
            f"{self.source}: {key} ({what}) is required. Add --set {key}=…"
            for key, what in self.requires.items()
            if not _has(self.stages, key)
        ]
        if problems:
            raise RequestError("\n".join(problems))
        derived: Mapping[str, Mapping[str, Any]] = {}
        if not self.resolved:
            try:
                derived = self.dial(self.size)
            except RequestError as error:
                raise RequestError(f"{self._where('size')}{error}") from error
        configs: dict[str, StageConfig] = {}
        for stage, node in self.line.items():
            config = node.config_class()
            values = _merge(derived.get(stage, {}), self.stages[stage])
            fields = config.model_fields
            for name, value in (("seed", self.seed), ("title", self.title)):
                if name in fields and values.get(name, "auto") == "auto":
                    values[name] = value
            for name, (other, key) in node.follows.items():
                if name in fields and name not in values and key in self.stages[other]:
                    values[name] = self.stages[other][key]
            values = _absolute(values, node.paths)
            try:
                # Through JSON, so that strict types still let text become a Path and a list a
                # tuple.
                text = json.dumps(values, default=str)
                configs[stage] = config.model_validate_json(text, strict=True)
            except ValidationError as error:
                problems += complaints(error, config, lambda path, s=stage: self._where(s, *path))
        if problems:
            raise RequestError("\n".join(problems))
        for stage, config in configs.items():
            check = self.line[stage].hook("check")
            if check is not None:
                try:
                    check(config)
                except RequestError as error:
                    # One setting may trouble several stages; the first complaint says enough.
                    if not any(known.startswith(self._where(stage)) for known in problems):
                        problems.append(f"{self._where(stage)}{error}")
        if problems:
            raise RequestError("\n".join(problems))
        return configs

    def check_apart(self, configs: Mapping[str, StageConfig], run_dir: Path) -> None:
        """Raises RequestError where something that a stage reads lies in the run that would replace it."""
        for stage, node in self.line.items():
            for key, words in node.paths.items():
                given = getattr(configs[stage], key)
                for value in [given] if isinstance(given, str | Path) else given or ():
                    place = Path(value).expanduser().resolve()
                    if value and value not in words and place.is_relative_to(run_dir.resolve()):
                        raise RequestError(
                            f"{self._where(stage)}{value} lies in {run_dir}, the run that would replace "
                            "it. Choose another directory with --out."
                        )

    def fingerprints(self, configs: Mapping[str, StageConfig]) -> dict[str, str]:
        """stage -> hash of what it reads from outside the run (source files), for those that do.

        Raises RequestError when that is not there.
        """
        found = {}
        for stage, node in self.line.items():
            fingerprint = node.hook("source_fingerprint")
            if fingerprint is not None:
                try:
                    found[stage] = fingerprint(configs[stage])
                except RequestError as error:
                    raise RequestError(f"{self._where(stage)}{error}") from error
        return found

    def run(
        self,
        out: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        from_stage: str | None = None,
        until: str | None = None,
        verify: bool = False,
        view: View | None = None,
    ) -> RunResult:
        """Run the line in `out` (default runs/NAME); what is unchanged is not run again.

        from_stage: run this stage and what follows from it again, also when unchanged.
        until: stop after this stage; only what it needs is run.
        verify: check the sha256 of every output on disk, not only of the small ones.
        Raises RequestError before any work, WorkError when a stage fails.
        """
        from gristmill.recipe.runner import execute

        recipe = self.override(overrides) if overrides else self
        return execute(
            recipe,
            recipe.directory(out),
            from_stage=from_stage,
            until=until,
            verify=verify,
            view=view,
        )

    def directory(self, out: str | Path | None = None) -> Path:
        """Where the run goes: `out`, or the run that the recipe was read from, or runs/NAME."""
        return Path(out).expanduser() if out is not None else self.home or Path("runs") / self.name

    def to_toml(self, configs: Mapping[str, StageConfig]) -> str:
        """The recipe with every value spelled out; loading it again gives the same settings."""
        head = {"name": self.name, "title": self.title, "seed": self.seed, "size": self.size}
        tables = {stage: config.model_dump(mode="json") for stage, config in configs.items()}
        return toml.dumps({**head, "resolved": True, **tables})

    def _where(self, *path: str) -> str:
        """'file:line: [stage] ' or '--set stage.key: ' for the most exact place known."""
        if path[0] in self.line and len(path) == 1:
            # About a stage as a whole: what was set, there or where it follows, is the likely cause.
            followed = {".".join(other) for other in self.line[path[0]].follows.values()}
            for key, written in self.origin.items():
                if written == "--set" and (key.startswith(f"{path[0]}.") or key in followed):
                    return f"--set {key}: "
            for key in followed & self.origin.keys():
                return f"{self.origin[key]}: [{key.split('.')[0]}] "
        for length in range(len(path), 0, -1):
            key = ".".join(path[:length])
            written = self.origin.get(key)
            if written == "--set":
                return f"--set {'.'.join(path)}: "
            if written:
                return f"{written}: " + (f"[{path[0]}] " if path[0] in self.line else "")
        return f"{self.source}: " + (f"[{path[0]}] " if path and path[0] in self.line else "")


def find(source: str | Path) -> Path:
    """The recipe file that a path, a run directory or a shipped recipe's name means."""
    path = Path(source).expanduser()
    if path.is_dir() and (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}
    if str(source) in shipped:
        return shipped[str(source)]
    if path.is_dir():
        raise RequestError(f"{path} is a directory without a recipe.toml: not a run of gristmill")
    hint = nearest(str(source), shipped)
    names = ", ".join(shipped) or "none"
    raise RequestError(f'there is no recipe "{source}".{hint} Shipped recipes: {names}.')


def _check_head(head: Mapping[str, Any], line: Line, where: Callable[[str], str]) -> None:
    """The keys outside the stages' tables."""
    problems = []
    for key, value in head.items():
        if key in line:
            if not isinstance(value, dict):
                problems.append(
                    f"{where(key)}: {key} is a stage: write a table [{key}], not {shown(value)}"
                )
        elif key not in _HEAD:
            options = [*line, *_HEAD]
            what = "stage" if isinstance(value, dict) else "key"
            problems.append(f'{where(key)}: there is no {what} "{key}".{nearest(key, options)}')
        else:
            kind, wanted = _HEAD[key]
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                problems.append(f"{where(key)}: {key} must be {wanted}, not {shown(value)}")
            elif key == "name" and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                problems.append(
                    f"{where(key)}: name must be letters, digits, '.', '_' and '-' (it names the "
                    f"run's directory), not {shown(value)}"
                )
            elif key == "seed" and value < 0:
                problems.append(f"{where(key)}: seed must be 0 or more, not {value}")
    if problems:
        raise RequestError("\n".join(problems))


def _paths(table: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key path of nested tables."""
    found = []
    for key, value in table.items():
        found.append((*prefix, key))
        if isinstance(value, Mapping):
            found += _paths(value, (*prefix, key))
    return found


def _has(stages: Mapping[str, Any], key: str) -> bool:
    value: Any = stages
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _merge(derived: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What was written, over what the dial derives; "auto" takes the dial's value."""
    merged = dict(derived)
    for key, value in written.items():
        below = derived.get(key)
        if isinstance(value, Mapping):
            merged[key] = _merge(below if isinstance(below, Mapping) else {}, value)
        elif value != "auto" or key not in derived:
            merged[key] = value
    return merged


def _absolute(values: dict[str, Any], paths: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Paths of things that are there become absolute: the saved recipe works from any directory."""

    def absolute(value: Any, words: tuple[str, ...]) -> Any:
        if isinstance(value, list):
            return [absolute(item, words) for item in value]
        if not isinstance(value, str) or not value or value in words:
            return value
        path = Path(value).expanduser()
        return str(path.absolute()) if path.exists() or value.startswith("~") else value

    return {
        key: absolute(value, paths[key]) if key in paths else value for key, value in values.items()
    }
