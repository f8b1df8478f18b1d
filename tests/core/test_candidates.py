"""Candidate sets: what they hold, that they never change, and who picks the target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from src.core.artifacts import sha256_file
from src.core.candidates import (
    CandidateConfig,
    CandidateSampler,
    CandidateSet,
    Choices,
    Written,
    choose_by_scores,
    load_candidates,
    normal_title,
)
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.paths import candidates_dir

CONFIG = CandidateConfig(count=12, draws=3, samples=40, seed=0)


@pytest.fixture
def candidates(demo_data: InteractionData, roots) -> CandidateSet:
    found = load_candidates(CONFIG, demo_data)
    assert found is not None
    return found


def test_sets_hold_the_target_once_and_nothing_of_the_history(candidates, demo_data):
    assert candidates.items.shape == (3, 40, 12) and candidates.items.dtype == np.int32
    assert set(candidates.sample_ids) < set(demo_data.splits["test"])
    assert (np.diff(candidates.sample_ids) > 0).all()
    targets, histories = demo_data.targets(candidates.sample_ids), demo_data.histories(candidates.sample_ids)
    np.testing.assert_array_equal(candidates.targets, targets)
    assert ((candidates.items == targets[None, :, None]).sum(axis=2) == 1).all()
    for draw in candidates.items:
        for shown, history, target in zip(draw, histories, targets, strict=True):
            assert len({normal_title(demo_data.titles[i]) for i in shown}) == 12
            assert not (set(shown.tolist()) - {int(target)}) & set(history.tolist())
    places = (candidates.items == targets[None, :, None]).argmax(axis=2)
    assert len(np.unique(places)) == 12, "the target stands anywhere"
    assert not np.array_equal(np.sort(candidates.items[0]), np.sort(candidates.items[1]))


def test_equal_settings_give_equal_bytes(candidates, demo_data):
    folder = candidates_dir(demo_data.name, demo_data.fingerprint, candidates.fingerprint)
    first = {f.name: sha256_file(f) for f in folder.iterdir()}
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    again = load_candidates(CONFIG, demo_data)
    assert {f.name: sha256_file(f) for f in folder.iterdir()} == first
    np.testing.assert_array_equal(again.items, candidates.items)
    # a set does not depend on how many draws or samples there are besides it
    more = load_candidates(replace(CONFIG, draws=4, samples=None), demo_data)
    np.testing.assert_array_equal(more.sample_ids, demo_data.splits["test"])
    at = np.searchsorted(more.sample_ids, candidates.sample_ids)
    np.testing.assert_array_equal(more.items[:3, at], candidates.items)
    other = load_candidates(replace(CONFIG, seed=1), demo_data)
    assert other.fingerprint != candidates.fingerprint and not np.array_equal(other.items, candidates.items)


def test_titles_that_differ_in_case_or_spacing_do_not_stand_together():
    sampler = CandidateSampler(["", "Alien", "ALIEN ", "Brazil", "Casablanca", "Dune"], 0, "key")
    assert sampler.n_titles == 4
    for sample in range(50):
        shown = sampler.draw(sample, np.array([5]), 1, 3)
        assert sorted(shown.tolist()) == [1, 3, 4]
    with pytest.raises(UserError, match="sample 7: 3 items can be candidates; expected 4; change key"):
        sampler.draw(7, np.array([5]), 1, 4)


def test_a_catalogue_too_small_or_a_changed_file_is_refused(candidates, demo_data):
    with pytest.raises(UserError, match=r"items can be candidates; expected 60.*eval\.candidates"):
        load_candidates(replace(CONFIG, count=60), demo_data)
    file = candidates_dir(demo_data.name, demo_data.fingerprint, candidates.fingerprint) / "candidates.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="does not have the hash of its manifest"):
        load_candidates(CONFIG, demo_data)
    assert load_candidates(None, demo_data) is None


def small() -> CandidateSet:
    """Two samples, two draws of three items; targets 2 and 4."""
    items = np.array([[[1, 2, 3], [4, 5, 1]], [[2, 5, 1], [3, 4, 2]]], np.int32)
    return CandidateSet("f", np.array([10, 20]), items, np.array([2, 4], np.int32))


def test_scores_choose_by_hand():
    #               item 1    2    3    4    5
    scores = np.array([[0.0, 3.0, 2.0, 9.0, 4.0], [5.0, 0.0, 1.0, 5.0, 7.0]])
    # sample 10: {1,2,3} -> 2 wins; {2,5,1} -> 5 wins. sample 20: {4,5,1} -> 5; {3,4,2} -> 4 wins.
    asked = []

    def score(ids: np.ndarray) -> np.ndarray:
        asked.append(ids.tolist())
        return scores[(ids // 10) - 1]

    choices = choose_by_scores(small(), score, 1)
    assert asked == [[10], [20]]
    assert choices.hits.tolist() == [[True, False], [False, True]] and choices.valid.all()
    # a tie is no choice of the target
    scores[1, 3 - 1] = 5.0
    assert choose_by_scores(small(), score, 8).hits.tolist() == [[True, False], [False, False]]
    scores[0, 1] = np.nan
    with pytest.raises(UserError, match="scores of sample 10 are not finite"):
        choose_by_scores(small(), score, 8)


def test_figures_by_hand():
    hits = np.array([[1, 0, 0, 1], [1, 0, 0, 0]], bool)
    valid = np.array([[1, 1, 0, 1], [1, 0, 0, 1]], bool)
    figures = Choices(hits, valid).figures()
    sd = np.std([0.5, 0.25], ddof=1)
    assert figures["HitRatio@1"] == pytest.approx({"mean": 0.375, "sd": sd})
    assert figures["ValidRatio"] == pytest.approx({"mean": 0.625, "sd": sd})  # .75 and .5
    assert figures["HitRatio@1 valid"]["mean"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert Choices(hits[:1], valid[:1]).figures()["HitRatio@1"] == {"mean": 0.5}
    assert "HitRatio@1 valid" not in Choices(hits * False, valid * False).figures()
    assert [Written(1, "", "x", c, "A").verdict for c in (None, "B", "A")] == ["invalid", "wrong", "right"]
