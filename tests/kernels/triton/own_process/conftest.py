"""Triton's interpreter as these tests need it, and kernels that take CPU tensors."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

if os.environ.get("TRITON_INTERPRET") == "1":
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    _dot = interpreter.InterpreterBuilder.create_dot

    def _widened(handle: Any) -> Any:
        if handle.dtype != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def _create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return _dot(self, _widened(a), _widened(b), *rest)

    # It keeps bf16 as whole numbers of 16 bits, and its dot products multiply those.
    interpreter.InterpreterBuilder.create_dot = _create_dot


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that asks whether a Triton kernel takes a tensor is told that it does."""
    monkeypatch.setattr("gristmill.kernels.triton.takes", lambda x: True)
