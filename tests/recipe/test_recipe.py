"""A recipe: where settings come from, and what is said about a wrong one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_line import LINE, dial

from gristmill.errors import RequestError
from gristmill.recipe import Recipe
from gristmill.recipe import line as real
from gristmill.recipe.recipe import find
from gristmill.recipe.toml import dumps, line_of, parse_value

Load = Callable[..., Recipe]


def test_file_wins_over_dial_wins_over_default(load: Load) -> None:
    configs = load('[text]\nword = "a"\n').resolve()
    assert configs["text"].word == "a"  # the file's
    assert configs["text"].words == 5  # the dial's for "small"
    assert configs["text"].language == "en"  # the stage's own
    assert configs["text"].inner.weight == 3.0  # the dial's, in a table of its own


def test_overrides_win_over_the_file(load: Load) -> None:
    configs = load(
        overrides={"text.word": "x", "text.inner.weight": 0.5, "size": "large"}
    ).resolve()
    assert (configs["text"].word, configs["text"].inner.weight, configs["text"].words) == (
        "x",
        0.5,
        50,
    )


def test_explicit_values_win_over_the_dial_and_auto_asks_for_it(load: Load) -> None:
    assert load("[text]\nwords = 7\n").resolve()["text"].words == 7
    assert load('[text]\nwords = "auto"\n', {"size": "large"}).resolve()["text"].words == 50


def test_the_recipes_seed_reaches_only_stages_that_have_one(load: Load) -> None:
    configs = load(overrides={"seed": 11}).resolve()
    assert configs["text"].seed == 11
    assert "seed" not in type(configs["count"]).model_fields


def test_saved_recipe_gives_equal_settings(load: Load, tmp_path: Path) -> None:
    recipe = load(overrides={"size": "large", "count.names": ["b", "c"]})
    saved = tmp_path / "recipe.toml"
    saved.write_text(recipe.to_toml(recipe.resolve()))
    again = Recipe.load(saved, line=LINE, dial=dial)
    assert again.resolve() == recipe.resolve()
    assert again.name == "words"


def test_saved_recipe_refuses_the_dial(load: Load, tmp_path: Path) -> None:
    recipe = load()
    saved = tmp_path / "recipe.toml"
    saved.write_text(recipe.to_toml(recipe.resolve()))
    with pytest.raises(RequestError, match="size would change nothing"):
        Recipe.load(saved, {"size": "large"}, line=LINE, dial=dial)
    assert Recipe.load(saved, {"text.words": 9}, line=LINE, dial=dial).resolve()["text"].words == 9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[text]\nwrod = 'x'\n", ':2: [text] there is no key "wrod". Did you mean "word"?'),
        ("[txt]\n", ':1: there is no stage "txt". Did you mean "text"?'),
        ("titel = 'x'\n", ':1: there is no key "titel". Did you mean "title"?'),
        ("[text]\n\nwords = 'many'\n", ':3: [text] words must be a whole number, not "many"'),
        ("[text]\nwords = 2.5\n", ":2: [text] words must be a whole number, not 2.5"),
        ("[text]\nwords = true\n", ":2: [text] words must be a whole number, not true"),
        ("[text]\nwords = 0\n", ":2: [text] words should be greater than or equal to 1, not 0"),
        ("[text]\nword = 3\n", ":2: [text] word must be text in quotes, not 3"),
        ("[text]\nlanguage = 'fr'\n", ":2: [text] language must be 'en' or 'de', not \"fr\""),
        ("[text.inner]\nwieght = 1.0\n", ':2: [text] there is no key "wieght". Did you mean "weight"?'),
        ("[text]\ninner = 3\n", ":2: [text] inner must be a table, not 3"),
        ("[count]\nnames = 'a'\n", ':2: [count] names must be a list, not "a"'),
        ("seed = -1\n", ":1: seed must be 0 or more, not -1"),
        ("seed = 'a'\n", ':1: seed must be a whole number, not "a"'),
        ("name = 'a/b'\n", ":1: name must be letters"),
        ("text = 3\n", ":1: text is a stage: write a table [text], not 3"),
        ("size = 'huge'\n", ':1: there is no size "huge". Sizes: small, large.'),
        ("[text\n", "is not valid TOML"),
        ("[requires]\n'text.folder' = 'your folder'\n", "text.folder (your folder) is required"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_told_where_and_what(
    load: Load, recipe_file: Path, text: str, said: str
) -> None:
    with pytest.raises(RequestError) as error:
        load(text).resolve()
    assert said in str(error.value)
    assert str(recipe_file) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("text.wrod", "x", '--set text.wrod: there is no key "wrod". Did you mean "word"?'),
        ("txt.word", "x", '--set txt.word: there is no stage "txt". Did you mean "text"?'),
        ("text.words", "many", '--set text.words: words must be a whole number, not "many"'),
        ("text", 3, "text is a stage"),
        ("size", "huge", '--set size: there is no size "huge"'),
        ("sizes", "small", '--set sizes: there is no key "sizes". Did you mean "size"?'),
        ("text.word.x", 1, "text.word is no table"),
    ],
)
def test_a_wrong_override_is_told_as_such(load: Load, key: str, value: object, said: str) -> None:
    with pytest.raises(RequestError) as error:
        load(overrides={key: value}).resolve()
    assert said in str(error.value)


def test_everything_wrong_is_said_at_once(load: Load) -> None:
    with pytest.raises(RequestError) as error:
        load("[text]\nwrod = 1\nwords = 'x'\n[count]\nstep = []\n").resolve()
    assert len(str(error.value).splitlines()) == 3


def test_missing_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r'no recipe "pyhlep"\. Did you mean "pyhelp"'):
        find("pyhlep")
    with pytest.raises(RequestError, match=r"without a recipe\.toml"):
        find(tmp_path)


def test_shipped_recipes_are_found_by_name() -> None:
    assert find("pyhelp").is_file()
    assert find("my-docs").is_file()


def test_paths_become_absolute_and_words_stay(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load(overrides={"text.folder": "notes"}).resolve()["text"].folder == str(
        tmp_path / "notes"
    )


def test_a_setting_follows_another_stages_unless_written(load: Load) -> None:
    assert load().resolve()["total"].label == "grist"  # text.word
    assert load(overrides={"total.label": "own"}).resolve()["total"].label == "own"


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
TABLES = st.recursive(
    st.dictionaries(st.text(), VALUES, max_size=4),
    lambda inner: st.dictionaries(st.text(), VALUES | inner, max_size=4),
    max_leaves=4,
)


@given(TABLES)
def test_toml_is_written_as_tomllib_reads_it(table: dict) -> None:
    assert tomllib.loads(dumps(table)) == table


def test_set_values_are_toml_or_else_text() -> None:
    assert parse_value("3") == 3
    assert parse_value("true") is True
    assert parse_value('["a", "b"]') == ["a", "b"]
    assert parse_value("tiny") == "tiny"
    assert parse_value("~/notes") == "~/notes"
    assert parse_value("1\nother = 2") == "1\nother = 2"  # no second key can be smuggled in


def test_line_of_finds_the_key_in_its_own_table() -> None:
    text = "a = 1\n[x]\na = 2\n[y]\na = 3\n[y.z]\nb.c = 4\n"
    assert [
        line_of(text, path) for path in [("a",), ("x", "a"), ("y", "a"), ("y", "z", "b", "c")]
    ] == [1, 3, 5, 7]


def test_real_line_is_in_an_order_in_which_makers_come_first() -> None:
    done: list[str] = []
    for stage in real.LINE:
        assert set(real.parents(real.LINE, stage)) <= set(done), stage
        done.append(stage)


def test_real_report_reads_every_other_stage() -> None:
    assert {maker for maker, _ in real.LINE["report"].inputs.values()} == set(real.LINE) - {
        "report"
    }
