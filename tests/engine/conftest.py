from __future__ import annotations

import pytest
import torch

from gristmill.engine import Engine
from gristmill.formats import Model
from tests.tiny_model import random_model


@pytest.fixture(scope="session")
def model() -> Model:
    return random_model()


@pytest.fixture(scope="session")
def engine(model: Model) -> Engine:
    return Engine(model)


@pytest.fixture(scope="session")
def oracle(model: Model, tmp_path_factory: pytest.TempPathFactory):
    """transformers' own reading of the exported directory."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("exported")
    model.save(path, format="hf")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
