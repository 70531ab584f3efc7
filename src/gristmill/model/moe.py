"""Mixture of experts: a router sends each token to a few of many MLPs."""

from __future__ import annotations

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
        E, D, width = moe.num_experts, config.hidden_size, moe.intermediate_size
        self.gate_proj = nn.Parameter(torch.empty(E, width, D))
        self.up_proj = nn.Parameter(torch.empty(E, width, D))
        self.down_proj = nn.Parameter(torch.empty(E, D, width))
        if moe.bias:
            self.gate_bias = nn.Parameter(torch.empty(E, width))
            self.up_bias = nn.Parameter(torch.empty(E, width))
            self.down_bias = nn.Parameter(torch.empty(E, D))

    def forward(self, x_ND: Tensor, chosen_NE: Tensor, weights_NE: Tensor) -> Tensor:
        """The weighted sum of what each token's chosen experts say, [N, D]."""
        # Once for all: indexing a stack makes a gradient of its whole size for every expert.
        stacks = {name: tensor.unbind() for name, tensor in self.named_parameters()}
        out = torch.zeros_like(x_ND)
        for expert in chosen_NE.unique().tolist():
            tokens, place = (chosen_NE == expert).nonzero(as_tuple=True)
            said = self._expert(stacks, expert, x_ND[tokens])
            weight = weights_NE[tokens, place, None].to(said.dtype)
            out.index_add_(0, tokens, said * weight)
        return out

    def _expert(self, stacks: dict[str, tuple[Tensor, ...]], expert: int, x: Tensor) -> Tensor:
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


class MoE(nn.Module):
    """Router and experts, with shared experts beside them where the family has some."""

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.moe = moe
        self.router = Linear(config.hidden_size, moe.num_experts, moe.bias)
        if moe.scoring == "sigmoid":
            # Moved by the trainer's load balancing, not by gradients (DeepSeek-V3, 2024).
            self.correction = nn.Buffer(torch.empty(moe.num_experts))
        self.experts = Experts(config, moe)
        if moe.shared_intermediate_size:
            self.shared_experts = MLP(config, moe.shared_intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        flat_ND = x.reshape(-1, x.shape[-1])
        out = self.experts(flat_ND, *self._route(flat_ND)).view_as(x)
        return out + self.shared_experts(x) if self.moe.shared_intermediate_size else out

    def _route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """For each token its experts' numbers and weights, [N, experts_per_token] each."""
        moe, top = self.moe, self.moe.experts_per_token
        if moe.scoring == "softmax_chosen":
            values, chosen = self.router(x_ND).topk(top, dim=-1)
            return chosen, values.softmax(-1)
        if moe.scoring == "softmax":
            weights, chosen = self.router(x_ND).float().softmax(-1).topk(top, dim=-1)
        else:
            # In fp32, as published: the differences that decide are small.
            scores = F.linear(x_ND.float(), self.router.weight.float()).sigmoid()
            chosen = self._within_groups(scores + self.correction.float()).topk(top, dim=-1).indices
            weights = scores.gather(-1, chosen)
        if moe.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return chosen, weights * moe.scale

    def _within_groups(self, scores_NE: Tensor) -> Tensor:
        """Scores outside the best groups are -inf; a group counts by the sum of its two best experts."""
        groups = self.moe.num_groups
        if groups == 1:
            return scores_NE
        grouped_NGe = scores_NE.unflatten(-1, (groups, -1))
        best = grouped_NGe.topk(2, dim=-1).values.sum(-1).topk(self.moe.groups_kept, dim=-1).indices
        kept_NG = torch.zeros_like(grouped_NGe[..., 0], dtype=torch.bool).scatter_(-1, best, True)
        return grouped_NGe.masked_fill(~kept_NG[..., None], float("-inf")).flatten(-2)
