"""The calibration windows on their way through the blocks of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gristmill.errors import WorkError
from gristmill.model import Block, Transformer
from gristmill.model.attention import Context

IN_MEMORY_BYTES = 4 << 30  # activations beyond this lie in a file of the work directory
_TOKENS = 4096  # that go through a block at once


class Stream:
    """The calibration windows on their way: hidden states before block `layer`, fp32 [count, length, D]."""

    def __init__(
        self, network: Transformer, windows: Tensor, work: Path, in_memory: int = IN_MEMORY_BYTES
    ) -> None:
        count, length = windows.shape
        size = network.config.hidden_size
        self.layer = 0
        self._rows = max(1, _TOKENS // length)
        if 4 * count * length * size <= in_memory:
            self.hidden = torch.empty(count, length, size)
        else:
            self.hidden = _in_file(work, count * length * size).view(count, length, size)
        with _only_embedding(network) as seen, torch.no_grad():
            for at in range(0, count, self._rows):
                network.hidden(windows[at : at + self._rows], dtype=torch.float32)
                self.hidden[at : at + self._rows] = seen.hidden
            network.hidden(windows[:1], dtype=torch.float32)
            self._contexts = seen.contexts  # of one row: what they hold is the same for all
        self.check("the embedding")

    @property
    def context(self) -> Context:
        """That of block `layer`."""
        return self._contexts[self.layer]

    def batches(self) -> Iterator[Tensor]:
        """Hidden states [rows, length, D] before the block."""
        yield from self.hidden.split(self._rows)

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0] * self.hidden.shape[1]

    @torch.no_grad()
    def inputs(self, block: Block, module: nn.Module, tokens: int) -> list[tuple[Any, ...]]:
        """What a module of the block is given, in batches: for windows of about so many tokens, evenly from all."""
        count, length = self.hidden.shape[:2]
        kept = torch.linspace(0, count - 1, min(count, max(1, tokens // length))).long()
        given: list[tuple[Any, ...]] = []

        def see(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            given.append(arguments)
            raise _Enough

        handle = module.register_forward_pre_hook(see)
        try:
            for batch in self.hidden[kept].split(self._rows):
                with suppress(_Enough):
                    block(batch, self.context)
        finally:
            handle.remove()
        return given

    @torch.no_grad()
    def feed(self, block: Block, watched: Mapping[str, Callable[[Tensor], None]]) -> None:
        """Run the block up to the last of the modules named in `watched`; each is shown its inputs [tokens, in]."""
        left = 0

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
                nonlocal left
                x = given[0].flatten(0, -2)
                if not bool(x.isfinite().all()):
                    raise WorkError(self._bad(f"{self.layer}.{name}", "input"))
                watched[name](x)
                left -= 1
                if not left:
                    raise _Enough

            return see

        handles = [
            block.get_submodule(name).register_forward_pre_hook(hook(name)) for name in watched
        ]
        try:
            for batch in self.batches():
                left = len(watched)
                with suppress(_Enough):
                    block(batch, self.context)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def advance(self, block: Block) -> None:
        """Replace the hidden states by the block's output, and stand before the next."""
        for batch in self.batches():
            batch.copy_(block(batch, self.context))
        self.check(f"{self.layer}", "output")
        self.layer += 1

    def check(self, layer: str, what: str = "output") -> None:
        for batch in self.batches():
            if not bool(batch.isfinite().all()):
                raise WorkError(self._bad(layer, what))

    def _bad(self, layer: str, what: str) -> str:
        place = layer if layer.startswith("the") else f"model.layers.{layer}"
        return (
            f"the {what} of {place} holds NaN or infinity on the calibration text: the weights before it are "
            "damaged, or too large for float32"
        )


def _in_file(directory: Path, size: int) -> Tensor:
    """fp32 [size] in a file that has no name: it is gone with the tensor, or the process."""
    file = directory / "activations.tmp"
    try:
        return torch.from_file(str(file), shared=True, size=size, dtype=torch.float32)
    finally:
        file.unlink(missing_ok=True)


class _Enough(Exception):
    """The last watched module has seen its input; the rest of the block need not run."""


class _Recorder(nn.Module):
    """Stands where a block stood: keeps what it is given, and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: tuple[Tensor, Context] | None = None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        self.given = (x, context)
        return x


@dataclass(frozen=True)
class _Seen:
    recorders: list[_Recorder]

    @property
    def hidden(self) -> Tensor:
        assert self.recorders[0].given is not None
        return self.recorders[0].given[0]

    @property
    def contexts(self) -> list[Context]:
        return [recorder.given[1] for recorder in self.recorders if recorder.given is not None]


@contextmanager
def _only_embedding(network: Transformer) -> Iterator[_Seen]:
    """While it lasts the network's blocks do nothing, and what they would have been given can be seen."""
    layers = network.model.layers
    recorders = [_Recorder() for _ in layers]
    network.model.layers = nn.ModuleList(recorders)
    try:
        yield _Seen(recorders)
    finally:
        network.model.layers = layers
