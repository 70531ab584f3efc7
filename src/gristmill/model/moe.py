"""Mixture of experts: a router sends each token to a few of many MLPs.

Shapes: N tokens, D hidden_size, E experts, K experts of each token, R rows: one for each token and expert of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gristmill.model.config import ModelConfig, MoEConfig
from gristmill.model.layers import MLP, Linear, activate_gated


class Experts(nn.Module):
    """The experts' weights stacked, [E, out, in] each, so that a grouped kernel can take them whole."""

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.activation, self.has_bias = config.activation, moe.bias
        self.num_experts = moe.num_experts
        E, D, width = moe.num_experts, config.hidden_size, moe.intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(E, width, D))
        self.up_proj = nn.Parameter(torch.empty(E, width, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, width))
        if moe.bias:
            self.gate_bias = nn.Parameter(torch.empty(E, width))
            self.up_bias = nn.Parameter(torch.empty(E, width))
            self.down_bias = nn.Parameter(torch.empty(E, D))

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of what each token's chosen experts say, [N, D]."""
        order_R, counts_E = by_expert(chosen_NK, self.num_experts)
        x_RD = x_ND.index_select(0, order_R // chosen_NK.shape[1])
        # Once for all: indexing a stack makes a gradient of its whole size for every expert.
        stacks = {name: tensor.unbind() for name, tensor in self.named_parameters()}
        return summed(self.answers(x_RD, counts_E.tolist(), stacks), order_R, weights_NK)

    def answers(
        self, x_RD: Tensor, counts: Sequence[int], stacks: Mapping[str, Sequence[Tensor]]
    ) -> Tensor:
        """What the experts say, [R, D]: the first to the first `counts[0]` rows, the second to the next.

        stacks: each parameter by expert, of as many experts as there are counts.
        """
        parts = x_RD.split(list(counts))
        said = [self._expert(stacks, e, x) for e, x in enumerate(parts) if len(x)]
        # Nobody asked: the empty answer of one expert, or the weights would have no gradient on this process.
        return torch.cat(said) if said else self._expert(stacks, 0, x_RD)

    def _expert(self, stacks: Mapping[str, Sequence[Tensor]], expert: int, x: Tensor) -> Tensor:
        def linear(x: Tensor, name: str) -> Tensor:
            bias = stacks[f"{name}_bias"][expert].to(x.dtype) if self.has_bias else None
            stack = getattr(self, f"{name}_proj")
            if isinstance(
                stack, nn.Module
            ):  # put in place of the parameter, and multiplies by itself
                y = stack(x, expert)
                return y if bias is None else y + bias
            return F.linear(x, stacks[f"{name}_proj"][expert].to(x.dtype), bias)

        return linear(activate_gated(self.activation, linear(x, "gate"), linear(x, "up")), "down")


def by_expert(chosen_NK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """(places in the flattened choice, by expert and then by token, [R]; how many each expert has, [E])."""
    flat = chosen_NK.flatten()
    return flat.argsort(stable=True), flat.bincount(minlength=num_experts)


def summed(said_RD: Tensor, order_R: Tensor, weights_NK: Tensor) -> Tensor:
    """For each token the weighted sum of what was said at its places, [N, D]; where a place is missing, nothing was."""
    N, K = weights_NK.shape
    weight_R1 = weights_NK.flatten()[order_R, None].to(said_RD.dtype)
    # On CUDA the order of this sum (and of the gradient of the rows taken) is chance, unless
    # torch.use_deterministic_algorithms is on, as for attention. Sums without atomics took 1.4 to 1.6 times as long.
    out_ND = said_RD.new_zeros(N, said_RD.shape[1])
    return out_ND.index_add_(0, order_R // K, said_RD * weight_R1)


class MoE(nn.Module):
    """Router and experts, with shared experts beside them where the family has some.

    correction: fp32 [E], added to the scores where experts are chosen and not to the weights of what they say; moved
    by load balancing, not by gradients (DeepSeek-V3, 2024). None: the family has none, and training gave it none.
    """

    correction: Tensor | None

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.moe = moe
        self.router = Linear(config.hidden_size, moe.num_experts, moe.bias)
        self.register_buffer("correction", None)
        if moe.scoring == "sigmoid":
            self.correction = nn.Buffer(torch.empty(moe.num_experts))
        self.experts = Experts(config, moe)
        if moe.shared_intermediate_size:
            self.shared_experts = MLP(config, moe.shared_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        flat_ND = x.reshape(-1, x.shape[-1])
        out = self.experts(flat_ND, *self._route(flat_ND)).view_as(x)
        return out + self.shared_experts(x) if self.moe.shared_intermediate_size else out

    def _route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """For each token its experts' numbers and weights, [N, K] each."""
        moe, wide = self.moe, torch.promote_types(x_ND.dtype, torch.float32)
        # Sigmoid from the matrix on in fp32, as published: the differences that decide are small.
        logits_NE = self.router(x_ND.to(wide) if moe.scoring == "sigmoid" else x_ND)
        if moe.scoring == "softmax_chosen":
            chosen_NK = self._choose(logits_NE)
            return chosen_NK, logits_NE.gather(-1, chosen_NK).softmax(-1)
        softmax = moe.scoring == "softmax"
        scores_NE = logits_NE.to(wide).softmax(-1) if softmax else logits_NE.sigmoid()
        chosen_NK = self._choose(scores_NE)
        weights_NK = scores_NE.gather(-1, chosen_NK)
        if moe.normalize:
            weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
        return chosen_NK, weights_NK * moe.scale

    def _choose(self, scores_NE: Tensor) -> Tensor:
        """The numbers of each token's best experts, [N, K]."""
        if self.correction is not None:
            scores_NE = scores_NE + self.correction.to(scores_NE.dtype)
        return self._within_groups(scores_NE).topk(self.moe.experts_per_token, dim=-1).indices

    def _within_groups(self, scores_NE: Tensor) -> Tensor:
        """Scores outside the best groups are -inf; a group counts by the sum of its two best experts."""
        groups = self.moe.num_groups
        if groups == 1:
            return scores_NE
        grouped_NGe = scores_NE.unflatten(-1, (groups, -1))
        best = grouped_NGe.topk(2, dim=-1).values.sum(-1).topk(self.moe.groups_kept, dim=-1).indices
        kept_NG = torch.zeros_like(grouped_NGe[..., 0], dtype=torch.bool).scatter_(-1, best, True)
        return grouped_NGe.masked_fill(~kept_NG[..., None], float("-inf")).flatten(-2)
