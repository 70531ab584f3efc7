"""Which layers a config means, against `peft`'s own matching; and configs that make no sense."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.adapters import LoraConfig, adapters_of, add_lora
from gristmill.adapters.resident import linears_of
from gristmill.errors import RequestError
from tests.adapters.pairs import make_pair

NAMES = [
    f"model.layers.{layer}.{module}"
    for layer in (0, 1, 10)
    for module in (
        *(f"self_attn.{x}_proj" for x in "qkvo"),
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        "mlp.experts.1.up_proj",
    )
]
LISTED = ["q_proj", "proj", "up_proj", "mlp.up_proj", "1.up_proj", NAMES[0], "0.self_attn.q_proj"]
EXPRESSIONS = [r".*\.1\..*", r".*_proj", "q_proj", r"model\.layers\.(0|10)\.mlp\.(up|down)_proj"]
KEYS = [*LISTED, r"layers\.1\..*", r".*\.10\..*v_proj", "(up|down)_proj", "self_attn"]
lists = st.lists(st.sampled_from(LISTED), min_size=1, max_size=3, unique=True)


@settings(deadline=None, max_examples=200)  # the first example imports peft
@given(
    target=lists | st.sampled_from(EXPRESSIONS),
    exclude=st.just(()) | lists | st.sampled_from(EXPRESSIONS),
    layers=st.just("all") | st.lists(st.sampled_from([0, 1, 2, 10]), min_size=1, unique=True),
    ranks=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 64), max_size=4),
    alphas=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 64), max_size=4),
    rslora=st.booleans(),
)
def test_patterns_mean_what_they_mean_to_peft(target, exclude, layers, ranks, alphas, rslora):
    from peft import LoraConfig as Theirs
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    if isinstance(target, str):
        layers = "all"
    ours = LoraConfig(
        rank=8,
        alpha=16,
        rslora=rslora,
        target_modules=target,
        exclude_modules=exclude,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        layers_to_transform=layers,
    )
    theirs = Theirs(
        target_modules=target,
        exclude_modules=exclude or None,
        layers_to_transform=None if layers == "all" else layers,
    )
    for name in NAMES:
        found = check_target_module_exists(theirs, name)
        meant = bool(found) and type(found).__name__ != "_ExcludedModule"
        assert ours.targets(name) == meant, name
        rank = ranks.get(get_pattern_key(ranks, name), 8)
        alpha = alphas.get(get_pattern_key(alphas, name), 16)
        assert ours.rank_of(name) == rank, name
        assert ours.scale_of(name) == pytest.approx(alpha / (math.sqrt(rank) if rslora else rank))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (dict(rank=0), "rank must be a whole number from 1, not 0"),
        (dict(rank=2.5), "rank must be a whole number from 1, not 2.5"),
        (dict(rank=True), "not True"),
        (dict(rank_pattern={"q_proj": 0}), r"rank_pattern\['q_proj'\] must be a whole number"),
        (dict(alpha=0), "alpha must be a number above 0, not 0"),
        (dict(alpha=math.nan), "alpha must be a number above 0, not nan"),
        (dict(alpha_pattern={"q_proj": "8"}), r"alpha_pattern\['q_proj'\] must be a number"),
        (dict(dropout=1.0), "dropout must be from 0 to below 1, not 1.0"),
        (dict(target_modules=[]), "target_modules names no module"),
        (dict(target_modules="(q"), r"'\(q' is not a regular expression: missing \)"),
        (dict(rank_pattern={"(q": 2}), r"'\(q' is not a regular expression"),
        (
            dict(target_modules=".*q_proj", layers_to_transform=[1]),
            "layers_to_transform does not go with a regular expression",
        ),
    ],
)
def test_values_that_make_no_sense(values, says):
    with pytest.raises(RequestError, match=says):
        LoraConfig(**values)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (dict(target_modules=["q_prj"]), "'q_prj' is no linear layer.*Did you mean \"q_proj\""),
        (dict(target_modules=["q_proj", "v_poj"]), "'v_poj' is no linear layer"),
        (dict(target_modules="q_proj"), "target_modules 'q_proj' is no linear layer"),
        (dict(target_modules=["embed_tokens"]), "'embed_tokens' is no linear layer"),
        (dict(target_modules=["lm_head"]), "'lm_head' is no linear layer"),
        (dict(target_modules=["mlp"]), "'mlp' is no linear layer"),
        (dict(target_modules=r".*\.1\..*"), r"also means model.layers.1.self_attn, which is no"),
        (dict(exclude_modules=["qproj"]), "exclude_modules 'qproj' is no linear layer"),
        (dict(rank_pattern={"qproj": 2}), "the pattern 'qproj' is no linear layer"),
        (dict(target_modules=["q_proj"], exclude_modules=["q_proj"]), "is no layer of this model"),
        (dict(layers_to_transform=[7]), "is no layer of this model"),
    ],
)
def test_patterns_that_mean_nothing(values, says):
    network, _ = make_pair("llama")  # with a head of its own
    before = list(network.state_dict())
    with pytest.raises(RequestError, match=says):
        add_lora(network, LoraConfig(**values))
    assert list(network.state_dict()) == before and not adapters_of(network)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_all_linear_is_all_that_peft_means(pair):
    from peft import LoraConfig as Theirs
    from peft import get_peft_model

    ours, theirs = pair
    made = get_peft_model(theirs, Theirs(r=2, target_modules="all-linear"))
    expected = {name.removeprefix("base_model.model.") for name in made.targeted_module_names}
    assert set(linears_of(ours)) == expected and len(expected) == 14
