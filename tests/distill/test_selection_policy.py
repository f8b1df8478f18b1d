"""Selections: exact counts, determinism, mixing, artifacts, and what is refused. The strategies: test_strategies.py."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.config import build_or_raise, config_group, setting
from src.core.errors import ConfigError, UserError
from src.core.paths import CONF, ROOT
from src.core.selection import Selection
from src.distill.config import ActiveConfig
from src.distill.selection import read_selection, selection_fingerprint, write_selection
from src.distill.selection_policy import POLICIES, ScoredPolicy, register
from src.distill.strategies import active_problems, make_policy
from tests.compose import composed
from tests.distill.selecting import active, context

OFFLINE = [name for name, policy in POLICIES.items() if not policy.online]


def test_every_strategy_has_its_file() -> None:
    files = {f.stem for f in (CONF / "active").glob("*.yaml")}
    assert files == {*POLICIES, "learn_to_reweight", "meta_weight_net"}
    for name in POLICIES:
        assert active_problems(active(name, refresh_every=2 if POLICIES[name].online else None)) == []


@pytest.mark.parametrize("policy", OFFLINE)
@settings(max_examples=4, derandomize=True, deadline=None)
@given(n=st.integers(3, 90), share=st.floats(0.001, 1.0), weighted=st.booleans(), ratio=st.floats(0, 1))
def test_exact_counts_and_unit_mean_weights(
    policy: str, n: int, share: float, weighted: bool, ratio: float
) -> None:
    weighted = weighted and policy not in ("all", "random")
    config = active(policy, weighted=weighted, ratio=ratio)
    config = config if policy == "all" else replace(config, share=share, count=None)
    ctx = context(n)
    found = make_policy(config, ctx).select(0)
    expected = n if policy == "all" else int(np.floor(share * n + 0.5))
    assert len(found.sample_ids) == len(found.weights) == expected
    assert (np.diff(found.sample_ids) > 0).all() and np.isin(found.sample_ids, ctx.sample_ids).all()
    assert found.weights.dtype == np.float32 and (found.weights > 0).all()
    assert not expected or found.weights.mean() == pytest.approx(1.0, abs=1e-5)
    if not weighted:
        assert (found.weights == 1).all()


@pytest.mark.parametrize("policy", OFFLINE)
def test_same_seed_same_selection(policy: str) -> None:
    one, two = (make_policy(active(policy), context()).select(0) for _ in range(2))
    assert np.array_equal(one.sample_ids, two.sample_ids) and np.array_equal(one.weights, two.weights)


def test_seeds_and_refreshes_differ_where_chance_decides() -> None:
    config = active("random", refresh_every=2)
    policy = make_policy(config, context())
    draws = [policy.select(e).sample_ids for e in (0, 2)]
    draws.append(make_policy(config, context(seed=2)).select(0).sample_ids)
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    assert [policy.due(e) for e in range(5)] == [True, False, True, False, True]
    once = make_policy(active("random"), context())
    assert [once.due(e) for e in range(3)] == [True, False, False]


def test_count_0_selects_nothing() -> None:
    found = make_policy(active("loss", count=0), context()).select(0)
    assert len(found.sample_ids) == len(found.weights) == 0


def test_ratio_mixes_the_best_of_the_strategy_with_a_random_rest() -> None:
    """The scorer's loss rises with the sample id: 30 of 40 are the last ones, 10 are drawn from the others."""
    ctx = context(200)
    found = make_policy(active("loss", ratio=0.75), ctx).select(0).sample_ids
    assert np.isin(ctx.sample_ids[-30:], found).all()
    drawn = found[~np.isin(found, ctx.sample_ids[-30:])]
    assert len(drawn) == 10 and drawn.min() < ctx.sample_ids[100]
    other = make_policy(active("loss", ratio=0.75), context(200, seed=2)).select(0).sample_ids
    assert not np.array_equal(found, other)


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "all"])
def test_more_than_there_are_is_refused_with_both_numbers(policy: str) -> None:
    with pytest.raises(UserError, match="active.count=201; expected <= 200 samples"):
        refreshed = {"refresh_every": 5} if POLICIES[policy].online else {}
        make_policy(active(policy, count=201, **refreshed), context(200))


