"""The chunked cross-entropy of a head against torch's own, in one process and with the vocabulary on two ranks."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gristmill.train.loss import linear_cross_entropy

N, D, V = 37, 12, 90


def problem(
    dtype: torch.dtype = torch.float32, n: int = N
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias with gradients, and targets of which every fifth is ignored."""
    g = torch.Generator().manual_seed(3)
    hidden, weight, bias = (
        torch.randn(shape, generator=g).to(dtype).requires_grad_()
        for shape in ((n, D), (V, D), (V,))
    )
    targets = torch.randint(0, V, (n,), generator=g)
    targets[::5] = -100
    return hidden, weight, bias, targets


def plainly(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap=None, z_loss=0.0
) -> tuple[Tensor, Tensor]:
    """The definition, with all logits at once."""
    logits = F.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    plain = F.cross_entropy(logits, targets, reduction="sum")
    squares = torch.logsumexp(logits, -1)[targets != -100].square().sum()
    return plain + z_loss * squares, plain


CASES = [(None, 0.0), (5.0, 0.0), (None, 0.1), (5.0, 0.1)]


@pytest.mark.parametrize(("softcap", "z_loss"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 8, 1000])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_torch(softcap, z_loss, dtype, chunk, biased):
    hidden, weight, bias, targets = problem(dtype)
    inputs = [hidden, weight] + [bias] * biased
    given = bias if biased else None
    loss, plain = linear_cross_entropy(
        hidden, weight, targets, bias=given, softcap=softcap, z_loss=z_loss, chunk=chunk
    )
    grads = torch.autograd.grad(0.3 * loss, inputs)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    wide_bias = wide[2] if biased else None
    expected, expected_plain = plainly(wide[0], wide[1], wide_bias, targets, softcap, z_loss)
    expected_grads = torch.autograd.grad(0.3 * expected, wide)
    rtol, atol = (1e-5, 2e-5) if dtype == torch.float32 else (1e-11, 1e-11)
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(plain.double(), expected_plain, rtol=rtol, atol=atol)
    assert not plain.requires_grad
    for got, want in zip(grads, expected_grads, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("softcap", "z_loss"), CASES)
def test_gradcheck(softcap, z_loss):
    hidden, weight, bias, targets = problem(torch.float64, 6)
    weight, bias = (t[:20].detach().requires_grad_() for t in (weight, bias))
    targets = targets.clamp(max=19)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, weight, targets, bias=bias, softcap=softcap, z_loss=z_loss, chunk=4
        )[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_z_loss_of_equal_logits():
    """Without any logit to tell tokens apart logsumexp is log V."""
    loss, plain = linear_cross_entropy(
        torch.zeros(6, D), torch.randn(V, D), torch.arange(6), z_loss=0.5
    )
    log = torch.tensor(V).log()
    torch.testing.assert_close(plain, 6 * log)
    torch.testing.assert_close(loss, 6 * log + 0.5 * 6 * log**2)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_wanted(wanted):
    """A frozen head, frozen activations, and no gradient at all: the same loss."""
    hidden, weight, _, targets = problem()
    expected, _ = plainly(hidden, weight, None, targets)
    hidden_, weight_ = (
        t if w else t.detach() for t, w in zip((hidden, weight), wanted, strict=True)
    )
    loss, _ = linear_cross_entropy(hidden_, weight_, targets, chunk=8)
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        (grad,) = torch.autograd.grad(loss, [t for t in (hidden_, weight_) if t.requires_grad])
        (want,) = torch.autograd.grad(expected, [hidden if wanted[0] else weight])
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-5)


def test_no_gradient_is_computed_without_one():
    hidden, weight, _, targets = problem()
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        loss, _ = linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert sum(event.count for event in seen.key_averages() if event.key == "aten::addmm_") == 0
    assert sum(event.count for event in seen.key_averages() if event.key == "aten::mm") == 1


def test_no_targets():
    hidden, weight, _, targets = problem()
    loss, plain = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == plain.item() == 0.0
    assert hidden.grad is not None and weight.grad is not None
    assert hidden.grad.abs().sum() == weight.grad.abs().sum() == 0


def test_bf16_products_with_fp32_weights():
    """Products round to bf16 and nothing else does: gradients within a percent of those in double precision."""
    hidden, weight, _, targets = problem(torch.bfloat16, 300)
    weight = weight.detach().float().requires_grad_()
    loss, plain = linear_cross_entropy(hidden, weight, targets, chunk=64)
    loss.backward()
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight.bfloat16())]
    expected, _ = plainly(wide[0], wide[1], None, targets)
    expected.backward()
    assert loss.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-3, atol=0)
    for got, want in zip((hidden, weight), wide, strict=True):
        assert got.grad is not None and want.grad is not None
        assert got.grad.dtype == got.dtype
        assert (got.grad.double() - want.grad).norm() < 0.01 * want.grad.norm()


def test_memory_is_that_of_a_chunk():
    """The largest block that is taken: the gradient of the weights, not [N, V]."""
    n, d, v, chunk = 2048, 16, 4096, 64
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    targets = torch.randint(0, v, (n,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        linear_cross_entropy(hidden, weight, targets, chunk=chunk)[0].backward()
    kineto: Any = seen.profiler
    changes = [e for e in kineto.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda e: e.start_ns())
    assert max(e.nbytes() for e in changes) <= max(chunk * v, v * d, n * d) * 4
    alive = peak = 0
    for change in changes:
        alive += change.nbytes()
        peak = max(peak, alive)
    assert 0 < peak < n * v * 4 / 4


def _rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    half = slice(rank * V // 2, (rank + 1) * V // 2)
    for softcap, z_loss in CASES:
        hidden, weight, bias, targets = problem()
        own = [hidden, *(t[half].detach().requires_grad_() for t in (weight, bias))]
        loss, plain = linear_cross_entropy(
            own[0],
            own[1],
            targets,
            bias=own[2],
            softcap=softcap,
            z_loss=z_loss,
            chunk=8,
            group=dist.group.WORLD,
        )
        grads = torch.autograd.grad(loss, own)
        expected, expected_plain = plainly(hidden, weight, bias, targets, softcap, z_loss)
        whole = torch.autograd.grad(expected, (hidden, weight, bias))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(plain, expected_plain)
        for got, want in zip(grads, (whole[0], whole[1][half], whole[2][half]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)
    dist.destroy_process_group()


def test_vocabulary_on_two_ranks(tmp_path: Path):
    ranks: Any = mp.spawn(_rank, (str(tmp_path / "store"),), nprocs=2, join=False)
    end = time.monotonic() + 240  # most of it is importing, on a machine that is busy
    try:
        while not ranks.join(timeout=1):
            assert time.monotonic() < end, "two ranks did not finish in 240 s"
    finally:
        for process in ranks.processes:
            process.kill()
