"""The noise: Philox4x32-10 by its published answers, and a function of (seed, position, token) alone."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.engine.philox import child_seed, exponentials, philox


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of Random123's philox4x32-10."""
    ones = 0xFFFFFFFF
    digits = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    for counter, key, expected in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*digits, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        got = philox((np.array([counter[0]]), *counter[1:]), key)[:, 0]
        assert got.tolist() == list(expected)


def one_by_one(seed: int, position: int, id: int) -> float:
    """The definition, in Python's own integers."""
    x, key = [id // 4, position % 2**32, position >> 32, 0], [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [b >> 32 ^ x[1] ^ key[0], b % 2**32, a >> 32 ^ x[3] ^ key[1], a % 2**32]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return float(-np.log((x[id % 4] + 0.5) / 2**32))


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 12, 2**32 + 3])
def test_noise_is_its_definition_for_few_ids_and_for_many(seed: int, position: int) -> None:
    many = exponentials(seed, position, np.arange(999))
    few = np.array([998, 3, 500, 3])
    assert np.array_equal(many[few], exponentials(seed, position, few))
    assert exponentials(seed, position, few).tolist() == [
        one_by_one(seed, position, int(id)) for id in few
    ]


def test_noise_depends_on_seed_position_and_token() -> None:
    ids = np.arange(1000)
    noise = exponentials(7, 12, ids)
    others = [exponentials(*key, ids) for key in ((8, 12), (7, 13), (7 + 2**32, 12), (7, 2**32))]
    assert all(abs(np.corrcoef(noise, other)[0, 1]) < 0.1 for other in others)


def test_noise_is_exponential() -> None:
    """Kolmogorov and Smirnov's statistic of 400,000 numbers, at 1 in 1,000."""
    noise = np.sort(np.concatenate([exponentials(s, 5, np.arange(100_000)) for s in range(4)]))
    steps = np.arange(1, len(noise) + 1) / len(noise)
    assert np.abs(1 - np.exp(-noise) - steps).max() < 1.95 / len(noise) ** 0.5
    assert noise[0] > 0 and np.isfinite(noise[-1])


def test_children_have_seeds_of_their_own() -> None:
    assert child_seed(7, 0) == 7
    seeds = {child_seed(seed, i) for seed in range(50) for i in range(50)}
    assert len(seeds) == 2500 and all(0 <= seed < 2**64 for seed in seeds)
