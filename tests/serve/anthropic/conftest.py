from __future__ import annotations

from collections.abc import Iterator

import pytest
from anthropic import Anthropic

from gristmill import serve
from gristmill.engine import Engine
from tests.serve.openai.thinker import thinking_model
from tests.tiny_model import random_model

SWITCHED = """\
{%- for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}
{%- if add_generation_prompt %}assistant: <think>
{% if enable_thinking is defined and not enable_thinking %}

</think>

{% endif %}{% endif %}"""


@pytest.fixture(scope="session")
def thinker() -> Engine:
    return Engine(thinking_model())


@pytest.fixture(scope="session")
def url(thinker: Engine) -> Iterator[str]:
    """The others write at random. "plain" never thinks; the template of "switched" has a switch for it."""
    plain, switched = Engine(random_model(max_seq_len=2048)), random_model()
    switched.tokenizer.config["chat_template"] = SWITCHED
    models = [
        serve.Served("thinker", thinker),
        serve.Served("plain", plain),
        serve.Served("switched", Engine(switched)),
    ]
    with serve.served(serve.build_app(models)) as address:
        yield address


@pytest.fixture(scope="session")
def sdk(url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client