@pytest.mark.parametrize("policy", [name for name in OFFLINE if POLICIES[name].needs])
def test_a_strategy_without_what_it_looks_at_is_refused(policy: str) -> None:
    bare = replace(context(), teacher=None, scorer=None)
    with pytest.raises(UserError, match=f"active.policy={policy} without"):
        make_policy(active(policy), bare).select(0)


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        ("random", {"share": 0.5}, "active.share, active.count: found share and count, expected exactly one"),
        ("random", {"count": None}, "found neither, expected exactly one of share, count"),
        ("all", {"count": 3}, "found count, expected neither share nor count"),
        ("coverage", {"refresh_every": 2}, "active.refresh_every: found 2, expected null: coverage never changes"),
        ("forgetting", {}, "active.refresh_every: found null, expected a number of epochs"),
        ("loss", {"refresh_every": 2, "use": ("export", "distill")}, "found 2 with use=\\['export', 'distill'\\]"),
        ("teacher_confidence", {"use": ("export",)}, "active.use: found \\['export'\\], expected \\[distill\\]"),
        ("popularity_inverse", {"options": {"power": -1.0}}, "active.options.power: found -1.0, expected >= 0"),
        ("popularity_inverse", {"options": {"power": 1.0, "pwr": 1}}, "active.options.pwr: unknown key"),
        ("combined", {"options": {"mode": "union"}}, "active.options.first: missing"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(policy: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        active(policy, **changes)


def test_an_unknown_strategy_is_named() -> None:
    (problem,) = active_problems(replace(active("random"), policy="bagde"))
    assert "found 'bagde', expected one of all, badge" in problem and "did you mean" in problem


def test_the_parts_of_a_combination_are_checked() -> None:
    options = {"mode": "stack", "first": "forgetting", "second": "combined", "first_options": {}}
    with pytest.raises(ConfigError, match="first: found 'forgetting'.*second: found 'combined'"):
        active("combined", options={**options, "second_options": {}, "share": 0.5, "narrow": 2.0})


def test_artifact_round_trip_and_refusals(tmp_path: Path) -> None:
    train = np.arange(100)
    selection = Selection(np.array([3, 5, 8]), np.array([0.5, 1.0, 1.5], np.float32))
    fields = {"dataset_fingerprint": "abc", "policy": "random"}
    write_selection(tmp_path / "good", selection, fields)
    read = read_selection(tmp_path / "good", "abc", train)
    assert np.array_equal(read.sample_ids, [3, 5, 8]) and np.array_equal(read.weights, selection.weights)
    assert read.provenance["policy"] == "random"
    with pytest.raises(UserError, match="dataset_fingerprint is 'abc'; expected 'xyz'"):
        read_selection(tmp_path / "good", "xyz", train)
    with pytest.raises(UserError, match="sample 8 is no training sample"):
        read_selection(tmp_path / "good", "abc", np.arange(8))
    for name, ids, weights, message in (
        ("twice", [3, 3], [1, 1], "not rising"),
        ("zero", [3, 4], [2, 0], "finite weights > 0"),
        ("negative", [3, 4], [3, -1], "finite weights > 0"),
        ("nan", [3, 4], [1, np.nan], "finite weights > 0"),
    ):
        write_selection(tmp_path / name, Selection(np.array(ids), np.array(weights, np.float32)), fields)
        with pytest.raises(UserError, match=message):
            read_selection(tmp_path / name, "abc", train)
    (tmp_path / "good" / "sample_ids.npy").write_bytes(b"changed")
    with pytest.raises(UserError, match="does not have the hash"):
        read_selection(tmp_path / "good", "abc", train)


def test_fingerprint_follows_settings_seed_and_sources() -> None:
    base = selection_fingerprint(active("random"), "abc", 1)
    assert base == selection_fingerprint(active("random"), "abc", 1)
    others = {
        selection_fingerprint(active("random", count=41), "abc", 1),
        selection_fingerprint(active("random", ratio=0.5), "abc", 1),
        selection_fingerprint(active("random"), "abd", 1),
        selection_fingerprint(active("random"), "abc", 2),
        selection_fingerprint(active("random"), "abc", 1, {"student": "f"}),
    }
    assert len(others | {base}) == 6


def test_a_new_strategy_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worked example of docs/specification/09_selection.md, as it stands there."""
    text = (ROOT / "docs/specification/09_selection.md").read_text()
    (code,), (values,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "yaml"))
    monkeypatch.setitem(POLICIES, "recent", None)  # what the code registers is taken away again
    scope = {"np": np, "register": register, "ScoredPolicy": ScoredPolicy, "setting": setting}
    exec(code, {**scope, "config_group": config_group, "__name__": __name__})
    given = yaml.safe_load(values)
    assert given.pop("defaults") == ["all", "_self_"]
    config = build_or_raise(ActiveConfig, composed("active", "active=all") | given, "active")
    assert active_problems(config) == []
    assert make_policy(config, context(50)).select(0).sample_ids.tolist() == [5 * i for i in range(26, 51)]
    config = replace(config, count=7, share=None, options={"skip": 2})
    assert make_policy(config, context(50)).select(0).sample_ids.tolist() == [5 * i for i in range(42, 49)]
    wrong = active_problems(replace(config, options={"skip": -1, "skp": 3}, refresh_every=2))
    assert len(wrong) == 3 and "options.skp: unknown key" in " ".join(wrong)
