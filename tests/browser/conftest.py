"""The chat page in a real Chromium, served by a real server. Without a browser these tests say so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gristmill.engine import Engine
from gristmill.retrieval import Index, build
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


@pytest.fixture
def page(browser) -> Iterator:
    """A fresh tab; a script error or a request to elsewhere fails the test that caused it."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(20_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda r: None if r.url.startswith("http://127.0.0.1:") else problems.append(r.url),
    )
    yield page
    context.close()
    assert problems == []
