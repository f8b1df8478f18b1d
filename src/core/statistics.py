"""Paired differences between two models, with intervals that cover the variance of users and of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_TABLE = int(1e6)  # numbers in one table of a chunk of draws: it stays in the cache
_ROUNDING = 1e-12  # two means nearer than this are equal


@dataclass(frozen=True)
class Difference:
    """Mean paired difference b - a with its interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Resampled:
    """Means of C runs over the samples, as measured and under a bootstrap over users.

    Attributes:
        means: [C].
        draws: [draws, C]; one draw holds the same users in every column.
        n_users: users drawn from.
    """

    means: np.ndarray
    draws: np.ndarray
    n_users: int

    def difference(self, a: Sequence[int], b: Sequence[int], level: float = 0.95) -> Difference:
        """Mean of the runs `b` minus mean of the runs `a` (columns; one run per seed and model).

        Three independent variances add up: that of users (of the bootstrap), and for each model that of its seeds
        (of its runs' means, less the part that the users explain: crossed random effects). The interval is
        Student's, with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946; taken before that part is
        subtracted, so that they are never fewer than those of the seeds): three seeds count as three. Resampling
        the seeds as well would be too narrow, as it sees two thirds of the variance of three and takes it as known
        (benchmarks/comparison_level.py). A model with one run has no variance of seeds: the interval is about that
        run.
        """
        from scipy.stats import t as student_t

        mean = float(self.means[b].mean() - self.means[a].mean())
        if self.n_users < 2:
            return Difference(mean, -np.inf, np.inf, 1.0)
        around = self.draws[:, b].mean(axis=1) - self.draws[:, a].mean(axis=1)
        of_users = self._variance(around)
        df_users = 1.0 / (1.0 / (self.n_users - 1) + 1.0 / (len(self.draws) - 1))
        variance, whole, spread = of_users, of_users, of_users**2 / df_users
        for runs in (a, b):
            if (m := len(runs)) > 1:
                of_seeds = self.means[runs].var(ddof=1) / m
                deviations = self.draws[:, runs] - self.draws[:, runs].mean(axis=1, keepdims=True)
                by_users = self._variance(deviations).sum() / (m - 1) / m
                variance += max(of_seeds - by_users, 0.0)
                whole, spread = whole + of_seeds, spread + of_seeds**2 / (m - 1)
        if variance < _ROUNDING**2:
            return Difference(mean, mean, mean, float(abs(mean) < _ROUNDING))
        df, error = whole**2 / spread, np.sqrt(variance)
        half = float(student_t.ppf((1.0 + level) / 2.0, df) * error)
        return Difference(mean, mean - half, mean + half, float(2.0 * student_t.sf(abs(mean) / error, df)))

    def _variance(self, draws: np.ndarray) -> np.ndarray:
        """Variance of the mean over users; drawing n of n users gives (n - 1) / n of it."""
        return draws.var(axis=0, ddof=1) * self.n_users / (self.n_users - 1)


def resample_users(values: np.ndarray, users: np.ndarray, rng: np.random.Generator, draws: int) -> Resampled:
    """Means of every run over the samples of users drawn with replacement.

    Samples of one user are not independent: whole users are drawn, and the mean over the drawn samples is taken (a
    ratio of two sums).

    Args:
        values: [C, n] per-sample metrics of C runs on the same samples.
        users: [n] the user of every sample.
    """
    values = np.atleast_2d(np.asarray(values, float))
    if values.shape[1] != len(users):
        raise ValueError(f"lengths differ: {values.shape[1]}, {len(users)}")
    if len(users) == 0:
        raise ValueError("no samples to compare")
    _, user = np.unique(users, return_inverse=True)
    n_users = int(user.max()) + 1
    sums = np.stack([*(np.bincount(user, weights=v) for v in values), np.bincount(user)], axis=1)
    drawn, chunk = np.empty((draws, sums.shape[1])), max(1, _TABLE // n_users)
    for start in range(0, draws, chunk):  # the draws do not depend on the chunks
        size = min(chunk, draws - start)
        picks = rng.integers(0, n_users, (size, n_users)) + np.arange(size)[:, None] * n_users
        times = np.bincount(picks.ravel(), minlength=size * n_users).reshape(size, n_users)
        drawn[start : start + size] = times.astype(float) @ sums
    totals = sums.sum(axis=0)
    return Resampled(totals[:-1] / totals[-1], drawn[:, :-1] / drawn[:, -1:], n_users)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values (Scand. J. Statist. 6, 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
