"""Balance of a mixture's experts: a correction that steers the choice, the classic losses, and numbers to watch.

Shapes: L layers with experts, N tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gristmill.model.moe import MoE
from gristmill.train.parallel.experts import Exchange

BALANCE_RATE = 0.001  # of families whose corrections are saved (sigmoid scores), as published


class Balance:
    """Balance without a loss (DeepSeek-V3, 2024; Wang et al. 2024), and the numbers that tell how it goes.

    Counts the tokens of each expert in training mode; after a step the correction of an expert with less than the
    mean rises by `rate`, that of one with more falls. rate: in units of the scores: of sigmoids 0.001 as published,
    of softmax over E experts rather a few hundredths of 1/E; 0: only watch.

    The state is the networks' `correction` buffers. A family that scores by sigmoid saves them. The others get one
    that lives in training alone (not in `state_dict`, but among the buffers): what is saved chooses without it, so
    for them the losses below are the way to a balance that lasts.

    lend: give the others one. networks: with memory, spread already (one network, or a ModuleList of a pipeline's
    stages).
    """

    def __init__(self, networks: nn.Module, rate: float, lend: bool = False) -> None:
        self.rate = rate
        self.layers = [module for module in networks.modules() if isinstance(module, MoE)]
        self._lent: list[MoE] = []
        self._hooks = []
        for number, layer in enumerate(self.layers):
            if rate and lend and layer.correction is None:
                zero = torch.zeros(layer.moe.num_experts, device=layer.router.weight.device)
                layer.register_buffer("correction", zero, persistent=False)
                self._lent.append(layer)
            self._hooks.append(layer.experts.register_forward_pre_hook(self._counting(number)))
            self._hooks.append(layer.router.register_forward_hook(self._weighing(number, layer)))
        self.forget()

    @torch.no_grad()
    def after_step(self, group: dist.ProcessGroup | None = None) -> dict[str, float]:
        """Move the corrections by what was counted since the last step, and forget it.

        group: the processes that had other tokens for the same layers; counts are exact, so that all of them, and
        any other layout, move the corrections alike. Returns, where there are layers with experts:
        expert_load_max: load of the fullest expert / mean load, in the worst layer, dropped tokens included;
        expert_dropped: share of the choices that a capacity dropped;
        router_entropy: of a token's distribution over the experts, nats, mean over tokens and layers.
        """
        if not self.layers:
            return {}
        dropped = sum(int(exchange.dropped) for exchange in self._exchanges())
        # One sum for all; fp64 holds counts exactly.
        told = torch.cat((self._loads.flatten(), self._entropy, self._tokens)).double()
        told = torch.cat((told, told.new_tensor([dropped])))
        if group is not None:
            dist.all_reduce(told, group=group)
        L, E = self._loads.shape
        loads_LE, more = told[: L * E].view(L, E), told[L * E :]
        for layer, load_E in zip(self.layers, loads_LE, strict=True):
            if self.rate and layer.correction is not None:
                layer.correction += self.rate * torch.sign(load_E.sum() - E * load_E)
        self.forget()
        mean_L = loads_LE.mean(-1).clamp(min=1e-9)
        return {
            "expert_load_max": float((loads_LE.amax(-1) / mean_L).max()),
            "expert_dropped": float(more[-1] / loads_LE.sum().clamp(min=1)),
            "router_entropy": float(more[:L].sum() / more[L : 2 * L].sum().clamp(min=1)),
        }

    def forget(self) -> None:
        """What was counted: of a step that is not taken."""
        if not self.layers:
            return
        L, device = len(self.layers), self.layers[0].router.weight.device
        E = self.layers[0].moe.num_experts
        self._loads = torch.zeros(L, E, dtype=torch.int64, device=device)
        self._tokens = torch.zeros(L, dtype=torch.int64, device=device)
        self._entropy = torch.zeros(L, dtype=torch.float64, device=device)
        for exchange in self._exchanges():
            exchange.dropped = torch.zeros_like(exchange.dropped)

    def remove(self) -> None:
        """Leave the networks as they are saved: without hooks, and without corrections that live in training alone."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._lent:
            layer.correction = None

    def _exchanges(self) -> list[Exchange]:
        found = [layer.experts.forward for layer in self.layers]
        return [exchange for exchange in found if isinstance(exchange, Exchange)]

    def _counting(self, number: int):
        def hook(experts: nn.Module, given: tuple[Tensor, ...]) -> None:
            if experts.training:
                E = self._loads.shape[1]
                self._loads[number] += given[1].flatten().bincount(minlength=E)

        return hook

    def _weighing(self, number: int, layer: MoE):
        @torch.no_grad()
        def hook(router: nn.Module, given: tuple[Tensor, ...], logits_NE: Tensor) -> None:
            if router.training:
                self._tokens[number] += len(logits_NE)
                self._entropy[number] += _entropy(logits_NE, layer.moe.scoring == "sigmoid")

        return hook


