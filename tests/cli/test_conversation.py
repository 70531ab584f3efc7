"""chat in a terminal: commands, many lines, markdown, and Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from gristmill.cli.commands import Again, Quit, obey
from gristmill.cli.markdown import MarkdownStream
from gristmill.cli.talk import Talk
from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.lm import SamplingParams
from gristmill.tokenizer import Tokenizer
from tests.tiny_model import LESSONS, QUESTIONS, random_model, taught_model


@pytest.fixture
def talk() -> Talk:
    return Talk(Engine(taught_model()), SamplingParams(max_tokens=60, temperature=0.0))


def ask(talk: Talk, question: str) -> str:
    return "".join(piece for piece in talk.ask(question) if isinstance(piece, str))


def test_undo_and_retry(talk: Talk) -> None:
    assert ask(talk, QUESTIONS[0]) == LESSONS[0][1]
    ask(talk, QUESTIONS[1])
    assert obey(talk, "/undo") == f"Forgotten: {QUESTIONS[1]}"
    assert [turn["content"] for turn in talk.turns] == list(LESSONS[0])
    with pytest.raises(Again) as again:
        obey(talk, "/retry")
    assert again.value.question == QUESTIONS[0] and talk.turns == []
    assert obey(talk, "/new") == "A new conversation."
    for command in ("/undo", "/retry"):
        with pytest.raises(RequestError, match="yet"):
            obey(talk, command)
    with pytest.raises(Quit):
        obey(talk, "/quit")


def test_a_question_that_was_stopped_can_be_asked_again(talk: Talk) -> None:
    answer = talk.ask(QUESTIONS[2])
    next(answer)
    answer.close()
    assert talk.turns == []
    with pytest.raises(Again) as again:
        obey(talk, "/retry")
    assert ask(talk, again.value.question) == LESSONS[2][1]


def test_retry_with_a_fixed_seed_draws_anew_and_can_be_repeated(talk: Talk) -> None:
    def three() -> list[str]:
        talk.new()
        obey(talk, "/set temperature 5")
        obey(talk, "/set seed 3")
        answers = [ask(talk, "x")]
        for _ in range(2):
            with pytest.raises(Again):
                obey(talk, "/retry")
            answers.append(ask(talk, "x"))
        return answers

    first = three()
    assert len(set(first)) == 3 and three() == first


def test_settings(talk: Talk) -> None:
    assert obey(talk, "/set temperature 0.7") == "temperature 0.7"
    assert obey(talk, "/set top-k=5") == "top_k 5"
    assert obey(talk, "/set top_k none") == "top_k none"
    assert obey(talk, "/set temperature") == "temperature 0.7"
    assert "max_tokens 60" in obey(talk, "/set").splitlines()
    for line, message in [
        ("/set temprature 1", 'Did you mean "temperature"'),
        ("/set temperature hot", "must be a number"),
        ("/set max_tokens 1.5", "must be a whole number"),
        ("/set top_p 3", "top_p must be above 0, at most 1"),
        ("/sytem x", 'Did you mean "/system"'),
    ]:
        with pytest.raises(RequestError, match=re.escape(message)):
            obey(talk, line)
    assert talk.params.temperature == 0.7


def test_save_and_load(talk: Talk, tmp_path) -> None:
    file = tmp_path / "talk.json"
    obey(talk, "/system Be brief.")
    ask(talk, QUESTIONS[0])
    saved = list(talk.turns)
    assert "Saved 1 question" in obey(talk, f"/save {file}")
    roles = [m["role"] for m in json.loads(file.read_text())["messages"]]
    assert roles == ["system", "user", "assistant"]
    other = Talk(talk.lm, talk.params)
    assert "The model is told: Be brief." in obey(other, f"/load {file}")
    assert (other.turns, other.system, other.asked) == (saved, "Be brief.", QUESTIONS[0])
    obey(talk, f"/save {file}")  # over a conversation
    file.write_text("precious")
    for line, message in [
        (f"/save {file}", "holds no conversation"),
        (f"/load {file}", "is not one conversation"),
        (f"/load {tmp_path}/nothing", "there is no file"),
        ("/save", "name a file"),
    ]:
        with pytest.raises(RequestError, match=message):
            obey(talk, line)
    assert file.read_text() == "precious"
    file.write_text('{"messages": [{"role": "user", "content": "x"}]}')
    with pytest.raises(RequestError, match="take turns"):
        obey(talk, f"/load {file}")


def screen(data: str) -> str:
    """What a terminal shows after these characters: as much of one as rich's Live uses."""
    lines, y, x = [""], 0, 0
    for match in re.finditer(r"\x1b\[\??(\d*)([A-Za-z])|\x1b\[[\d;]*m|\r|\n|.", data, re.DOTALL):
        piece = match[0]
        if piece == "\r":
            x = 0
        elif piece == "\n":
            x, y = 0, y + 1
            lines += [""] * (y + 1 - len(lines))
        elif match[2] == "K":
            lines[y] = ""
        elif match[2] == "A":
            y -= int(match[1] or 1)
        elif not piece.startswith("\x1b"):
            lines[y] = lines[y].ljust(x)[:x] + piece + lines[y][x + 1 :]
            x += 1
    return "\n".join(line.rstrip() for line in lines).rstrip()


