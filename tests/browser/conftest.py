"""The chat page in a real Chromium, served by a real server. Without a browser these tests say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gristmill import serve
from gristmill.engine import Engine
from gristmill.retrieval import Index, build
from gristmill.serve.openai.chat import ChatRequest
from gristmill.serve.web.conversations import Conversation
from gristmill.serve.web.votes import Ballot
from tests.browser.canned import State, canned, model
from tests.served import served
from tests.tiny_model import FACTS, QUESTIONS, random_model, taught_model

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Closed with the module: while playwright runs, its event loop forbids `asyncio.run` in other tests."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the page is not tested: playwright is not installed"
    )
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("the page is not tested: no chromium found (set CHROMIUM to its path)")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("index") / "index.sqlite"
    build(path, FACTS, [])
    with served(Engine(taught_model()), Index.open(path), tuple(QUESTIONS)) as address:
        yield address


@pytest.fixture(scope="session")
def endless_url() -> Iterator[str]:
    """A model that goes on for as long as it is let, and has no index."""
    with served(Engine(random_model(max_seq_len=300_000))) as address:
        yield address


Start = Callable[..., tuple[str, State]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server of canned answers: start(models, **state) -> (URL, state).

    What the page sent it must be what the real server's models of these bodies take, without unknown fields.
    """
    states: list[State] = []
    with ExitStack() as servers:

        def run(models: list[dict[str, Any]] | None = None, **more: Any) -> tuple[str, State]:
            states.append(State(models or [model("alpha")], **more))
            return servers.enter_context(serve.served(canned(states[-1]))), states[-1]

        yield run
    for state in states:
        for body in state.asked:
            assert ChatRequest.model_validate(body).unknown == []
        for document in state.stored:
            Conversation.model_validate(document).check_tree()
        for vote in state.votes:
            Ballot.model_validate(vote)


def watched(context, problems: list[str]):
    """A tab that notes script errors, breaches of the Content-Security-Policy and requests to elsewhere."""
    tab = context.new_page()
    tab.set_default_timeout(20_000)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on(
        "console",
        lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None,
    )
    tab.on(
        "request",
        lambda r: (
            None
            if r.url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:"))
            else problems.append(r.url)
        ),
    )
    return tab


@pytest.fixture
def context(browser) -> Iterator:
    """A browser profile of its own; `context.tab()` opens a watched tab, whose problems fail the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    problems: list[str] = []
    context.tab = lambda: watched(context, problems)
    yield context
    context.close()
    assert problems == []


@pytest.fixture
def page(context):
    return context.tab()
