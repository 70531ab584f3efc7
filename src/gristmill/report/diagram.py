"""A line of stages as connected boxes, left to right, long connections led around the boxes.

A small Sugiyama layout: layers by longest path, only connections that no longer path implies, bends
where a connection passes a layer, and order within a layer by the mean place of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gristmill.report.html import Html, tag

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _BEND = 118, 70, 20, 16, 14


@dataclass(frozen=True)
class Box:
    """name: its first line. lines: smaller ones below. share: length of the bar at its foot, 0 to 1."""

    name: str
    lines: Sequence[str] = ()
    share: float = 0.0
    href: str = ""
    hint: str = ""
    faint: bool = False


def diagram(boxes: Sequence[Box], parents: Mapping[str, Sequence[str]], *, label: str) -> Html:
    """boxes in an order in which parents come first; parents: name -> names it is made from."""
    if not boxes:
        return Html("")
    names = [box.name for box in boxes]
    edges = _reduced(names, parents)
    layers, routes = _layers(names, edges)
    _order(layers, routes)
    place = _place(layers, routes)
    height = max(y + _size(node) for node, (_, y) in place.items()) + 4
    width = len(layers) * (_WIDTH + _GAP_X) - _GAP_X + 4

    parts: list[Html] = []
    for route in routes:
        parts.append(tag("path", d=_way(route, place), class_="edge"))
    for box in boxes:
        x, y = place[box.name]
        lines = [
            tag("text", line, x=x + 10, y=f"{y + 39 + 16 * i:.1f}", class_="small")
            for i, line in enumerate(box.lines[:2])
        ]
        drawn = tag(
            "g",
            tag("title", box.hint or box.name),
            tag("rect", x=x, y=f"{y:.1f}", width=_WIDTH, height=_HEIGHT, rx=7, class_="box"),
            tag("text", box.name, x=x + 10, y=f"{y + 21:.1f}", class_="name"),
            *lines,
            tag(
                "rect",
                x=x + 10,
                y=f"{y + _HEIGHT - 8:.1f}",
                width=f"{max(box.share * (_WIDTH - 20), 1.5 if box.share else 0):.1f}",
                height=3,
                rx=1.5,
                class_="share",
            ),
            class_="faint" if box.faint else None,
        )
        parts.append(tag("a", drawn, href=box.href) if box.href else drawn)
    svg = tag(
        "svg",
        *parts,
        viewBox=f"-2 -2 {width} {height:.0f}",
        role="img",
        aria_label=label,
        style=f"min-width:{width * 0.75:.0f}px",
    )
    return tag("div", svg, class_="diagram scroll")


def _reduced(names: Sequence[str], parents: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Connections without those that a longer path implies."""
    above: dict[str, set[str]] = {}
    for name in names:
        direct = [p for p in parents.get(name, ()) if p in names]
        above[name] = set(direct).union(*(above[p] for p in direct)) if direct else set()
    edges = []
    for name in names:
        direct = [p for p in parents.get(name, ()) if p in names]
        implied = set().union(*(above[p] for p in direct)) if direct else set()
        edges += [(p, name) for p in dict.fromkeys(direct) if p not in implied]
    return edges


def _layers(
    names: Sequence[str], edges: Sequence[tuple[str, str]]
) -> tuple[list[list[str]], list[list[str]]]:
    """Nodes of each layer (bends included), and each connection as the nodes that it passes."""
    depth = dict.fromkeys(names, 0)
    for name in names:
        above = [depth[a] + 1 for a, b in edges if b == name]
        depth[name] = max(above, default=0)
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    routes = []
    for a, b in edges:
        route = [a]
        for layer in range(depth[a] + 1, depth[b]):
            bend = f"|{a}|{b}|{layer}"
            layers[layer].append(bend)
            route.append(bend)
        routes.append([*route, b])
    return layers, routes


def _order(layers: list[list[str]], routes: Sequence[Sequence[str]]) -> None:
    """Sort every layer by the mean place of its neighbours, down and up a few times."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for route in routes:
        for a, b in pairwise(route):
            before.setdefault(b, []).append(a)
            after.setdefault(a, []).append(b)
    for _ in range(4):
        for neighbours, walk in ((before, layers[1:]), (after, layers[-2::-1])):
            for layer in walk:
                place = {node: i for line in layers for i, node in enumerate(line)}

                def mean(node: str, near=neighbours, place=place) -> float:
                    found = [place[n] for n in near.get(node, ())]
                    return sum(found) / len(found) if found else place[node]

                layer.sort(key=mean)  # stable: ties keep their order


def _place(
    layers: Sequence[Sequence[str]], routes: Sequence[Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """x and y of every node: near the middle of its neighbours, without overlap in its layer."""
    near: dict[str, list[str]] = {}
    for route in routes:
        for a, b in pairwise(route):
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
    middle: dict[str, float] = {}
    for layer in layers:
        at = -sum(_size(node) + _GAP_Y for node in layer) / 2
        for node in layer:
            middle[node] = at + _size(node) / 2
            at += _size(node) + _GAP_Y
    for _ in range(60):
        for layer in layers:
            wanted = []
            for node in layer:
                # Bends pull each other most, so that long connections run straight.
                pulls = [(_pull(node, other), middle[other]) for other in near.get(node, [node])]
                wanted.append(sum(w * y for w, y in pulls) / sum(w for w, _ in pulls))
            for node, y in zip(layer, _apart(layer, wanted), strict=True):
                middle[node] = y
    top = min(middle[node] - _size(node) / 2 for layer in layers for node in layer)
    return {
        node: (i * (_WIDTH + _GAP_X), round(middle[node] - _size(node) / 2 - top, 1))
        for i, layer in enumerate(layers)
        for node in layer
    }


def _apart(layer: Sequence[str], wanted: Sequence[float]) -> list[float]:
    """The places closest to the wanted ones that keep the order and the gaps: merge touching runs."""
    runs: list[tuple[list[int], float]] = []  # (members, mean of wanted - offset)
    offsets = [0.0]
    for a, b in pairwise(layer):
        offsets.append(offsets[-1] + (_size(a) + _size(b)) / 2 + _GAP_Y)
    for i, y in enumerate(wanted):
        runs.append(([i], y - offsets[i]))
        while len(runs) > 1 and runs[-2][1] > runs[-1][1]:
            (last, b), (first, a) = runs.pop(), runs.pop()
            runs.append((first + last, (a * len(first) + b * len(last)) / (len(first) + len(last))))
    return [start + offsets[i] for members, start in runs for i in members]


def _pull(a: str, b: str) -> int:
    return (1, 2, 8)[a.startswith("|") + b.startswith("|")]


def _size(node: str) -> int:
    return _BEND if node.startswith("|") else _HEIGHT


def _way(route: Sequence[str], place: Mapping[str, tuple[float, float]]) -> str:
    """A curve from the right side of the first box to the left side of the last, through the bends."""

    def side(node: str, right: bool) -> tuple[float, float]:
        x, y = place[node]
        return (x + _WIDTH if right else x), y + _size(node) / 2

    x, y = side(route[0], right=True)
    way = f"M{x:.1f},{y:.1f}"
    for node in route[1:]:
        to_x, to_y = side(node, right=False)
        bend = (to_x - x) / 2
        way += f"C{x + bend:.1f},{y:.1f} {to_x - bend:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}"
        x, y = to_x, to_y
        if node.startswith("|"):
            x, _ = side(node, right=True)
            way += f"H{x:.1f}"
    return way
