"""LaTeX to text: accents against pylatexenc, any input, a paper, archives in arXiv's layouts, hostile ones."""

import gzip
import io
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylatexenc.latex2text import LatexNodes2Text

from gristmill.data.sources import latex
from gristmill.data.sources.latex import read_latex
from gristmill.data.sources.latex_text import latex_text

PAPER = r"""\documentclass{article} % a comment
\newcommand{\R}{\mathbb{R}}
\newcommand{\norm}[1]{\lVert #1\rVert}
\newcommand\algo[2][x]{\textsc{Algo} #1 #2}
\def\eps{\varepsilon}
\DeclareMathOperator{\argmax}{arg\,max}
\title{On the \emph{G\"odel} number\thanks{Funded}}
\author{Anna \and B\'ela Bart{\'o}k}
\begin{document}
\maketitle
\begin{abstract} We show $\norm{x}\in\R$.\end{abstract}
\section{Intro}\label{s}
It is 50\% of \cite{a,b} ``that'' --- na\"{\i}ve \algo{z}, \algo[q]{z}.% gone
\begin{theorem}[Main]\label{t} For $\eps>0$ \[ a=b \] holds.\end{theorem}
\begin{figure} \caption{gone} \end{figure}
\begin{equation}\label{e} \argmax_x f(x) = \norm{y} \end{equation}
\begin{enumerate}\item One \item Two \begin{itemize}\item in \end{itemize}\end{enumerate}
\begin{verbatim}
x = 1 % kept
\end{verbatim}
A word\footnote{a note}. \textbf{Bold \textit{it}} \href{http://x}{link}
\input{parts/two}
\begin{thebibliography}{9}\bibitem{a} gone\end{thebibliography}
\end{document}"""
TWO = r"\subsection{Two} From elsewhere. \input{parts/two} \input{../../secret} \input{/etc/passwd}"
TEXT = r"""## Abstract

We show $\lVert x\rVert\in\mathbb{R}$.

## Intro

It is 50% of “that” — naïve Algo x z, Algo q z.

**Theorem (Main).** For $\varepsilon>0$ $$a=b$$ holds.

$$
\operatorname{arg\,max}_x f(x) = \lVert y\rVert
$$

1. One
2. Two
 - in

```
x = 1 % kept
```

A word (a note). Bold it link

### Two

From elsewhere."""


def test_a_paper() -> None:
    asked = []

    def include(name: str) -> str | None:
        asked.append(name)
        return TWO if name == "parts/two" else None

    paper = latex_text(PAPER, include)
    assert (paper.title, paper.authors) == ("On the Gödel number", "Anna, Béla Bartók")
    assert paper.text == TEXT
    assert asked == ["parts/two", "../../secret", "/etc/passwd"]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from("`'^~\"=.cvuHkrdb"), st.sampled_from("aeiouncsyzAEO"), st.booleans())
def test_accents_as_pylatexenc(accent: str, letter: str, braces: bool) -> None:
    source = f"\\{accent}{{{letter}}}" if braces or accent.isalpha() else f"\\{accent}{letter}"
    theirs = LatexNodes2Text().latex_to_text(f"x{source}y")
    ours = latex_text(f"\\documentclass{{a}}\\begin{{document}}x{source}y\\end{{document}}").text
    assert ours == theirs


_PIECES = r"""\a { } $ $$ \[ \] \begin{figure} \end{figure} \begin{itemize} \item \end{itemize} \section{
\newcommand{\a}{ #1 \\ % \' \verb| \input{x} \begin{document} \begin{equation} ~ x""".split()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*_PIECES, "\n", " "])))
def test_any_sequence_of_commands_is_read(parts: list[str]) -> None:
    paper = latex_text("\\documentclass{a}" + "".join(parts), lambda name: "\\input{x}\\input{y}")
    assert "\x00" not in paper.text


