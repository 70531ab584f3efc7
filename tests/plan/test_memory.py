"""Training memory: published arithmetic, and the peak of real steps in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gristmill.errors import RequestError
from gristmill.kernels import training as kernels
from gristmill.model import ModelConfig, meta_network
from gristmill.plan import Memory, Sizes, Training, memory_of, presets, shortage, training_memory
from gristmill.plan.memory import spans
from gristmill.train.parallel import pipeline

PRESETS = presets()
LLAMA = PRESETS["llama-3-8b"].config
HERE = Path(__file__).parent


def states(memory: Memory) -> float:
    return (memory.weights + memory.gradients + memory.optimizer) / 1e9


def test_states_are_the_papers_arithmetic() -> None:
    """N = 8,030,261,248 (Rajbhandari et al. 2020): 16 bytes a parameter, 4 + 12/n, 2 + 14/n, 16/n."""
    n = 8_030_261_248 / 1e9
    assert states(training_memory(LLAMA, Sizes(), precision="mixed")) == pytest.approx(
        128.484, abs=1e-3
    )
    over = Sizes(dp=8)
    for zero, bytes_each in ((1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)):
        found = training_memory(LLAMA, over, precision="mixed", zero=zero)
        assert states(found) == pytest.approx(n * bytes_each, rel=1e-9)
    assert states(training_memory(LLAMA, over, precision="mixed", zero=1)) == pytest.approx(
        44.166, abs=1e-3
    )
    assert states(training_memory(LLAMA, over, precision="mixed")) == pytest.approx(
        16.061, abs=1e-3
    )
    whole = {"float32": 16, "bfloat16": 18, "pure-bfloat16": 12}
    for precision, bytes_each in whole.items():
        found = training_memory(LLAMA, Sizes(), precision=precision)
        # Copies in the compute type are of matrices alone.
        assert states(found) == pytest.approx(n * bytes_each, rel=0.02)
    small = training_memory(LLAMA, Sizes(), precision="pure-bfloat16", optimizer="adamw-8bit")
    assert states(small) == pytest.approx(6 * n, rel=1e-9)


def test_muon_keeps_one_moment_of_the_hidden_matrices() -> None:
    network = meta_network(LLAMA)
    hidden = sum(p.numel() for name, p in network.named_parameters()
                 if p.ndim == 2 and "embed" not in name and "lm_head" not in name)  # fmt: skip
    rest = sum(p.numel() for p in network.parameters()) - hidden
    found = training_memory(LLAMA, Sizes(), precision="float32", optimizer="muon")
    assert found.optimizer == 4 * hidden + 8 * rest


def test_whole_logits_are_as_large_as_the_vocabulary() -> None:
    """8 rows of 2,048 tokens, 128,256 words: 7.83 GiB in fp32, and as much for the gradient."""
    settings: dict[str, Any] = dict(micro_batch_rows=8, context=2048, precision="mixed")
    whole = training_memory(LLAMA, Sizes(), loss="whole", **settings)
    assert whole.logits / 2**30 == pytest.approx(2 * 7.83 + 3.91, abs=0.02)
    chunked = training_memory(LLAMA, Sizes(), **settings)
    assert chunked.logits < whole.logits / 4


@pytest.mark.parametrize("stages", range(1, 13))
def test_stages_are_the_pipelines(stages: int) -> None:
    assert spans(22, stages) == pipeline.spans(22, stages)


def test_every_way_to_split_takes_from_a_device() -> None:
    training = Training(context=8192, micro_batch_rows=2)
    alone = memory_of(LLAMA, Sizes(), training)
    for layout in (Sizes(dp=2), Sizes(tp=2), Sizes(pp=2), Sizes(cp=2)):
        assert memory_of(LLAMA, layout, training).total < 0.85 * alone.total
    moe = PRESETS["mixtral-8x7b"].config
    spread = memory_of(moe, Sizes(dp=8, ep=8), training)
    assert spread.buffers < memory_of(moe, Sizes(dp=8), training).buffers
    # Without recomputation a pipeline's first rank holds as many micro-batches as there are stages.
    assert memory_of(LLAMA, Sizes(pp=4), training).activations == pytest.approx(
        alone.activations, rel=0.1
    )


def test_less_is_kept_the_more_is_computed_again() -> None:
    found = [
        training_memory(LLAMA, Sizes(dp=8), context=8192, recompute=kind).total
        for kind in ("none", "selective", "full")
    ]
    assert found[0] > found[1] > found[2]


SHAPE: dict[str, Any] = dict(
    vocab_size=4096,
    hidden_size=256,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=704,
    max_seq_len=512,
    tie_embeddings=False,
)


CASES: list[tuple[bool, Any, int]] = [  # native kernels, recompute, micro-batches
    (True, "none", 1),
    (True, "none", 2),
    (True, "full", 2),
    (False, "selective", 2),
    (False, "none", 1),
]
ROWS, CONTEXT = 8, 192


@pytest.fixture(scope="module")
def peaks() -> list[int]:
    """Of a step of each case, measured in one process of their own."""
    if sys.platform != "linux":
        pytest.skip("the peak of a process is read from /proc")
    asked = [
        dict(config=SHAPE, dtype="float32", rows=ROWS, context=CONTEXT, recompute=recompute,
             micro_batches=micro_batches, native=native)
        for native, recompute, micro_batches in CASES
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, HERE / "train_once.py", json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_peak_of_a_real_step(case: int, peaks: list[int]) -> None:
    native, recompute, micro_batches = CASES[case]
    planned = training_memory(
        ModelConfig(**SHAPE),
        Sizes(),
        precision="float32",
        micro_batch_rows=ROWS // micro_batches,
        context=CONTEXT,
        recompute=recompute,
        micro_batches=micro_batches,
        kernels="native" if native and kernels.extension is not None else "cpu",
    )
    assert planned.total == pytest.approx(peaks[case], rel=0.10)


def test_a_shortage_says_what_would_do() -> None:
    training = Training(context=8192, micro_batch_rows=4)
    assert shortage(LLAMA, Sizes(dp=8), training, 300e9) is None
    said = shortage(LLAMA, Sizes(dp=8), training, 80e9)
    assert said is not None and "you have 80.0: use recompute selective" in said
    far = shortage(LLAMA, Sizes(), training, 24e9)
    assert far is not None and "use dp = " in far


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"precision": "bf16"}, 'not "bf16". Did you mean "bfloat16"?'),
        ({"optimizer": "adam"}, 'Did you mean "adamw"?'),
        ({"micro_batch_rows": 0}, "micro_batch_rows must be at least 1"),
    ],
)
def test_wrong_settings_are_told(wrong, said) -> None:
    with pytest.raises(RequestError, match=said.replace("?", r"\?")):
        training_memory(LLAMA, Sizes(), **wrong)


def test_any_layout_with_the_sizes_will_do() -> None:
    from gristmill.train.parallel.layout import Layout

    layout = Layout(dp=4, tp=2, pp=2)
    mine = training_memory(LLAMA, Sizes(dp=4, tp=2, pp=2))
    assert training_memory(LLAMA, layout) == mine
    assert torch.tensor(mine.total).isfinite()
