"""GPTQ (Frantar et al., arXiv 2210.17323): round column after column, each making up for the errors before it.

Minimises tr(ΔW H ΔWᵀ), H = 2 E[x xᵀ]. The published sweep updates all later columns with every error, through
the Cholesky factor of H⁻¹. Here is the same result in the form of QuIP's LDLQ (Chee et al., arXiv 2307.13304,
theorem 6): with H + λI = (A + I) D (A + I)ᵀ, A strictly upper triangular, column i is rounded from

    w_i + Σ_{j<i} (w_j − q_j) A_ji

where w are the original weights. That takes one Cholesky factorization and no inverse, so it is more exact in
fp32, and a column is written once instead of once for every column before it.

All here is transposed, [in, out]: a column of W is a contiguous row, and the rows of W do not depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gristmill.errors import RequestError, WorkError
from gristmill.kernels.codes import Codes
from gristmill.quantize.grid import fit, group_width, search_shrink

Order = Literal["static", "none"]

_BLOCK = 128  # columns that earlier errors reach by one matrix product
_PANEL = 32  # columns of a block, reached by a second one; within it one vector product a column
_ROWS = 4096  # of W at a time: enough to hide the cost of a call, and a panel stays in the cache
_DAMPING_STEP = 0.01


@dataclass(frozen=True)
class Factor:
    """H + λ·mean(diag H)·I = (A + I) D (A + I)ᵀ, columns in the order in which they are rounded.

    errors: [in, in], Aᵀ (strictly lower triangular: row i says how earlier errors reach column i). pivots [in]: D.
    permutation int64 [in]; dead bool [in]: inputs that were always 0, in the layer's order. damping: the λ used;
    added: what it added to the diagonal.
    """

    errors: Tensor
    pivots: Tensor
    permutation: Tensor
    dead: Tensor
    damping: float
    added: float


class Hessian:
    """Mean of 2 x xᵀ over tokens, fp32 [in, in]. Layers with the same inputs share one, and its factor."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(width, width, device=device)
        self.tokens = 0
        self._factors: dict[tuple[Order, float], Factor] = {}

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """x [tokens, in]: what a layer was given. The caller leaves padding out."""
        if len(x) == 0:
            return
        x, total = x.float(), self.tokens + len(x)
        self.matrix.addmm_(x.T, x, beta=self.tokens / total, alpha=2 / total)
        self.tokens = total
        self._factors.clear()

    def factor(self, order: Order, damping: float, name: str) -> Factor:
        """The factor of this matrix, computed once. Raises WorkError, saying `name`, where there is none."""
        key = (order, damping)
        if key not in self._factors:
            self._factors[key] = _factor(self.matrix, order, damping, name)
        return self._factors[key]


@dataclass(frozen=True)
class Result:
    """codes, and what rounding costs: `loss` = Σ (w − q)² / (2 U_ii²) as the paper reports it (damping included),
    `proxy` = tr(ΔW H ΔWᵀ), the mean squared change of the layer's output times 2, summed over outputs.

    damping: the λ used, above the one asked for where H could not be factored with that.
    """

    codes: Codes
    loss: float
    proxy: float
    damping: float


@torch.no_grad()
def proxy_loss(weight: Tensor, codes: Codes, hessian: Hessian) -> float:
    """tr(ΔW H ΔWᵀ) of any codes for weight [out, in], so that methods can be compared."""
    delta = codes.matrix() - weight.float()
    return ((delta @ hessian.matrix) * delta).sum(dtype=torch.float64).item()


