"""The generated dataset: deterministic, and what its documentation promises."""

from __future__ import annotations

import numpy as np

from src.core.data_utils import load_dataset
from src.core.datasets import demo


def test_default_size(roots, dataset_config):
    data = load_dataset(dataset_config("demo"))
    users = len(data.offsets) - 1
    assert users == 600
    assert 340 <= data.n_items <= 360
    assert 13 <= len(data.items) / users <= 17
    assert min(len(ids) for ids in data.splits.values()) > 500


def test_same_seed_same_log_and_other_seed_other_log(dataset_config):
    first, again = (demo.read(None, dataset_config("demo")) for _ in range(2))
    other = demo.read(None, dataset_config("demo", "dataset.demo.seed=8"))
    assert np.array_equal(first.items.codes, again.items.codes)
    assert np.array_equal(first.users.codes, again.users.codes)
    assert np.array_equal(first.timestamps, again.timestamps)
    assert first.titles.equals(again.titles)
    assert not first.titles.equals(other.titles)


def test_small_fixture(demo_data):
    assert demo_data.n_items <= 60
    assert all(len(ids) for ids in demo_data.splits.values())


def test_titles_show_the_groups(dataset_config):
    """Every title is a mood, an adjective and a noun of one theme; words of a theme name its group."""
    config = dataset_config("demo")
    group, mood, titles = demo._items(config.demo)
    assert len(titles) == 360 and len(set(titles)) >= 340
    for g, m, title in zip(group, mood, titles, strict=True):
        adjectives, nouns = (words.split() for words in demo._THEMES[g].split(";"))
        words = title.split()
        assert words[0] == demo._MOODS[m] and words[1] in adjectives and words[2] in nouns
    sizes = np.bincount(group)
    assert len(sizes) == 12 and sizes.max() - sizes.min() <= 1


def test_popularity_is_skewed_and_some_items_are_rare(roots, dataset_config):
    data = load_dataset(dataset_config("demo"))
    counts = np.sort(np.bincount(data.items, minlength=data.n_items + 1)[1:])[::-1]
    assert counts[: len(counts) // 10].sum() > 0.3 * counts.sum()
    assert (data.train_counts()[1:] <= 2).sum() >= 15


def test_next_group_follows_the_recent_group(roots, dataset_config):
    """The claim that makes the data worth distilling: the group of the last item says much about the
    next one, the item itself little more than its group."""
    config = dataset_config("demo")
    data = load_dataset(config)
    group = np.concatenate([[-1], demo._items(config.demo)[0][[int(i) - 1 for i in data.raw_items[1:]]]])
    train, test = data.splits["train"], data.splits["test"]
    counts = data.train_counts()

    def hits(weights):
        """Hit ratio at 10 of ranking by `weights` [n, N+1]."""
        top = np.argsort(-weights, axis=1, kind="stable")[:, :10]
        return (top == data.targets(test)[:, None]).any(axis=1).mean()

    moves = np.zeros((12, 12))
    np.add.at(moves, (group[data.histories(train)[:, -1]], group[data.targets(train)]), 1)
    moves /= moves.sum(axis=1, keepdims=True)
    assert moves.diagonal().mean() > 0.45 and np.sort(moves, axis=1)[:, -3:].sum(axis=1).mean() > 0.75
    share = counts / np.array([counts[group == g].sum() if g >= 0 else 1 for g in group])
    by_group = moves[group[data.histories(test)[:, -1]]][:, group] * share
    popular = np.broadcast_to(counts.astype(float), (len(test), data.n_items + 1))
    assert hits(by_group) > 2.0 * hits(popular)