MARKDOWN = (
    "# Title\n\nSome *text* with `code`.\n\n1. one\n2. two\n\n   more\n\n3. three\n\n```python\ndef f(x):\n\n"
    + "".join(f"    line{i}\n" for i in range(40))
    + "```\n\nThe \x1b[31mend\x07.\n"
)


def test_markdown_is_rendered_once_and_whole(monkeypatch) -> None:
    """Longer than the window, in pieces of three characters, drawn again after each."""
    monkeypatch.setattr("gristmill.cli.markdown._REDRAW_SECONDS", 0.0)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60, height=12)
    with MarkdownStream(console) as shown:
        for at in range(0, len(MARKDOWN), 3):
            shown.push(MARKDOWN[at : at + 3])
    seen = screen(file.getvalue())
    lines = [line.strip() for line in seen.splitlines() if line.strip()]
    code = ["def f(x):", *(f"line{i}" for i in range(40))]
    expected = ["Title", "Some text with code.", "1 one", "2 two", "more", "3 three", *code]
    assert lines == [*expected, "The \ufffd[31mend\ufffd."]


class Terminal:
    """The program at a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self._fd, far = pty.openpty()
        # Not by preexec_fn, which may hang in a process that has threads.
        take = (
            "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
            "signal.signal(signal.SIGINT, signal.SIG_DFL); "  # ignored by what a shell put in the background
            "os.execv(sys.executable, sys.argv[1:])"
        )
        program = [sys.executable, "-m", "gristmill.cli.main", *map(str, arguments)]
        command = [sys.executable, "-c", take, *program]  # Ctrl-C reaches it
        env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.process = subprocess.Popen(
            command,
            stdin=far,
            stdout=far,
            stderr=far,
            env=env,
            start_new_session=True,
        )
        os.close(far)
        self.until("› ")

    def until(self, mark: str, seconds: float = 60) -> str:
        seen, end = b"", time.monotonic() + seconds
        while mark.encode() not in seen:
            assert time.monotonic() < end, f"{mark!r} did not come: {seen[-500:]!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                seen += os.read(self._fd, 65536)
        return seen.decode(errors="replace")

    def type(self, text: str, mark: str = "› ") -> str:
        os.write(self._fd, text.encode())
        return self.until(mark)

    def leave(self) -> int:
        os.write(self._fd, b"\x04")
        return self.process.wait(timeout=20)


@pytest.fixture
def terminal():
    running = []

    def start(*arguments: object) -> Terminal:
        running.append(Terminal(*arguments))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_a_conversation_in_a_terminal(terminal, taught) -> None:
    at = terminal("chat", taught)
    shown = at.type(f"{QUESTIONS[0]}\r")
    assert "Find the n largest elements" in screen(shown) and "```" not in screen(shown)
    assert "Forgotten" in at.type("/und\t\r")  # completed
    assert "/retry" in at.type("/help\r")
    assert "Did you mean" in at.type("/sve x\r")
    at.type("What does\\\r", "… ")
    assert screen(at.type("`shlex.quote` do?\r")).count("shlex.quote") >= 2
    assert "refused" in at.type("/save /proc/1/x/y\r")
    assert "refused" in at.type("/load /proc\r")
    at.type('"""/one\r', "… ")
    at.type('two"""\r')
    time.sleep(
        0.3
    )  # a signal between readline's prompt and its waiting is only seen at the next key
    assert "Ctrl-D or /quit leaves" in at.type("\x03")
    assert at.leave() == 0


def test_a_conversation_outgrows_the_context(terminal, taught) -> None:
    at = terminal("chat", taught)
    shown = at.type("word " * 700 + "\r")
    assert "the model's context holds 384" in screen(shown) and "/undo forgets" in shown
    assert "nothing was said yet" in at.type("/undo\r")
    assert at.leave() == 0


def test_a_model_without_a_template_cannot_chat(gristmill, tmp_path) -> None:
    model = random_model()
    config = {k: v for k, v in model.tokenizer.config.items() if k != "chat_template"}
    Model(model.network, Tokenizer(model.tokenizer.backend, config)).save(tmp_path / "base")
    result = gristmill("chat", tmp_path / "base", stdin="x\ny")
    assert result.code == 2 and result.err.count("no chat template") == 1


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(terminal, tmp_path) -> None:
    endless = random_model(max_seq_len=100_000)
    with torch.no_grad():
        endless.network.head.weight[list(endless.tokenizer.stop_ids)] = 0  # never the likeliest
    endless.save(tmp_path / "endless")
    at = terminal("chat", tmp_path / "endless", "--max-tokens", 90_000)
    at.type("x\r", "\x1b[")  # something is shown
    time.sleep(0.5)
    assert "(stopped)" in at.type("\x03")
    assert "max_tokens 5" in at.type("/set max_tokens 5\r")
    at.type("y\r")
    assert at.leave() == 0
