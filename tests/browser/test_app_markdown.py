"""The page's Markdown against markdown-it's, and streamed against whole."""

from __future__ import annotations

import random
import re

import pytest
from markdown_it import MarkdownIt
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, String

from tests.browser.canned import MARKDOWN

ORACLE = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(
    ["table", "strikethrough"]
)
BLOCKS = [
    "# One *title*",
    "### Three ###",
    "A paragraph with `code`, **bold** and _slanted_ words,\nover two lines.",
    "Text with 2 * 3 * 4 and snake_case_names and \\*stars\\*.",
    "***both*** **bold *inside* it** *a **b** c* ~~gone~~",
    "[a link](https://example.com/a_(b)) and <https://example.com/x>",
    "- one\n- two\n  - deeper\n  - and more\n- three",
    "- loose\n\n- list\n\n  with a paragraph",
    "1. first\n2. second\n   ```py\n   x = 1\n   ```\n3. third",
    "7) seven\n8) eight",
    "* star\n+ plus\n- minus",
    "> quoted\nlazily\n> > deeper\n>\n> - a list",
    "```python\ndef f():\n    return '`'\n```",
    "~~~\ntildes ``` inside\n~~~",
    "````\n```\n````",
    "    indented\n\n    code",
    "| a | b |\n|---|:-:|\n| `x` | *y* |\n| only one |\n| 1 | 2 | 3 |",
    "a | b\n-|-\n1 | 2",
    "***",
    "- item\n\n\n- after a gap",
    "-\n  empty first\n-\n- x",
    "12. twelve\n\n    still twelve",
]
# Both trees as nested lists, without attributes but links and starts, and without white space that does not show.
TREES = """async ([texts, pages]) => {
  const { Markdown } = await import("/static/lib/markdown.js");
  const BLOCK = "P H1 H2 H3 H4 H5 H6 UL OL LI BLOCKQUOTE PRE TABLE THEAD TBODY TR TH TD HR DIV BR".split(" ");
  const tree = (node, raw) => {
    const out = [];
    const text = (s) => typeof out.at(-1) === "string" ? out.push(out.pop() + s) : out.push(s);
    for (const child of node.childNodes) {
      if (child.nodeType === 3) { text(child.data); continue; }
      if (child.className === "code-head" || child.tagName === "INPUT") continue;
      const wrapper = child.tagName === "DIV" && ["code", "table"].includes(child.className);
      if (wrapper) { out.push(...tree(child, raw)); continue; }
      if (raw && child.tagName === "SPAN") { text(child.textContent); continue; }
      const level = /^level-(\\d)$/.exec(child.className);
      const pre = raw || child.tagName === "PRE";
      out.push([level ? `H${level[1]}` : child.tagName === "DEL" ? "S" : child.tagName,
        child.getAttribute("href") ?? "", child.getAttribute("start") ?? "", ...tree(child, pre)]);
    }
    const near = (i) => !out[i] || (typeof out[i] !== "string" && BLOCK.includes(out[i][0]));
    return out.map((one, i) => {
      if (typeof one !== "string") return one;
      if (raw) return one.replace(/\\n$/, "");
      one = one.replace(/\\s+/g, " ");
      if (near(i - 1)) one = one.trimStart();
      return near(i + 1) ? one.trimEnd() : one;
    }).filter((one) => one !== "");
  };
  return texts.map((text, i) => {
    const ours = document.createElement("div");
    new Markdown(ours).update(text);
    const theirs = new DOMParser().parseFromString(pages[i], "text/html").body;
    return [JSON.stringify(tree(ours)), JSON.stringify(tree(theirs))];
  });
}"""


@pytest.fixture
def site(page, start):
    url, _ = start()
    page.goto(url)
    page.get_by_label("Your question").wait_for()
    return page


def differ(site, texts: list[str]) -> list[tuple[str, str, str]]:
    pages = [re.sub(r' style="[^"]*"', "", ORACLE.render(text)) for text in texts]
    trees = site.evaluate(TREES, [texts, pages])
    return [
        (t, ours, theirs) for t, (ours, theirs) in zip(texts, trees, strict=True) if ours != theirs
    ]


def test_blocks_are_those_of_markdown_it(site) -> None:
    draw = random.Random(0)
    texts = [*BLOCKS, *("\n\n".join(draw.sample(BLOCKS, 4)) for _ in range(400))]
    assert differ(site, texts)[:3] == []