def over_stages(loads: dict[str, float], layers: int, group: dist.ProcessGroup) -> dict[str, float]:
    """What `after_step` returns on each stage of a pipeline, for all `layers` of all stages; {} where none has any."""
    names = ("expert_dropped", "router_entropy")
    told = torch.tensor([layers, *(layers * loads.get(name, 0.0) for name in names)]).double()
    most = torch.tensor([loads.get("expert_load_max", 0.0)]).double()
    dist.all_reduce(told, group=group)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=group)
    if not told[0]:
        return {}
    means = zip(names, (told[1:] / told[0]).tolist(), strict=True)
    return {"expert_load_max": float(most), **dict(means)}


@contextmanager
def router_logits(network: nn.Module) -> Iterator[list[Tensor]]:
    """The logits [N, E] of every router in the forward passes within, in their order, with their graph."""
    found: list[Tensor] = []
    routers = [module.router for module in network.modules() if isinstance(module, MoE)]
    hooks = [r.register_forward_hook(lambda *told: found.append(told[2])) for r in routers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def load_balancing_loss(
    logits_LNE: Sequence[Tensor],
    top: int,
    counted_N: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """E · Σ_e f_e · P_e: f the choices that fall on an expert per token, P its mean probability by softmax.

    Over the tokens of all layers together, as in `transformers`; `top` (the experts of a token) when balanced
    (Switch: Fedus et al. 2021). counted_N: bool, the tokens that count; all by default. group: f, which has no
    gradient, is then that of all its processes, so that their losses, weighted by their tokens, average to that of
    one process with all tokens.
    """
    E, layers = logits_LNE[0].shape[-1], len(logits_LNE)
    probabilities_NE = torch.cat(list(logits_LNE)).float().softmax(-1)
    if counted_N is not None:
        probabilities_NE = probabilities_NE[counted_N.repeat(layers)]
    chosen = probabilities_NE.topk(top, dim=-1).indices
    counts = chosen.flatten().bincount(minlength=E)
    counts = torch.cat((counts, counts.new_tensor([len(chosen)])))
    if group is not None:
        dist.all_reduce(counts, group=group)
    f_E, P_E = counts[:-1] / counts[-1].clamp(min=1), probabilities_NE.sum(0) / max(1, len(chosen))
    return E * (f_E * P_E).sum()


def balance_by_row(
    logits_LNE: Sequence[Tensor], rows: int, top: int, group: dist.ProcessGroup | None = None
) -> Tensor:
    """The same within each row, summed over rows (DeepSeek-V3's sequence-wise loss): no cutting of a batch into
    micro-batches or processes changes it. group: of the processes that share the rows' tokens."""
    E = logits_LNE[0].shape[-1]
    probabilities_BNE = torch.cat([z.float().softmax(-1).view(rows, -1, E) for z in logits_LNE], 1)
    chosen_BNE = torch.zeros_like(probabilities_BNE, requires_grad=False)
    chosen_BNE.scatter_(-1, probabilities_BNE.topk(top, dim=-1).indices, 1.0)
    f_BE = chosen_BNE.detach().mean(1)
    parts = 1
    if group is not None:
        dist.all_reduce(f_BE, group=group)
        parts = group.size()
    return E * (f_BE / parts * probabilities_BNE.mean(1) / parts).sum()


def router_z_loss(logits_LNE: Sequence[Tensor], counted_N: Tensor | None = None) -> Tensor:
    """The mean of (log Σ exp logits)² over all layers' tokens: keeps logits small (ST-MoE: Zoph et al. 2022)."""
    squares_LN = torch.stack([z.float().logsumexp(-1).square() for z in logits_LNE])
    if counted_N is not None:
        squares_LN = squares_LN[:, counted_N]
    return squares_LN.sum() / max(1, squares_LN.numel())


def _entropy(logits_NE: Tensor, sigmoid: bool) -> Tensor:
    """Summed over tokens, nats; sigmoids are made to sum to 1."""
    logits_NE = logits_NE.float()
    logs_NE = nn.functional.logsigmoid(logits_NE) if sigmoid else logits_NE
    logs_NE = logs_NE.log_softmax(-1)
    return -(logs_NE.exp() * logs_NE).sum()
