"""Shipped files build; what is wrong is refused with key and value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.config import determining
from src.core.errors import ConfigError
from src.core.paths import CONF
from src.distill.selection_policy import POLICIES
from tests.distill.conftest import make_settings

META = {"learn_to_reweight": "reweight", "meta_weight_net": "weight_net"}  # these weigh, they select all
SHIPPED = [(g, p.stem) for g in ("distill", "active") for p in sorted((CONF / g).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "name"), SHIPPED, ids=lambda x: x)
def test_shipped_files_build(group: str, name: str) -> None:
    made = make_settings(group, name)
    if group == "distill":
        assert made.name == name
    else:
        assert (made.policy, made.meta) == (("all", META[name]) if name in META else (name, None))
    determining(made)


def test_every_policy_has_a_file() -> None:
    assert {name for group, name in SHIPPED if group == "active"} == set(POLICIES) | set(META)


def test_profiles_differ_where_the_code_is_wrong_and_nowhere_else() -> None:
    corrected, official = (vars(make_settings("distill", n)) for n in ("dllm2rec", "dllm2rec_official"))
    differing = {key for key in corrected if corrected[key] != official[key]}
    fusion = {"own_start", "own_shrinkage", "fuse_output", "untrained_negatives", "ed_weight"}
    tuned = {"lam", "gate_rankings"} | fusion  # on validation; the official profile keeps the code's
    assert differing == tuned | {
        "name",
        "history_candidates",
        "rd_loss",
        "rd_negative",
        "alpha",
        "dro_weighting",
        "confidence_scaling",
        "embedding_scaling",
    }
    published = {"lam": 0.8, "top_k": 10, "beta": 1.0, "beta_pos": 1.0, "ed_weight": 0.2, "alpha": 1.0}
    gammas = {"gamma_position": 0.3, "gamma_confidence": 0.5, "gamma_consistency": 0.1}
    assert {key: official[key] for key in published | gammas} == published | gammas


@pytest.mark.parametrize("key", ["lam", "alpha", "gamma_position", "gamma_confidence", "gamma_consistency"])
@settings(max_examples=20, derandomize=True, deadline=None)
@given(value=st.floats(max_value=-1e-12, allow_nan=False))
def test_negative_weights_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"distill\.{key}: found .*, expected"):
        make_settings("distill", "dllm2rec", **{key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma_position": 0.0, "gamma_confidence": 0.0, "gamma_consistency": 0.0}, "expected one above 0"),
        ({"lam": 0.0, "embedding": "none"}, "something to distil"),
        ({"embedding": "fuse", "ed_weight": 0.0}, "ed_weight: found 0"),
        ({"embedding": "align", "align_weight": 0.0}, "align_weight: found 0"),
        ({"embedding": "both", "offset": False}, "offset: found false"),
        ({"control": "shuffle_rankings", "lam": 0.0}, "rankings to shuffle"),
        ({"control": "both", "embedding": "none"}, "embeddings to permute"),
        ({"rd_loss": "hinge"}, "expected one of bce, ce"),
        ({"top_k": 0}, "top_k: found 0, expected >= 1"),
        ({"confidence_temperature": 0.0}, "expected > 0"),
        ({"gamma": 1.0}, "distill.gamma: unknown key"),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_contradictions_in_distill(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings("distill", "dllm2rec", **changes)