@pytest.mark.parametrize(
    "bomb",
    [
        "{",
        r"\textbf{",
        r"\begin{figure}",
        r"\begin{verbatim}",
        r"\[ ",
        r"\item[a]",
        r"\input{x}",
        r"\cite[",
    ],
)
def test_time_grows_with_the_size_only(bomb: str) -> None:
    times = []
    for count in (2_000, 20_000):
        start = time.process_time()
        latex_text(r"\documentclass{a}\begin{document}" + bomb * count)
        times.append(time.process_time() - start)
    assert times[1] < 40 * max(times[0], 0.005)


def test_macros_that_multiply_stay_bounded() -> None:
    pairs = zip("abcdef", "bcdefg", strict=True)
    defined = "".join("\\newcommand{\\" + a + "}{" + ("\\" + b) * 10 + "}" for a, b in pairs)
    paper = latex_text(
        f"\\documentclass{{x}}{defined}\\newcommand{{\\g}}{{{'y' * 100}}}\\begin{{document}}\\a t"
    )
    assert 0 < len(paper.text) < 2_000_000
    loop = latex_text(
        r"\documentclass{x}\newcommand{\a}{\b\b}\newcommand{\b}{\a\a}\begin{document}\a t"
    )
    assert loop.text.endswith("t")


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_arxiv_bulk_archive(tmp_path: Path) -> None:
    whole = tar(
        {"a/main.tex": PAPER.encode(), "a/parts/two.tex": TWO.encode(), "a/fig.png": b"\x89PNG"}
    )
    single = PAPER.replace(r"\input{parts/two}", "").encode("latin-1", "replace")
    place = tmp_path / "arXiv_src_2401_001.tar"
    bulk = {
        "2401/2401.00001.gz": gzip.compress(whole),
        "2401/hep-th9901001.gz": gzip.compress(single),
        "2401/2401.00003.gz": gzip.compress(whole)[:-400],
        "2401/2401.00004.gz": gzip.compress(b"plain words"),
        "2401/2401.00005.pdf": b"%PDF-1.5",
    }
    place.write_bytes(tar(bulk))
    found = list(read_latex(place))
    assert [raw.reason for raw in found] == [
        "",
        "",
        "bad_record",
        "not_latex",
        "unsupported_format",
    ]
    assert found[0].text == "# On the Gödel number\n\nAnna, Béla Bartók\n\n" + TEXT + "\n"
    assert found[0].url == "https://arxiv.org/abs/2401.00001"
    assert found[1].url == "https://arxiv.org/abs/hep-th/9901001"
    assert {raw.kind for raw in found} == {"paper"}


def test_one_paper_as_archive_folder_and_file(tmp_path: Path) -> None:
    files = {"main.tex": PAPER.encode(), "parts/two.tex": TWO.encode()}
    (tmp_path / "secret.tex").write_text("SECRET")
    folder = tmp_path / "papers" / "paper"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    packed = tmp_path / "paper.tar.gz"
    packed.write_bytes(gzip.compress(tar(files)))
    texts = [raw.text for place in (folder, packed) for raw in read_latex(place)]
    assert texts[0] == texts[1] and texts[0].endswith("From elsewhere.\n")
    (raw,) = read_latex(folder / "main.tex")
    assert raw.text.startswith("# On the Gödel number") and "From elsewhere" not in raw.text


def test_hostile_archives(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(latex, "MAX_UNPACKED_BYTES", 3_000_000)
    bomb = gzip.compress(tar({"zeros.bin": bytes(20_000_000)}))
    place = tmp_path / "bulk.tar"
    place.write_bytes(
        tar({"2401.00001.gz": bomb, "2401.00002.gz": gzip.compress(bytes(9_000_000))})
    )
    assert [raw.reason for raw in read_latex(place)] == ["too_large", "too_large"]
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8bnothing")
    (raw,) = read_latex(tmp_path / "x.tar.gz")
    assert raw.reason == "unreadable"
    (tmp_path / "cut.tar").write_bytes(tar({"main.tex": PAPER.encode() * 20})[:5000])
    assert [raw.reason for raw in read_latex(tmp_path / "cut.tar")][-1] in (
        "unreadable",
        "broken_archive",
    )
