"""How often a comparison without an effect says "a gain": `python -m benchmarks.comparison_level [--repeats 2000]`

Null experiments of 60 users and three seeds per model. A user's effect, a run's own shift (the seed's variance) and
what a user and a run have in common are normal; the share of intervals that lie above 0 is shown for three ways of
making them: users resampled and seeds averaged, users and seeds both resampled (crossed bootstrap, percentiles), and
`src.core.statistics` (users resampled, seeds by Student's t). Nominal is 2.5 %, allowed 5 %. The last columns are the
shares with a true effect of 3.5 standard errors of the users.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from src.core.statistics import Difference, Resampled, resample_users

WAYS = ("users", "crossed", "users_and_seeds")
CASES = ((0.0, 0.0), (0.0, 1.0), (0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (2.0, 0.0), (2.0, 1.0), (8.0, 0.0))


def paired_difference(
    a: np.ndarray, b: np.ndarray, users: np.ndarray, rng: np.random.Generator, draws: int = 5000
) -> Difference:
    """`Resampled.difference` of b - a.

    Args:
        a, b: [n] per-sample metrics of a model on the same samples, or [m, n] of its m runs.
        users: [n] the user of every sample.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"lengths differ: {a.shape[1]}, {b.shape[1]}")
    found = resample_users(np.concatenate([a, b]), users, rng, draws)
    return found.difference(range(len(a)), range(len(a), len(a) + len(b)))


def null_rate(
    way: str,
    seed_sd: float,
    interaction: float,
    repeats: int,
    draws: int,
    effect: float = 0.0,
    seeds: int = 3,
) -> float:
    """Share of experiments whose interval lies above 0.

    Args:
        way: out of WAYS.
        seed_sd: of a run's own shift, in standard errors of the mean over users.
        interaction: sd of what a user and a run have in common, in sd of the users' effect.
        effect: true difference, in standard errors of the mean over users.
    """
    n_users, above = 60, 0
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, int(100 * seed_sd), int(100 * interaction)])
        unit = 1 / np.sqrt(n_users)
        values = rng.normal(0, seed_sd * unit, (2, seeds, 1)) + rng.normal(
            0, interaction, (2, seeds, n_users)
        )
        values[1] += effect * unit + rng.normal(0, 1, n_users)
        found = resample_users(values.reshape(2 * seeds, n_users), np.arange(n_users), rng, draws)
        above += _low(way, found, seeds, rng) > 0
    return above / repeats


def _low(way: str, found: Resampled, seeds: int, rng: np.random.Generator) -> float:
    if way == "users_and_seeds":
        return found.difference(range(seeds), range(seeds, 2 * seeds)).low
    runs = np.arange(seeds) + np.zeros((len(found.draws), 1), int)
    a, b = (rng.integers(0, seeds, runs.shape) if way == "crossed" else runs for _ in range(2))
    means = [np.take_along_axis(found.draws, columns, axis=1).mean(axis=1) for columns in (a, b + seeds)]
    return float(np.quantile(means[1] - means[0], 0.025))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    arguments = parser.parse_args()
    head = ["seed sd", "user x run sd", *WAYS, *(f"{way}, effect" for way in WAYS)]
    lines = [head, ["---"] * len(head)]
    for seed_sd, interaction in CASES:
        rates = [
            null_rate(way, seed_sd, interaction, arguments.repeats, 300, effect)
            for effect in (0.0, 3.5)
            for way in WAYS
        ]
        lines.append([str(seed_sd), str(interaction), *(f"{rate:.3f}" for rate in rates)])
    sys.stdout.write("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


if __name__ == "__main__":
    main()
