"""The generated dataset: deterministic, and what its documentation promises."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest

from src.core.data_utils import load_dataset
from src.core.datasets import demo


def test_default_size(roots, dataset_config):
    data = load_dataset(dataset_config("demo"))
    users = len(data.offsets) - 1
    assert users == 600
    assert 900 <= data.n_items <= 1000
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


@pytest.mark.parametrize(
    "name, overrides, expected",
    [
        ("demo_study", (), "c4e113b30b6a9833"),
        (
            "demo",
            ("items=360", "zipf=0.8", "late_share=0.08", "mood_weight=4", "names=0"),
            "1159cb4da58ac9d2",
        ),
    ],
)
def test_logs_without_names_are_those_of_earlier_measurements(dataset_config, name, overrides, expected):
    """Documented figures of demo_study, and those of the demo before titles had names, stay reproducible."""
    log = demo.read(None, dataset_config(name, *(f"dataset.demo.{o}" for o in overrides)))
    found = hashlib.sha256()
    for values in (log.users.codes, log.items.codes, log.timestamps):
        found.update(np.asarray(values).astype(np.int64).tobytes())
    found.update("\n".join(log.titles.astype(str)).encode())
    assert found.hexdigest()[:16] == expected


def test_plain_titles_show_the_groups(dataset_config):
    """Every title is a mood, an adjective and a noun of one theme; words of a theme name its group."""
    config = dataset_config("demo", "dataset.demo.names=0", "dataset.demo.items=360")
    group, mood, titles = demo._items(config.demo)
    assert len(titles) == 360 and len(set(titles)) >= 340
    for g, m, title in zip(group, mood, titles, strict=True):
        adjectives, nouns = (words.split() for words in demo._THEMES[g].split(";"))
        words = title.split()
        assert words[0] == demo._MOODS[m] and words[1] in adjectives and words[2] in nouns
    sizes = np.bincount(group)
    assert len(sizes) == 12 and sizes.max() - sizes.min() <= 1


def test_named_titles_hide_the_groups_from_whoever_counts_words(dataset_config):
    """A synonym of the mood and a name of the theme in every title; a frequent word of the theme in about a third."""
    group, mood, titles = demo._items(dataset_config("demo").demo)
    assert len(set(titles)) == len(titles) == 1000
    frequent = 0
    for g, m, title in zip(group, mood, titles, strict=True):
        synonym, *nouns, name = title.removesuffix(" 2").split()
        assert synonym in demo._SYNONYMS[m].split() and name in demo.names(g)
        assert len(nouns) <= 1 and set(nouns) <= set(demo._THEMES[g].split(";")[1].split())
        frequent += len(nouns)
    assert 0.3 < frequent / len(titles) < 0.4
    seen = Counter(title.removesuffix(" 2").split()[-1] for title in titles)
    assert max(seen.values()) == 1 or sum(n == 1 for n in seen.values()) > 0.9 * len(seen)


def test_names_belong_to_one_theme():
    made = [name for g in range(demo.MAX_GROUPS) for name in demo.names(g)]
    common = {w for words in demo._THEMES for w in words.replace(";", " ").split()}
    assert len(set(made)) == len(made) == demo.MAX_GROUPS * demo.MAX_NAMES
    assert not common.intersection(made)


def test_sentences_pair_words_of_one_topic(dataset_config):
    """What is said of words is true of the vocabulary; no title is read out, and nothing but known words is spoken of."""
    group, _, titles = demo._items(dataset_config("demo").demo)
    known = {word for title in titles for word in title.split()}
    texts = demo.sentences(known, 500, np.random.default_rng(1))
    topics = [(set(common), set(rare)) for common, rare in demo.topics()]
    spoken = set()
    for text in texts:
        words = [w for w in text.replace(".", "").split() if w[0].isupper()]
        pairs = list(zip(words[::2], words[1::2], strict=True))
        assert len(pairs) == 6
        assert any(all(a in rare and b in common for a, b in pairs) for common, rare in topics)
        assert all(a in known for a, _ in pairs)
        assert not any(title in text for title in titles)
        spoken.update(a for a, _ in pairs)
    assert len(spoken) > 0.8 * len({t.split()[-1] for t in titles})
    assert demo.sentences({"Star", "Wars"}, 5, np.random.default_rng(1)) == []


def test_most_items_have_few_training_targets_and_some_are_new(roots, dataset_config):
    data = load_dataset(dataset_config("demo"))
    counts = data.train_counts()
    assert 0.3 < (counts[1:] < 5).mean() < 0.7
    later = np.concatenate([data.targets(data.splits[s]) for s in ("valid", "test")])
    assert (counts[later] == 0).sum() >= 50 and (counts[later] < 5).mean() > 0.2


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
