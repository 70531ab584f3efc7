from __future__ import annotations

import pytest

from tests.adapters.pairs import FAMILIES, make_pair


@pytest.fixture(params=list(FAMILIES))
def pair(request):
    """Our network and transformers', the test's own to change."""
    return make_pair(request.param)


@pytest.fixture
def network():
    return make_pair("qwen3")[0]
