"""The kernels of a training step against double precision and autograd, and what they promise about bits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gristmill import kernels
from gristmill.kernels import training

pytestmark = pytest.mark.skipif(
    not kernels.instruction_sets(), reason="gristmill._native was not built (no C++ compiler)"
)
ISAS = ["scalar", "avx2", "avx512"]
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(params=ISAS, autouse=True)
def isa(request: pytest.FixtureRequest):
    """Every test on every instruction set."""
    if request.param not in kernels.instruction_sets():
        pytest.skip(f"this machine cannot run {request.param}")
    assert kernels.extension is not None
    kernels.extension.training_isa(ISAS.index(request.param))
    yield request.param
    kernels.extension.training_isa(-1)


def normal(*shape: int, dtype: torch.dtype = FP32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=g).to(dtype).requires_grad_()


def compare(
    native: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor, error: float
) -> None:
    """Results and gradients within `error` of those in double precision, relative to the largest of them or 1."""
    y = native(*inputs)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    found = (y, *torch.autograd.grad(y, inputs, dy))
    wide = [t.detach().double().requires_grad_() for t in inputs]
    exact = plain(*wide)
    wanted = (exact, *torch.autograd.grad(exact, wide, dy.double()))
    for got, want, of in zip(found, wanted, (y, *inputs), strict=True):
        assert got.dtype == of.dtype and got.shape == want.shape
        assert (got.double() - want).abs().max() <= error * max(1.0, want.abs().max().item())


def errors(dtype: torch.dtype) -> float:
    return 3e-6 if dtype == FP32 else 2 * torch.finfo(BF16).eps


SIZES = st.integers(1, 70)


@settings(max_examples=25, deadline=None)
@given(rows=SIZES, width=SIZES, dtype=st.sampled_from([FP32, BF16]))
def test_rms_norm(rows: int, width: int, dtype: torch.dtype):
    x, weight = normal(rows, width, dtype=dtype), normal(width)
    compare(
        lambda x, w: training.rms_norm(x, w, 1e-5),
        lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        x,
        weight,
        error=errors(dtype) * (1 + rows**0.5),
    )


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 9),
    heads=st.integers(1, 5),
    half=st.integers(1, 40),
    rest=st.integers(0, 20),
    dtype=st.sampled_from([FP32, BF16]),
)
def test_rotate(tokens: int, heads: int, half: int, rest: int, dtype: torch.dtype):
    x = normal(2, tokens, heads, 2 * half + rest, dtype=dtype)
    angles = normal(2, tokens, 1, half, seed=1).detach()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    compare(
        lambda x: training.rotate(x, cos, sin),
        lambda x: training.rotate_torch(x, cos.double(), sin.double()),
        x,
        error=errors(dtype),
    )


@settings(max_examples=25, deadline=None)
@given(rows=SIZES, width=SIZES, dtype=st.sampled_from([FP32, BF16]))
def test_swiglu(rows: int, width: int, dtype: torch.dtype):
    gate, up = normal(rows, width, dtype=dtype), normal(rows, width, dtype=dtype, seed=1)
    compare(training.swiglu, lambda g, u: F.silu(g) * u, gate, up, error=errors(dtype))


def test_swiglu_far_from_zero():
    """Where exp would overflow or vanish: silu is x or 0, and nothing is not a number."""
    gate = torch.tensor([-1e4, -90.0, 90.0, 1e4], requires_grad=True)
    y = training.swiglu(gate, torch.ones(4))
    (slope,) = torch.autograd.grad(y.sum(), gate)
    torch.testing.assert_close(y, torch.tensor([0.0, 0.0, 90.0, 1e4]), atol=1e-30, rtol=1e-6)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.0, 1.0, 1.0]), atol=1e-30, rtol=1e-6)


def plain_attention(first_BT: Tensor | None, scale: float) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        places = torch.arange(q.shape[2])
        mask = places <= places[:, None]
        if first_BT is not None:
            mask = mask & (places >= first_BT[:, None, :, None])
        scores = (scale * q @ k.mT).masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2)

    return attend


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(1, 150),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    width=st.sampled_from([16, 32, 48, 64, 80]),
    starts=st.none() | st.lists(st.integers(0, 149), max_size=4),
)
def test_attention(tokens: int, kv_heads: int, group: int, width: int, starts: list[int] | None):
    q = normal(2, tokens, kv_heads * group, width)
    k, v = (normal(2, tokens, kv_heads, width, seed=seed) for seed in (1, 2))
    first = None
    if starts is not None:  # the second row has a window of 20 as well
        begins = torch.zeros(tokens, dtype=torch.long)
        begins[[s for s in starts if s < tokens]] = 1
        first = torch.where(begins > 0, torch.arange(tokens), 0).cummax(0).values
        first = torch.stack((first, first.maximum(torch.arange(tokens) - 19))).int()
    scale = 1.7 * width**-0.5
    compare(
        lambda q, k, v: training.attend_causally(q, k, v, scale, first),
        plain_attention(first, scale),
        q,
        k,
        v,
        error=1e-5,
    )


def test_attention_of_scores_far_apart():
    """Scores of hundreds: all weight on one key, and the gradient vanishes."""
    q, k, v = (normal(1, 40, 2, 16, seed=seed) for seed in range(3))
    compare(
        lambda q, k, v: training.attend_causally(q, k, v, 100.0),
        plain_attention(None, 100.0),
        q,
        k,
        v,
        error=2e-4,  # of scores near 1000, which fp32 knows to 6e-5
    )


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("width", [1, 15, 16, 100])
def test_softmax_gradient(softcap: float | None, dtype: torch.dtype, width: int):
    logits = (4 * normal(23, width).detach()).to(dtype)
    targets = torch.arange(23) % width
    wide = logits.double().requires_grad_()
    bent = wide if softcap is None else softcap * torch.tanh(wide / softcap)
    loss = F.cross_entropy(bent, targets, reduction="none")
    lse = bent.logsumexp(-1)
    (want,) = torch.autograd.grad((loss + 0.3 * lse.square()).sum(), wide)
    untouched = training.softmax_gradient(logits.clone(), targets, softcap, 0.3, False)
    got, loss_n, lse_n = training.softmax_gradient(logits, targets, softcap, 0.3, True)
    assert got.data_ptr() == logits.data_ptr()
    torch.testing.assert_close(loss_n.double(), loss.detach(), atol=4e-6, rtol=2e-6)
    torch.testing.assert_close(lse_n.double(), lse.detach(), atol=4e-6, rtol=2e-6)
    assert torch.equal(untouched[1], loss_n)
    assert (got.double() - want).abs().max() <= errors(dtype) * want.abs().max() + 4e-6


def test_softmax_gradient_refuses_a_target_that_is_none():
    with pytest.raises(IndexError, match="below 5"):
        training.softmax_gradient(torch.zeros(2, 5), torch.tensor([0, 5]), None, 0.0, True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays(bad: float):
    """A run that diverges must be seen to."""
    x, weight = normal(3, 20), normal(20)
    q, k, v = (normal(1, 20, 1, 16, seed=seed) for seed in range(3))
    with torch.no_grad():
        x[1, 3] = q[0, 5, 0, 2] = bad
    assert not training.rms_norm(x, weight, 1e-5)[1].isfinite().all()
    assert not training.swiglu(x, x)[1].isfinite().all()
    assert not training.attend_causally(q, k, v, 1.0)[0, 5].isfinite().all()
    _, loss, _ = training.softmax_gradient(x.detach().clone(), torch.zeros(3).long(), None, 0, True)
    assert not loss[1].isfinite() and loss[0].isfinite()


def everything() -> list[Tensor]:
    """Results and gradients of all kernels at sizes that are shared out among threads."""
    x, weight = normal(700, 96), normal(96)
    q, k, v = (normal(3, 200, 2, 32, seed=seed) for seed in range(3))
    cos = normal(3, 200, 1, 16, seed=4).detach()
    found = []
    for y, inputs in (
        (training.rms_norm(x, weight, 1e-5), (x, weight)),
        (training.swiglu(x, 2 * x), (x,)),
        (training.rotate(q, cos, cos), (q,)),
        (training.attend_causally(q, k, v, 0.2), (q, k, v)),
    ):
        found += [y, *torch.autograd.grad(y, inputs, torch.ones_like(y))]
    return found + list(
        training.softmax_gradient(x.detach().clone(), torch.arange(700) % 96, None, 0.1, True)
    )


def test_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(4)
        shared = [everything() for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    for again in shared:
        assert all(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


def test_native_code_is_used_where_a_gradient_is_wanted_and_only_there():
    x, weight, q = normal(6, 32), normal(32), normal(2, 3, 2, 32)
    cos = torch.ones(2, 3, 1, 16)

    def runs(x: Tensor, weight: Tensor, q: Tensor) -> list[Tensor]:
        return [
            training.rms_norm(x, weight, 1e-5),
            training.swiglu(x, x),
            training.rotate(q, cos, cos),
        ]

    names = ["_NormBackward", "_SwigluBackward", "_TurnBackward"]
    assert [y.grad_fn.name() for y in runs(x, weight, q) if y.grad_fn] == names
    assert training.attends_causally(q, q, q)
    plain = [
        F.rms_norm(x, (32,), weight, 1e-5),
        F.silu(x) * x,
        training.rotate_torch(q, cos, cos),
    ]
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(runs(x, weight, q), plain, strict=True))
        assert not training.attends_causally(q, q, q)
    for a, b in product((x.double(), x[:, ::2]), (weight,)):  # fp64, strides
        y = training.rms_norm(a, b[: a.shape[1]], 1e-5)
        assert y.grad_fn is not None and "_Norm" not in y.grad_fn.name()
