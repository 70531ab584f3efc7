"""Blocks of a page: valid, escaped, loading nothing, and charts that show the numbers they were given."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.report import (
    Bar,
    Box,
    Html,
    Section,
    Series,
    bar_chart,
    code,
    columns,
    diagram,
    figures,
    folded,
    join,
    line_chart,
    meters,
    page,
    says,
    table,
    tag,
    text,
)
from gristmill.report.charts import ticks

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\x00\x1b\ud800 & \'"'
VOID = {"meta", "br", "hr", "link", "img", "input", "col"}


class Reader(HTMLParser):
    """Checks that every element is closed in order; collects tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, name: str, attrs: list) -> None:
        self.tags.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: list) -> None:
        self.tags.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        assert self.open and self.open[-1] == name, f"</{name}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def everything(words: str) -> Html:
    """One of each block, with the given text wherever text can be."""
    return join(
        (
            table([words, "n"], [[words, 1], [words, 2.5]], caption=words),
            figures([(words, words, words)]),
            folded(words, code(words)),
            columns([(words, says("assistant", words, note=words))]),
            says(words, words),
            meters([(words, 0.5)]),
            line_chart([Series(words, [(0, 1), (1, 2)])], x=words, y=words, title=words),
            bar_chart(
                [Bar(words, 1, 0.1, note=words, group=words)], title=words, reference=(words, 0.5)
            ),
            diagram([Box(words, [words], href=words, hint=words)], {}, label=words),
        )
    )


def test_hostile_text_stays_text() -> None:
    html = page(HOSTILE, [Section(HOSTILE, everything(HOSTILE), HOSTILE)], subtitle=HOSTILE)
    html.encode("utf-8")  # the lone surrogate is gone
    reader = read(html)
    names = {name for name, _ in reader.tags}
    assert not names & {"script", "img", "iframe", "object", "link"}
    assert not [a for _, attrs in reader.tags for a in attrs if a.startswith("on")]
    assert "</script><script>alert(1)</script>" in "".join(reader.words)
    assert "\x00" not in html and "\x1b" not in html


@given(st.text())
def test_any_text_survives_as_text(words: str) -> None:
    escaped = text(words)
    assert "<" not in escaped and ">" not in escaped and '"' not in escaped
    if words.isprintable():
        assert "".join(read(tag("p", words)).words) == words


def test_page_loads_nothing_and_refuses_to() -> None:
    html = page("t", [Section("a", everything("x"))])
    reader = read(html)
    assert not re.search(r"https?:", html)
    assert not [attrs for _, attrs in reader.tags if "src" in attrs]
    assert all(
        attrs["href"].startswith(("#", "x")) for _, attrs in reader.tags if attrs.get("href")
    )
    policy = [a["content"] for n, a in reader.tags if n == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_contents_lead_to_the_sections() -> None:
    reader = read(page("t", [Section("The line", Html("a")), Section("Next token", Html("b"))]))
    links = [a["href"] for n, a in reader.tags if n == "a"]
    ids = [a["id"] for n, a in reader.tags if n == "section"]
    assert links == [f"#{anchor}" for anchor in ids] == ["#the-line", "#next-token"]


def test_numbers_stand_to_the_right_and_text_does_not() -> None:
    reader = read(table(["what", "how many"], [["a", 1200], ["b", "3 MB"]]))
    classes = [(a.get("class")) for n, a in reader.tags if n == "td"]
    assert classes == [None, "number", None, "number"]
    assert "1,200" in reader.words


@given(st.floats(-1e9, 1e9, allow_nan=False), st.floats(1e-6, 1e9, allow_nan=False))
def test_ticks_are_round_few_and_cover_the_range(low: float, width: float) -> None:
    high = low + width
    if high - low < 1e-6 * max(1.0, abs(low)):
        return  # closer together than a label of a few digits can tell
    marks = ticks(low, high)
    steps = [b - a for a, b in pairwise(marks)]
    assert 2 <= len(marks) <= 12
    step = steps[0]
    assert steps == pytest.approx([step] * len(steps), rel=1e-3)
    assert marks[0] <= low + 1e-6 * step and marks[-1] >= high - 1e-6 * step


def test_line_chart_draws_every_point_where_it_belongs() -> None:
    points = [(0.0, 1.0), (50.0, 3.0), (100.0, 2.0)]
    reader = read(line_chart([Series("loss", points)], x="step", y="loss"))
    marks = [(float(a["cx"]), float(a["cy"])) for n, a in reader.tags if n == "circle"]
    assert len(marks) == 3
    assert marks[1][0] - marks[0][0] == pytest.approx(marks[2][0] - marks[1][0], abs=0.2)
    # 3 is as far above 2 as 2 is above 1; SVG's y grows downwards
    assert marks[0][1] - marks[2][1] == pytest.approx(marks[2][1] - marks[1][1], abs=0.2)
    assert "loss: 3 at step 50" in reader.words


def test_line_chart_leaves_out_what_is_not_finite() -> None:
    nan, inf = float("nan"), float("inf")
    reader = read(line_chart([Series("a", [(0, nan), (1, 2), (2, inf), (3, 4)])], x="x", y="y"))
    assert len([1 for name, _ in reader.tags if name == "circle"]) == 2
    assert line_chart([Series("a", [(0, nan)])], x="x", y="y") == ""
    assert line_chart([], x="x", y="y") == ""


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-9, 1e12])
def test_line_chart_takes_a_constant_and_a_single_point(value: float) -> None:
    for points in ([(0, value), (1, value)], [(5, value)]):
        chart = line_chart([Series("a", points)], x="x", y="y")
        assert "nan" not in chart and "inf" not in chart
        read(chart)


def test_bars_are_as_long_as_their_values() -> None:
    reader = read(bar_chart([Bar("a", 1.0), Bar("b", 2.0), Bar("c", 4.0)]))
    widths = [float(a["width"]) for n, a in reader.tags if n == "rect"]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], abs=0.2)
    assert [w for w in reader.words if w in ("1.000", "2.000", "4.000")] == [
        "1.000",
        "2.000",
        "4.000",
    ]


def boxes_of(html: str) -> list[tuple[float, float]]:
    rects = [a for n, a in read(html).tags if n == "rect" and a.get("class") == "box"]
    return [(float(a["x"]), float(a["y"])) for a in rects]


def test_diagram_flows_left_to_right_without_overlap() -> None:
    made_from = {
        "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["c"], "f": ["d", "e", "a"], "g": ["b"],
    }  # fmt: skip
    names = list("abcdefg")
    places = dict(
        zip(names, boxes_of(diagram([Box(n) for n in names], made_from, label="l")), strict=True)
    )
    for name, parents in made_from.items():
        for parent in parents:
            assert places[parent][0] < places[name][0]
    for (ax, ay), (bx, by) in combinations(places.values(), 2):
        assert ax != bx or abs(ay - by) >= 70  # a box is 70 high


def test_diagram_leaves_out_connections_that_a_longer_way_implies() -> None:
    html = diagram([Box("a"), Box("b"), Box("c")], {"b": ["a"], "c": ["a", "b"]}, label="l")
    assert len([1 for n, a in read(html).tags if n == "path"]) == 2
