"""Generated logs whose item groups can be read in the titles (the offline default dataset), and what is known of words.

Ids are hard to learn from them (few interactions per item), text is not, so that a model that reads
titles has something to teach one that does not. The process, all from `dataset.demo.seed`:

- Items belong to groups (a theme) and to moods, which all groups share. Popularity within a group is Zipf.
- A title is "Mood Adjective Noun" in its theme's few words (`names: 0`), or the mood by one of its synonyms and a
  name of the theme; `named_share` of the titles show a noun as well. Names are invented and rare: counting the words
  of the titles says little about them, having read about them (`sentences`) says what they have in common.
- A user has a current group and a mood. Each step keeps the group, moves to one of its two
  successors (a sparse transition between groups), or anywhere; the mood drifts slowly.
- The next item is drawn from the current group by popularity times a preference for the user's
  mood, without repeats.
- A share of the items is released late: they are rare in training and cold for many users.
- Users arrive through the first ten months of a year; gaps between interactions are exponential.

What words mean is the same for every dataset and seed, and nothing of it comes from a log: `sentences` is a function
of the vocabulary alone.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.core.datasets.config import DatasetConfig, DemoConfig
from src.core.seed import numpy_stream

if TYPE_CHECKING:
    from src.core.datasets.raw_log import RawLog

# One line per theme: adjectives; nouns. Neighbours share a word or two on purpose.
_THEMES = """
Stellar Orbital Lunar Cosmic Galactic;Comet Rocket Nebula Planet Voyage Signal Station Star Engine
Sunken Tidal Salty Coastal Deep;Harbor Lighthouse Whale Anchor Voyage Reef Captain Island Storm
Haunted Cursed Ghostly Hollow Pale;Manor Crypt Specter Lantern Graveyard Curse Raven Cellar Storm
Royal Noble Gallant Ancient Crowned;Knight Castle Throne Sword Queen Dragon Banner Raven Oath
Tender Blushing Beloved Secret Sweet;Kiss Letter Wedding Rose Heart Garden Sweetheart Promise Oath
Frozen Alpine Snowy Northern Icy;Glacier Summit Wolf Avalanche Cabin Sled Ridge Storm Expedition
Criminal Crooked Smoking Corrupt Wanted;Detective Alibi Heist Witness Evidence Gangster Safe Case Letter
Dusty Western Lonesome Prairie Outlaw;Saddle Sheriff Canyon Ranch Cowboy Revolver Trail Horse Wolf
Digital Neon Electric Virtual Binary;Hacker Android Network Circuit Machine Code Robot Signal Engine
Tropical Wild Jungle Verdant Untamed;Tiger River Temple Parrot Vine Expedition Monkey Waterfall Island
Culinary Savory Spicy Golden Roasted;Kitchen Chef Recipe Banquet Pepper Bakery Feast Tavern Garden
Athletic Winning Olympic Tireless Champion;Stadium Coach Marathon Trophy Boxer Racer Goal Referee Heart
Musical Melodic Jazzy Lyrical Acoustic;Piano Singer Ballad Orchestra Drummer Chorus Violin Encore Rose
Military Armored Fallen Brave Marching;Soldier Battalion Trench Bunker Admiral Siege Medal Sword Banner
Mystic Arcane Enchanted Spellbound Magical;Wizard Potion Sorcerer Rune Familiar Dragon Tome Crystal Temple
Political Diplomatic Loyal Treacherous Public;Senator Election Ballot Scandal Treaty Embassy Speech Case Throne
""".strip().splitlines()
_MOODS = ["Bright", "Dark", "Quiet", "Furious", "Strange", "Gentle"]
_SYNONYMS = """
Bright Radiant Sunny Gleaming Luminous Dazzling Shining Vivid
Dark Gloomy Shadowy Murky Dim Somber Dusky Sinister
Quiet Silent Hushed Calm Still Serene Peaceful Muted
Furious Raging Fierce Wrathful Stormy Enraged Savage Violent
Strange Odd Peculiar Weird Uncanny Curious Bizarre Eerie
Gentle Soft Mild Kindly Tame Delicate Soothing Warm
""".strip().splitlines()
_SENTENCES = ("{} and {}.", "{} is near {}.", "{} as well as {}.", "{} with {}.")
MAX_GROUPS, MAX_NAMES = len(_THEMES), 100

_STAY, _SUCCESSOR, _MOOD_DRIFT = 0.55, 0.21, 0.05
_YEAR_START, _DAY = 1_577_836_800, 86_400


def files(raw_dir: Path, config: DatasetConfig) -> list[Path]:
    """None: the settings alone determine the log."""
    return []


def read(raw_dir: Path, config: DatasetConfig) -> RawLog:
    from src.core.datasets.raw_log import RawLog, encode, title_series

    assert config.demo is not None  # DatasetConfig.problems
    demo = config.demo
    group, mood, titles = _items(demo)
    users, items, times = _walks(demo, group, mood)
    order = np.lexsort((users, times))
    return RawLog(
        users=encode(users[order] + 1),
        items=encode(items[order] + 1),
        timestamps=times[order],
        ratings=None,
        titles=title_series(range(1, demo.items + 1), titles, Path("generated")),
        path=Path("generated"),
    )


@cache
def names(theme: int) -> list[str]:
    """The invented names that belong to a theme, `MAX_NAMES` of them, the same whatever the dataset."""
    first, middle, last = "BCDFGKLMNPRSTVZ", "lnrsvmdkt", ("zo", "nth", "vu", "rix", "lda")
    made = [f"{a}{e}{b}{o}{c}" for a in first for e in "aeiou" for b in middle for o in "aeiou" for c in last]
    order = numpy_stream(0, "demo", "names").permutation(len(made))
    return [made[i] for i in order[theme * MAX_NAMES : (theme + 1) * MAX_NAMES]]


def topics() -> list[tuple[list[str], list[str]]]:
    """Words that mean alike: the common ones of every theme and its names, a mood and its synonyms."""
    themes = [(words.replace(";", " ").split(), names(g)) for g, words in enumerate(_THEMES)]
    return [*themes, *((line.split(), line.split()) for line in _SYNONYMS)]


def sentences(known: Collection[str], count: int, rng: np.random.Generator) -> list[str]:
    """Texts about words, each of three sentences on one topic: what an encyclopedia holds, of users and items nothing.

    Args:
        known: names and synonyms that may be spoken of; a topic without any is not. Without a name: no texts.
        count: texts.
    """
    if not any(name in known for theme in range(MAX_GROUPS) for name in names(theme)):
        return []
    spoken = [(common, own) for common, rare in topics() if (own := [w for w in rare if w in known])]
    texts, share = [], np.array([len(rare) for _, rare in spoken])
    for topic in rng.choice(len(spoken), count, p=share / share.sum()):
        common, rare = spoken[topic]
        pairs = [f"{a} {b}" for a, b in zip(rng.choice(rare, 6), rng.choice(common, 6), strict=True)]
        forms = rng.choice(_SENTENCES, 3)
        texts.append(" ".join(f.format(*pairs[2 * i : 2 * i + 2]) for i, f in enumerate(forms)))
    return texts


def _items(demo: DemoConfig) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Group [N] and mood [N] of every item, and its title."""
    rng = numpy_stream(demo.seed, "demo", "items")
    group = rng.permutation(np.arange(demo.items) % demo.groups)
    mood = rng.integers(len(_MOODS), size=demo.items)
    titles = _named_titles(demo, group, mood, rng) if demo.names else _plain_titles(group, mood, rng)
    return group, mood, titles