@torch.no_grad()
def gptq(
    weight: Tensor,
    hessian: Hessian,
    *,
    bits: int = 4,
    group: int | None = 128,
    symmetric: bool = True,
    order: Order = "static",
    damping: float = 0.01,
    mse: bool = False,
    scale_dtype: torch.dtype = torch.float16,
    name: str = "the weight",
) -> Result:
    """weight [out, in] -> Result with codes [out, in] on `hessian`'s device; computed in fp32.

    order "static": columns by descending diag(H), each on the grid of its own group, fitted to the original weights;
    "none": from first to last, a group's grid fitted when its turn comes, to the weights that earlier errors left.
    group None: one grid a row. mse: search narrower ranges. Inputs that were always 0 get weights of 0.
    Raises RequestError where `group` does not divide the inputs or the Hessian is another layer's, WorkError for
    NaN or infinity and where no damping makes the Hessian positive definite; all say `name`.
    """
    out, width = weight.shape
    if hessian.matrix.shape[0] != width:
        raise RequestError(
            f"{name} has {width} inputs and the Hessian {hessian.matrix.shape[0]}; give the layer its own"
        )
    group = group_width(width, group, name)
    factor = hessian.factor(order, damping, name)
    device = hessian.matrix.device
    q = torch.empty(out, width, dtype=torch.uint8, device=device)
    scale = torch.empty(out, width // group, dtype=scale_dtype, device=device)
    zero = torch.empty(out, width // group, dtype=torch.uint8, device=device)
    loss = squares = 0.0

    def grids(groups: Tensor) -> tuple[Tensor, Tensor]:
        shrink = search_shrink(groups, bits, symmetric, scale_dtype) if mse else None
        return fit(groups, bits, symmetric, scale_dtype, shrink, name)

    for start in range(0, out, _ROWS):
        rows = slice(start, start + _ROWS)
        part = weight[rows].to(device, torch.float32).masked_fill(factor.dead, 0)
        if order == "static":
            scale[rows], zero[rows] = grids(part.reshape(len(part), -1, group))
        sweep = _Sweep(part, factor, group, bits, scale[rows], zero[rows])
        # Where grids are fitted on the way, a block is a group, whose errors so far are then known.
        step = _BLOCK if order == "static" else group
        for begin in range(0, width, step):
            end = min(begin + step, width)
            current = sweep.compensated(begin, end)
            if order == "none":
                index = begin // group
                scale[rows, index], zero[rows, index] = grids(sweep.free(begin, end, current))
            loss += sweep.round_block(begin, end, current)
        q[rows] = sweep.codes()
        squares += torch.linalg.vector_norm(sweep.errors).item() ** 2
    # 2·loss = tr(ΔW (H + λI) ΔWᵀ): the proxy costs no product with H.
    proxy = 2 * loss - factor.added * squares
    return Result(Codes(q, scale, zero, bits, group), loss, proxy, factor.damping)


class _Sweep:
    """Some rows of W on their way through the columns, in the order of the factor.

    part [rows, in]; scale and zero [rows, groups] may still be empty for groups whose turn has not come.
    """

    def __init__(
        self, part: Tensor, factor: Factor, group: int, bits: int, scale: Tensor, zero: Tensor
    ) -> None:
        self.factor, self.top = factor, 2**bits - 1
        self.scale, self.zero = scale.T, zero.T
        self.group_of = factor.permutation // group
        # [in, rows]: the weights; each turns into w − q in its turn
        self.errors = part.T.contiguous().index_select(0, factor.permutation)
        self.rounded = torch.empty(self.errors.shape, dtype=torch.uint8, device=part.device)

    def compensated(self, begin: int, end: int) -> Tensor:
        """Columns begin to end of the weights with the errors of all columns before them made up for."""
        before = self.factor.errors[begin:end, :begin]
        return torch.addmm(self.errors[begin:end], before, self.errors[:begin])

    def free(self, begin: int, end: int, current: Tensor) -> Tensor:
        """[rows, columns]: what columns begin to end would be if no more were rounded, as the published sweep has
        them at this point. They answer for each other, which `current` leaves to when their errors are known."""
        weight = self.errors[begin:end]
        within = self.factor.errors[begin:end, begin:end]
        shift = torch.linalg.solve_triangular(
            within, current - weight, upper=False, unitriangular=True
        )
        return (weight + shift).T.contiguous()

    def round_block(self, begin: int, end: int, current: Tensor) -> float:
        """Round columns begin to end, `current` being `compensated` of them; returns the loss."""
        group_of = self.group_of[begin:end]
        scale = self.scale[group_of].float()
        zero = self.zero[group_of].float()
        q = torch.empty_like(current)
        for start in range(begin, end, _PANEL):
            inside = slice(start - begin, min(start - begin + _PANEL, end - begin))
            stop = begin + inside.stop
            if start > begin:
                between = self.factor.errors[start:stop, begin:start]
                current[inside].addmm_(between, self.errors[begin:start])
            lowest = -zero[inside]
            self._round_panel(
                current[inside],
                self.errors[start:stop],
                self.factor.errors[start:stop, start:stop],
                (scale[inside], lowest, lowest + self.top),
                q[inside],
            )
        self.rounded[begin:end] = q + zero
        lost = current.addcmul_(scale, q, value=-1).square_().sum(dim=1, dtype=torch.float64)
        return 0.5 * (lost @ self.factor.pivots[begin:end].double()).item()

    def _round_panel(
        self,
        current: Tensor,
        errors: Tensor,
        reach: Tensor,
        grid: tuple[Tensor, Tensor, Tensor],
        q: Tensor,
    ) -> None:
        """Five calls a column; `reach` is zero from the diagonal on, so columns not yet rounded add nothing."""
        done = errors.T
        columns = zip(current, errors, reach.contiguous(), *grid, q, strict=True)
        for w, error, coefficients, scale, lowest, highest, code in columns:
            w.addmv_(done, coefficients)
            torch.div(w, scale, out=code).round_().clamp_(lowest, highest)
            error.addcmul_(scale, code, value=-1)

    def codes(self) -> Tensor:
        """uint8 [rows, in] in the layer's own order of inputs."""
        return self.rounded.index_select(0, torch.argsort(self.factor.permutation)).T


def _factor(hessian: Tensor, order: Order, damping: float, name: str) -> Factor:
    if not bool(hessian.isfinite().all()):
        raise WorkError(
            f"the inputs of {name} hold NaN or infinity on the calibration text, or squares beyond float32"
        )
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    mean = diagonal.sum() / (~dead).sum().clamp(min=1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    if order == "static":
        permutation = torch.argsort(diagonal, descending=True, stable=True)
    else:
        permutation = torch.arange(len(diagonal), device=hessian.device)
    # Cholesky from the last column to the first: H = R Rᵀ with R upper triangular.
    backwards = permutation.flip(0)
    matrix = hessian[backwards[:, None], backwards]
    base = torch.where(dead, mean, diagonal)[backwards]
    used = damping
    while True:
        matrix.diagonal().copy_(base + used * mean)
        lower, info = torch.linalg.cholesky_ex(matrix)
        if int(info) == 0:
            break
        used = round(used + _DAMPING_STEP, 10)
        if used > 1:
            raise WorkError(
                f"the Hessian of {name} is not positive definite with any damping up to 1; calibrate on more text"
            )
    roots = lower.diagonal().flip(0)
    errors = lower.T.flip(0, 1).div_(roots[:, None]).tril_(-1)
    return Factor(errors, roots.square(), permutation, dead, used, (used * mean).item())
