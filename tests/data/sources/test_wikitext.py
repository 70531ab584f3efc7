"""Wikitext to text: against mwparserfromhell where both must agree, then for any input, then by example."""

import time

import mwparserfromhell
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.sources.wikitext import wikitext_text

_WORD = st.text("abcdefgh", min_size=1, max_size=6)


@st.composite
def _markup(draw, depth: int = 3) -> str:
    """Well-formed inline wikitext of what both parsers treat alike."""
    kind = draw(st.integers(0, 8 if depth else 0))
    if kind <= 2:
        return draw(_WORD)
    inner = draw(_markup(depth - 1)) + " " + draw(_markup(depth - 1))
    return {
        3: f"'''{inner}'''" if "'" not in inner else inner,
        4: f"[[target|{inner}]]" if "[[" not in inner else inner,
        5: f"{{{{unknown|{inner}|x={inner}}}}}",
        6: f"<!-- {draw(_WORD)} -->",
        7: f"[http://example.org/{draw(_WORD)} {draw(_WORD)}]",
        8: f"<small>{inner}</small>",
    }[kind]


@settings(max_examples=150, deadline=None)
@given(st.lists(_markup(), min_size=1, max_size=8))
def test_same_words_as_mwparserfromhell(parts: list[str]) -> None:
    source = "x " + " ".join(parts)
    theirs = mwparserfromhell.parse(source).strip_code(keep_template_params=False)
    assert wikitext_text(source).split() == theirs.split()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            "{{ }} {{{ }}} [[ ]] {| |} | ''' <ref> </ref> <!-- --> a \n = * <math> ] }".split(" ")
        )
    )
)
def test_any_sequence_of_brackets_is_read(parts: list[str]) -> None:
    text = wikitext_text("".join(parts))
    assert "\x00" not in text


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_text_without_markup_keeps_its_words(text: str) -> None:
    plain = "".join(c for c in text if c.isalnum() or c == " ")
    assert wikitext_text(plain).split() == plain.split()


@pytest.mark.parametrize(
    "bomb",
    [
        "{{",
        "[[",
        "<ref>",
        "<!--",
        "{|\n",
        "}}",
        "[http://a ",
        "<a",
        "'",
        "( ;",
        "<math>",
        "__A",
        "{{a|",
    ],
)
def test_time_grows_with_the_size_only(bomb: str) -> None:
    """Ten times the input in well under a hundred times the time, which a quadratic step would take."""
    size = 20_000 // len(bomb)
    times = []
    for count in (size, 10 * size):
        start = time.process_time()
        wikitext_text(bomb * count)
        times.append(time.process_time() - start)
    assert times[1] < 40 * max(times[0], 0.005)


ARTICLE = """{{Infobox
| name = {{nowrap|A}}
| image = [[File:a.png|thumb|a [[b]]]]
}}
'''Anna''' ({{lang|fr|Anne}}; {{IPA|an}}) was a [[Norway|Norwegian]] [[writer]]s.<ref name=x>{{c}}</ref><ref name="y" />
It is {{convert|10|km|mi}} away &ndash; <nowiki>[[not a link]]</nowiki>.
== History ==
* one
** two
# first
# second
{| class="wikitable"
| gone || {{x}}
|}
So <math>x^2 < 3</math>.
<syntaxhighlight lang="python">
# == not a heading ==
x = {{}}
</syntaxhighlight>
== Empty ==
=== Empty below ===
== See also ==
* [[gone]]
== Later ==
{{never closed
[http://example.org A site], [[Category:Gone]][[Datei:gone.png]][[fr:Gone]][[:Category:Kept]]
== References ==
{{reflist}}
"""


def test_an_article() -> None:
    assert wikitext_text(ARTICLE, ["datei"]) == (
        "Anna (Anne) was a Norwegian writers.\n"
        "It is 10 km away – [[not a link]].\n\n"
        "## History\n\n- one\n  - two\n1. first\n2. second\n\n"
        "So $x^2 < 3$.\n\n"
        "```python\n# == not a heading ==\nx = {{}}\n```\n\n"
        "## Later\n\nnever closed\nA site, Category:Kept"
    )