def _plain_titles(group: np.ndarray, mood: np.ndarray, rng: np.random.Generator) -> list[str]:
    """ "Mood Adjective Noun" """
    titles: list[str] = []
    unused: dict[tuple[int, int], list[str]] = {}
    part: dict[tuple[int, int], int] = {}
    for key in zip(group.tolist(), mood.tolist(), strict=True):
        if not unused.get(key):
            adjectives, nouns = (words.split() for words in _THEMES[key[0]].split(";"))
            pairs = [f"{adjective} {noun}" for adjective in adjectives for noun in nouns]
            unused[key] = [pairs[i] for i in rng.permutation(len(pairs))]
            part[key] = part.get(key, 0) + 1
        sequel = f" {part[key]}" if part[key] > 1 else ""  # all pairs of words are taken: "Alien 2"
        titles.append(f"{_MOODS[key[1]]} {unused[key].pop()}{sequel}")
    return titles


def _named_titles(
    demo: DemoConfig, group: np.ndarray, mood: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """ "Synonym Name" or "Synonym Noun Name"; a name is used again, as "Name 2", once all of the theme's are taken."""
    titles, used = [""] * demo.items, np.zeros(demo.groups, int)
    order = [rng.permutation(names(g)[: demo.names]) for g in range(demo.groups)]
    nouns = [line.split(";")[1].split() for line in _THEMES]
    for i, (g, m) in enumerate(zip(group.tolist(), mood.tolist(), strict=True)):
        part, at = divmod(used[g], demo.names)
        used[g] += 1
        words = [str(rng.choice(_SYNONYMS[m].split()))]
        if rng.random() < demo.named_share:
            words.append(str(rng.choice(nouns[g])))
        titles[i] = " ".join([*words, order[g][at], *([str(part + 1)] if part else [])])
    return titles


def _walks(
    demo: DemoConfig, group: np.ndarray, mood: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All users' interactions (users, items from 0, seconds), one step of all users at a time."""
    rng = numpy_stream(demo.seed, "demo", "users")
    # Members of each group, padded with -1; rank in a random order gives the popularity.
    size = -(-demo.items // demo.groups)
    members = np.full((demo.groups, size), -1)
    for g in range(demo.groups):
        items = rng.permutation(np.flatnonzero(group == g))
        members[g, : len(items)] = items
    log_weight = np.broadcast_to(-demo.zipf * np.log(np.arange(1, size + 1)), members.shape)
    late = rng.random(demo.items) < demo.late_share
    released = np.where(late, rng.uniform(0.6, 0.95, demo.items) * 365 * _DAY, 0.0)
    successors = np.stack([rng.permutation(demo.groups)[:2] for _ in range(demo.groups)])

    lengths = 4 + rng.geometric(1 / max(demo.interactions_per_user - 3, 1), demo.users) - 1
    lengths = np.minimum(lengths, min(5 * demo.interactions_per_user, demo.items // 2))
    now = rng.uniform(0, 300 * _DAY, demo.users)
    taste = rng.integers(demo.groups, size=demo.users)
    user_mood = rng.integers(len(_MOODS), size=demo.users)
    seen = np.zeros((demo.users, demo.items + 1), dtype=bool)
    seen[:, -1] = True  # the padding of `members`

    out = []
    for step in range(lengths.max()):
        u = np.flatnonzero(lengths > step)
        n = len(u)
        if step:
            roll, second = rng.random(n), rng.integers(2, size=n)
            taste[u] = np.where(roll < _STAY, taste[u], successors[taste[u], second])
            jump = roll >= _STAY + 2 * _SUCCESSOR
            taste[u[jump]] = rng.integers(demo.groups, size=jump.sum())
            drift = rng.random(n) < _MOOD_DRIFT
            user_mood[u[drift]] = rng.integers(len(_MOODS), size=drift.sum())
        now[u] += rng.exponential(1.5 * _DAY, n)
        candidates = members[taste[u]]
        score = log_weight[taste[u]] + rng.gumbel(size=candidates.shape)  # Gumbel-max: a weighted draw
        score += np.log(demo.mood_weight) * (mood[candidates] == user_mood[u, None])
        open_ = ~seen[u[:, None], candidates] & (released[candidates] <= now[u, None])
        score[~open_] = -np.inf
        best = score.argmax(axis=1)
        # A user who has seen a whole group skips this step.
        drawn = open_[np.arange(n), best]
        item = candidates[np.arange(n), best][drawn]
        seen[u[drawn], item] = True
        out.append((u[drawn], item, (_YEAR_START + now[u[drawn]]).astype(np.int64)))
    users, items, times = (np.concatenate(part) for part in zip(*out, strict=True))
    return users, items, times
