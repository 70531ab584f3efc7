"""Ring attention (Liu et al. 2023): every rank holds some tokens of each row; keys and values travel around the ranks.

A rank's queries meet one rank's keys at a time. Sums over the keys seen so far are kept with their running maximum and
end as output and log-sum-exp over the whole row; the backward pass needs those, not the ones of a block. Ranks hold an
early and a late chunk of the row each ("zigzag", Brandon et al. 2023), so that causal work is the same for all.

Shapes: B batch, T tokens and S keys of a rank, R ranks, N tiles of a rank's tokens, H heads, K key-value heads,
G = H / K queries of each, C head_dim (values may have another), 2 numbers that place a token: position and document.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.model import ModelConfig, Transformer
from gristmill.model.attention import Context
from gristmill.model.transformer import Block

_TILE = 512  # queries or keys that are judged together; scores are [B, H, a tile, keys of a rank] at most
_BLOCKS, _GRADIENTS = 0, 1  # tags of what travels


def zigzag(length: int, ranks: int, rank: int) -> Tensor:
    """The places in a row of `length` tokens that a rank holds, int64 [length / ranks], ascending.

    They are chunks `rank` and 2 · ranks - 1 - `rank` of 2 · ranks. Raises RequestError where these are not even.
    """
    if ranks == 1:
        return torch.arange(length)
    if length % (2 * ranks):
        raise RequestError(f"{ranks} ranks need a multiple of {2 * ranks} tokens, not {length}")
    chunks = torch.arange(length).view(2 * ranks, -1)
    return torch.cat((chunks[rank], chunks[2 * ranks - 1 - rank]))


def apply(network: Transformer, group: dist.ProcessGroup) -> None:
    """Let every layer attend over the tokens of all ranks of `group`; `hidden` must then be given `positions_BT`.

    Raises RequestError for LongRoPE, whose frequencies depend on where the whole row ends.
    """
    scaling = network.config.rope_scaling
    if scaling is not None and scaling.kind == "longrope":
        raise RequestError("longrope depends on the length of whole rows: set layout.cp = 1")
    ring = RingAttention(group)
    for block in network.model.layers:
        if block is not None:
            cast(Block, block).self_attn.attend = cast(Any, torch.compiler.disable(ring))
    network.visible = lambda window, positions_BT, segments_BT: ring.begin()


class RingAttention:
    """`attend_locally` for tokens that are spread over the ranks of `group`, each holding equally many.

    `context.positions_BT` are the places of this rank's tokens in their rows or, where `context.segments_BT` numbers
    the documents of a row (each number once a row), in their documents. Its layers' ranks ask each other once a pass.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.begin()

    def begin(self) -> None:
        """A new pass: forget who sees what."""
        self._of: tuple[Tensor | None, Tensor | None] = (None, None)  # its positions and segments
        self._views: dict[int | None, _View] = {}  # by window

    def __call__(
        self,
        q_BHTC: Tensor,
        k_BKTC: Tensor,
        v_BKTC: Tensor,
        context: Context,
        config: ModelConfig,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """[B, H, T, C of v] in the dtype of q; statistics and sums over ranks are in fp32 or wider."""
        of, window = (context.positions_BT, context.segments_BT), context.window
        if self._of[0] is not of[0] or self._of[1] is not of[1]:
            self._of, self._views = of, {}
        if window not in self._views:
            self._views[window] = _View(self.group, context)
        rest = (self._views[window], config.score_scale, config.attention_softcap)
        return cast(Any, _Ring).apply(q_BHTC, k_BKTC, v_BKTC, sinks_H, *rest)


_Span = tuple[slice, slice, bool]  # queries, the keys that they see, whether some see only some


class _View:
    """Which keys the tokens of this rank may see; all ranks are asked where theirs stand."""

    def __init__(self, group: dist.ProcessGroup, context: Context) -> None:
        self.group, self.window = group, sys.maxsize if context.window is None else context.window
        positions, segments = context.positions_BT, context.segments_BT
        segments = torch.zeros_like(positions) if segments is None else segments
        places_B2T = torch.stack((positions.long(), segments.long()), 1)
        self.places_RB2T = places_B2T.new_empty(group.size(), *places_B2T.shape)
        dist.all_gather(list(self.places_RB2T.unbind()), places_B2T, group)
        T, half = positions.shape[1], (positions.shape[1] + 1) // 2
        starts = [*range(0, half, _TILE), *range(half, T, _TILE)]  # no tile is in both chunks
        tiles = [slice(a, b) for a, b in zip(starts, [*starts[1:], T], strict=True)]
        low = torch.stack([self.places_RB2T[..., tile].amin(-1) for tile in tiles], -1)
        high = torch.stack([self.places_RB2T[..., tile].amax(-1) for tile in tiles], -1)
        # The least and the most by which queries of a tile can be behind keys of a tile, [R, B, N, N] each.
        least, least_documents = (low[group.rank(), ..., None] - high[..., None, :]).unbind(2)
        most, most_documents = (high[group.rank(), ..., None] - low[..., None, :]).unbind(2)
        some = (most >= 0) & (least < self.window) & (most_documents >= 0) & (least_documents <= 0)
        every = (least >= 0) & (most < self.window) & (most_documents == 0) & (least_documents == 0)
        # 0: no row sees anything; 2: all rows see everything. The one wait for the device in a pass.
        judged_RNN = (some.any(1).int() + every.all(1).int()).tolist()
        self.spans = [_spans(tiles, judged_NN) for judged_NN in judged_RNN]  # by rank of the keys

    def seen(self, source: int) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Tiles of queries, the keys of rank `source` that they see, and the mask [B, 1, 1, tile, keys] or None."""
        for queries, keys, partly in self.spans[source]:
            mask = None
            if partly:
                q_B2T = self.places_RB2T[self.group.rank(), :, :, queries]
                k_B2S = self.places_RB2T[source, :, :, keys]
                back, documents = (q_B2T[..., None] - k_B2S[:, :, None]).unbind(1)
                mask = ((back >= 0) & (back < self.window) & (documents == 0))[:, None, None]
            yield queries, keys, mask


def _spans(tiles: list[slice], judged_NN: list[list[int]]) -> list[_Span]:
    spans = []
    for queries, judged_N in zip(tiles, judged_NN, strict=True):
        if seen := [n for n, judged in enumerate(judged_N) if judged]:
            keys = slice(tiles[seen[0]].start, tiles[seen[-1]].stop)
            spans.append((queries, keys, min(judged_N[seen[0] : seen[-1] + 1]) < 2))
    return spans


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q_BHTC, k_BKSC, v_BKSC, sinks_H, view, scale, softcap = inputs
        q = q_BHTC.unflatten(1, (k_BKSC.shape[1], -1))  # [B, K, G, T, C]
        wide = torch.promote_types(q.dtype, torch.float32)
        # Per query: the largest score, the sum of exp(score - largest), and that of exp(score - largest) · value.
        largest = q.new_full((*q.shape[:-1], 1), torch.finfo(wide).min, dtype=wide)
        total = torch.full_like(largest, sinks_H is not None)
        weighted = q.new_zeros(*q.shape[:-1], v_BKSC.shape[-1], dtype=wide)
        if sinks_H is not None:  # one more score, without a value
            largest.copy_(sinks_H.view(*q.shape[1:3], 1, 1))
        shapes = (k_BKSC.shape, v_BKSC.shape)
        block = torch.cat((k_BKSC.flatten(), v_BKSC.flatten()))
        for source, moving in _travelling(view.group, block):
            k, v = _parts(moving, shapes)
            for queries, keys, mask in view.seen(source):
                at = (..., queries, slice(None))
                scores, _ = _scores(q[at], k[:, :, keys], mask, scale, softcap)
                highest = torch.maximum(largest[at], scores.amax(-1, keepdim=True))
                shrink = (largest[at] - highest).exp_()
                shares = scores.sub_(highest).exp_()
                total[at] = total[at] * shrink + shares.sum(-1, keepdim=True)
                values = shares.to(v.dtype).flatten(2, 3) @ v[:, :, keys]
                weighted[at].mul_(shrink).add_(values.view_as(weighted[at]))
                largest[at] = highest
        out = (weighted / total).to(q.dtype)
        ctx.save_for_backward(q, block, sinks_H, out, largest + total.log())
        ctx.rest = (shapes, view, scale, softcap)
        return out.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        q, block, sinks_H, out, log_total = ctx.saved_tensors
        shapes, view, scale, softcap = ctx.rest
        grad, wide = grads[0].view_as(out), log_total.dtype
        # Σ over keys of share · its gradient, which every score's gradient has in it.
        common = (grad.to(wide) * out).sum(-1, keepdim=True)
        d_q, arrived = torch.zeros_like(q, dtype=wide), None
        for source, moving in _travelling(view.group, block):
            k, v = _parts(moving, shapes)
            d_block = torch.zeros_like(block, dtype=wide)
            d_k, d_v = _parts(d_block, shapes)
            for queries, keys, mask in view.seen(source):
                at = (..., queries, slice(None))
                scores, bent = _scores(q[at], k[:, :, keys], mask, scale, softcap)
                shares = scores.sub_(log_total[at]).exp_()
                d_out = grad[at].flatten(2, 3)  # [B, K, G · tile, C]: all that one key serves
                d_v[:, :, keys] += shares.to(v.dtype).flatten(2, 3).mT @ d_out
                d_shares = (d_out @ v[:, :, keys].mT).to(wide).view_as(shares)
                d_scores = d_shares.sub_(common[at]).mul_(shares)
                if bent is not None:
                    d_scores.mul_(1 - bent**2)
                d_raw = d_scores.mul_(scale).to(q.dtype).flatten(2, 3)
                d_q[at].add_((d_raw @ k[:, :, keys]).view_as(d_q[at]))
                d_k[:, :, keys] += d_raw.mT @ q[at].flatten(2, 3)
            if arrived is not None:  # what the ranks before this one have found for the block
                d_block += arrived()
            arrived = _pass_on(view.group, d_block, _GRADIENTS)
        assert arrived is not None  # after a whole turn it is this rank's own
        d_k, d_v = _parts(arrived().to(q.dtype), shapes)
        d_sinks = None
        if sinks_H is not None:
            share = (sinks_H.view(*q.shape[1:3], 1, 1) - log_total).exp()
            d_sinks = -(share * common).sum((0, 3, 4)).flatten().to(sinks_H.dtype)
        return d_q.flatten(1, 2).to(q.dtype), d_k, d_v, d_sinks, None, None, None


def _scores(
    q_BKGTC: Tensor, k_BKSC: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Scores [B, K, G, T, S] in fp32 or wider, -inf where masked; and what tanh gave under a soft cap."""
    raw = q_BKGTC.flatten(2, 3) @ k_BKSC.mT
    scores = raw.to(torch.promote_types(raw.dtype, torch.float32)).mul_(scale)
    scores, bent = scores.view(*q_BKGTC.shape[:-1], -1), None
    if softcap is not None:
        bent = (scores / softcap).tanh_()
        scores = bent * softcap
    return scores if mask is None else scores.masked_fill_(~mask, float("-inf")), bent


def _parts(block: Tensor, shapes: tuple[torch.Size, torch.Size]) -> tuple[Tensor, Tensor]:
    """Keys and values of what travels as one flat tensor."""
    k, v = block.split([shape.numel() for shape in shapes])
    return k.view(shapes[0]), v.view(shapes[1])


def _travelling(group: dist.ProcessGroup, block: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every rank's block once, this one's first; the next is on its way while the caller works on one."""
    for step in range(group.size()):
        arrived = _pass_on(group, block, _BLOCKS) if step + 1 < group.size() else None
        yield (group.rank() - step) % group.size(), block
        block = arrived() if arrived else block


def _pass_on(group: dist.ProcessGroup, block: Tensor, tag: int) -> Callable[[], Tensor]:
    """Start to send to the next rank and to receive from the one before; what is returned waits for both."""
    size, rank = group.size(), group.rank()
    if size == 1:
        return lambda: block
    send = dist.P2POp(dist.isend, block, None, group, tag, (rank + 1) % size)
    receive = dist.P2POp(dist.irecv, torch.empty_like(block), None, group, tag, (rank - 1) % size)
    works = dist.batch_isend_irecv([send, receive])

    def arrived(_kept: Tensor = block) -> Tensor:  # what is sent lives until it has gone
        for work in works:
            work.wait()
        return receive.tensor

    return arrived