def test_emphasis_is_that_of_markdown_it(site) -> None:
    draw = random.Random(1)
    pieces = ["*", "**", "***", "_", "__", "a", "b c", " ", ".", "`", "``", "\\", "é", "("]
    texts = ["x" + "".join(draw.choices(pieces, k=draw.randint(2, 14))) for _ in range(3000)]
    assert differ(site, texts)[:3] == []


def test_a_stream_ends_as_the_whole_and_done_blocks_stay(site) -> None:
    draw = random.Random(2)
    texts = [MARKDOWN, *("\n\n".join(draw.sample(BLOCKS, 5)) for _ in range(60))]
    wrong = site.evaluate(
        """async (texts) => {
          const { Markdown } = await import("/static/lib/markdown.js");
          const wrong = [];
          for (const text of texts) {
            const whole = document.createElement("div"), grown = document.createElement("div");
            new Markdown(whole).update(text);
            const markdown = new Markdown(grown);
            let first = null;
            for (let at = 1; at <= text.length; at += 1 + (at * 7) % 3) {
              markdown.update(text.slice(0, at));
              if (grown.childNodes.length === 3) first ??= grown.firstChild;
            }
            markdown.update(text);
            if (grown.innerHTML !== whole.innerHTML) wrong.push(text);
            if (first && grown.firstChild !== first) wrong.push(["rendered again", text]);
          }
          return wrong;
        }""",
        texts,
    )
    assert wrong[:2] == []


def test_hostile_markdown_takes_no_time(site) -> None:
    """Marks without a partner, by the ten thousand: anything quadratic would take minutes."""
    n = 20_000
    texts = [
        "*a " * n,
        "[" * n,
        "`" * n + "a",
        "> " * n,
        "- " * n,
        "|" * n,
        "_*" * n,
        "<http" * n,
        "![" * n,
    ]
    texts += [
        "` `` " * n,
        "**a *b " * n,
        "\n".join(["|a|", "|-|"] * n),
        "#" * n,
        "~~a" * n,
        "(" * n,
    ]
    slow = site.evaluate(
        """async (texts) => {
          const { Markdown } = await import("/static/lib/markdown.js");
          return texts.map((text) => {
            const root = document.createElement("div"), started = performance.now();
            new Markdown(root).update(text);
            return [text.slice(0, 9), Math.round(performance.now() - started)];
          }).filter(([, ms]) => ms > 8000);
        }""",
        texts,
    )
    assert slow == []


CODE = {
    "python": 'import os  # note\n\n\ndef f(x: int):\n    """Doc\n    string."""\n    return "a#b" if x else \'c\'\n',
    "javascript": 'const x = "a"; // note\n/* block\n */ function f() { return `t ${x}`; }\n',
    "bash": "# note\nif true; then echo \"hi $HOME\" 'raw'; fi\n",
    "json": '{"a": [1, 2.5, true, null], "b": "c"}\n',
    "c": '#include <stdio.h>\n/* note */\nint main(void) { return puts("hi"); } // end\n',
}


@pytest.mark.parametrize("language", CODE)
def test_highlighting_keeps_the_text_and_finds_what_pygments_finds(site, language: str) -> None:
    code = CODE[language]
    spans = site.evaluate(
        """async ([code, language]) => {
          const { highlighted } = await import("/static/lib/highlight.js");
          return highlighted(code, language).map((n) => typeof n === "string" ? ["", n] : [n.className, n.textContent]);
        }""",
        [code, language],
    )
    assert "".join(text for _, text in spans) == code
    ours = {
        kind: "".join(t for k, t in spans if k == f"hl-{kind}") for kind in ("comment", "string")
    }
    keywords = {t for k, t in spans if k == "hl-keyword"}
    tokens = list(get_lexer_by_name(language).get_tokens(code))
    comments = "".join(t for kind, t in tokens if kind in Comment and kind not in Comment.Preproc)
    comments = comments.replace("<stdio.h>", "")  # pygments calls the name of a header a comment
    assert "".join(ours["comment"].split()) == "".join(comments.split())
    for kind, text in tokens:
        if kind in String and len(text) > 2 and language != "json" and text in code:
            assert text.strip("'\"`") in ours["string"] or "$" in text
        if kind in Keyword and kind not in Keyword.Constant and kind not in Keyword.Type:
            assert text in keywords or text in ("echo", "from", "int", "void"), text
