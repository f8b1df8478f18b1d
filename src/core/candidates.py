"""Candidate sets: a target among random items that its user did not just have, and who picks it.

iLoRA's protocol (arXiv 2408.10159): a model sees the history and 20 items, one of them the true next one,
and names one. The sets are a fact of the dataset, drawn once and stored, so that a language model that writes
a title and a student that scores items choose among the same items for the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from src.core.artifacts import (
    artifact_folder,
    fingerprint,
    is_complete,
    load_manifest,
    load_npy,
    lock,
    save_npy,
    write_manifest,
)
from src.core.config import config_group, determining, setting
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import candidates_dir
from src.core.seed import numpy_stream

FORMAT_VERSION = 1
log = get_logger(__name__)


@config_group
class CandidateConfig:
    """`eval.candidates`: the sets that every model is asked about besides the whole catalogue."""

    count: int = setting("items of a set, the target included", ge=2)
    draws: int = setting("sets per sample; figures are means over draws, with their sd", ge=1)
    samples: int | None = setting("test samples asked about (drawn by seed); null: all", ge=1)
    seed: int = setting("of samples, items and their order; not the models' seed", ge=0)


def normal_title(title: str) -> str:
    """Titles that are equal after this cannot be told apart in a list: case, spacing, composed and full-width
    forms do not count."""
    from src.core.datasets.filters import plain_title  # pandas, which a run with nothing to do does without

    return plain_title(title).lower()


class CandidateSampler:
    """Draws candidates for training prompts and for the stored sets alike.

    Args:
        titles: [N+1], entry 0 unused.
        seed: of all draws.
        key: the setting that asks for candidates, for errors.
    """

    def __init__(self, titles: Sequence[str], seed: int, key: str):
        self.n_items, self.seed, self.key = len(titles) - 1, seed, key
        # Two items of one title cannot be told apart in a candidate list.
        names = np.array([normal_title(t) for t in titles[1:]])
        _, group = np.unique(names, return_inverse=True)
        self._group = np.concatenate([[-1], group])
        self.n_titles = int(group.max()) + 1

    def draw(self, sample_id: int, history: np.ndarray, target: int, count: int, draw: int = 0) -> np.ndarray:
        """[count] int64 items in shown order: the target and others, outside the history, no title twice.

        Fixed by seed, sample id and `draw`.

        Raises:
            UserError: the catalogue has too few such items.
        """
        rng = numpy_stream(self.seed, "candidates", draw, int(sample_id))
        banned = np.zeros(self.n_items + 1, bool)
        banned[0] = True
        banned[history] = True
        taken = {int(self._group[target])}
        chosen = [int(target)]
        for item in rng.permutation(self.n_items) + 1:
            if len(chosen) == count:
                break
            group = int(self._group[item])
            if not banned[item] and group not in taken:
                taken.add(group)
                chosen.append(int(item))
        if len(chosen) < count:
            raise UserError(
                f"sample {sample_id}: {len(chosen)} items can be candidates", str(count), self.key
            )
        return rng.permutation(np.array(chosen, np.int64))


@dataclass(frozen=True)
class CandidateSet:
    """Stored candidates of test samples.

    Attributes:
        fingerprint: of dataset and settings; figures of one fingerprint can be compared.
        sample_ids: [n] int64, ascending.
        items: [D, n, C] int32, D draws of C items, the target at a random place.
        targets: [n] int32.
    """

    fingerprint: str
    sample_ids: np.ndarray
    items: np.ndarray
    targets: np.ndarray

    def hits(self, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[D, b] bool, whether the target scores above every other candidate (a tie is lost).

        Args:
            scores: [b, N], larger is better; column c scores item c + 1.
            rows: [b] positions of these samples in `sample_ids`.

        Raises:
            UserError: a candidate's score is not finite.
        """
        columns = self.items[:, rows] - 1
        return self.best(scores[np.arange(len(rows))[None, :, None], columns], rows)

    def best(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[D, b] bool as `hits`, from the candidates' own scores [D, b, C]."""
        if not (good := np.isfinite(values).all(axis=(0, 2))).all():
            raise UserError(
                f"scores of sample {self.sample_ids[rows[~good]][0]} are not finite",
                "finite scores",
                "the model's lr or precision",
            )
        truth = (self.items[:, rows] == self.targets[rows][None, :, None]).argmax(axis=2)
        target_score = np.take_along_axis(values, truth[..., None], axis=2)
        return (values >= target_score).sum(axis=2) == 1


@dataclass(frozen=True)
class Written:
    """A generated answer as a person wants to see it."""

    sample_id: int
    prompt: str
    text: str
    chosen: str | None
    target: str

    @property
    def verdict(self) -> str:
        if self.chosen is None:
            return "invalid"
        return "right" if self.chosen == self.target else "wrong"


@dataclass(frozen=True)
class Choices:
    """What a model chose among the candidates, one way of asking it.

    Attributes:
        hits: [D, n] bool, it chose the target.
        valid: [D, n] bool, it chose any candidate (always, where it scores them).
        written: some of the generated answers.
    """

    hits: np.ndarray
    valid: np.ndarray
    written: tuple[Written, ...] = ()

    def figures(self) -> dict[str, dict[str, float]]:
        """`mean` over draws, and `sd` where there are several, of

        HitRatio@1       right answers / all samples
        ValidRatio       valid answers / all samples
        HitRatio@1 valid right answers / valid answers; absent where no answer is valid
        """
        hit, valid = self.hits.mean(axis=1), self.valid.mean(axis=1)
        values = {"HitRatio@1": hit, "ValidRatio": valid}
        if (valid > 0).all():
            values["HitRatio@1 valid"] = hit / valid
        return {name: _mean_sd(v) for name, v in values.items()}


def _mean_sd(values: np.ndarray) -> dict[str, float]:
    out = {"mean": float(values.mean())}
    return out | ({"sd": float(values.std(ddof=1))} if len(values) > 1 else {})


def choose_by_scores(
    candidates: CandidateSet, score: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> Choices:
    """The choices of a model that scores the catalogue.

    Args:
        score: [b] sample ids -> [b, N], larger is better.
    """
    n = len(candidates.sample_ids)
    hits = np.empty((len(candidates.items), n), bool)
    for start in range(0, n, batch_size):
        rows = np.arange(start, min(start + batch_size, n))
        hits[:, rows] = candidates.hits(score(candidates.sample_ids[rows]), rows)
    return Choices(hits, np.ones_like(hits))


def load_candidates(config: CandidateConfig | None, data: InteractionData) -> CandidateSet | None:
    """The stored sets of these settings, drawn now where they are new; None where they are switched off.

    Raises:
        UserError: the catalogue cannot fill a set, or the stored files were changed.
    """
    if config is None:
        return None
    key = "eval.candidates.count (or eval.candidates=null)"
    identity = {"version": FORMAT_VERSION, "dataset": data.fingerprint, "candidates": determining(config)}
    fp = fingerprint(identity)
    folder = candidates_dir(data.name, data.fingerprint, fp)
    with lock(folder, log.info):
        if not is_complete(folder):
            ids, items = _draw_all(config, data, key)
            with artifact_folder(folder) as tmp:
                save_npy(tmp / "sample_ids.npy", ids)
                save_npy(tmp / "candidates.npy", items)
                write_manifest(tmp, {"format_version": FORMAT_VERSION, "fingerprint": fp, **identity})
            log.info("drew %d x %d candidates for %d test samples: %s", *items.shape[::2], len(ids), folder)
    load_manifest(folder, {"format_version": FORMAT_VERSION, "fingerprint": fp}, f"delete {folder}")
    ids, items = load_npy(folder / "sample_ids.npy"), load_npy(folder / "candidates.npy")
    return CandidateSet(fp, ids, items, data.targets(ids))


def _draw_all(config: CandidateConfig, data: InteractionData, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Sample ids [n] and candidates [D, n, C]."""
    ids = data.splits["test"]
    if config.samples is not None and config.samples < len(ids):
        rng = numpy_stream(config.seed, "candidate_samples")
        ids = np.sort(rng.choice(ids, config.samples, replace=False))
    sampler = CandidateSampler(data.titles, config.seed, key)
    histories, targets = data.histories(ids), data.targets(ids)
    items = np.empty((config.draws, len(ids), config.count), np.int32)
    for row, (sample, history, target) in enumerate(zip(ids, histories, targets, strict=True)):
        for draw in range(config.draws):
            items[draw, row] = sampler.draw(int(sample), history, int(target), config.count, draw)
    return np.asarray(ids, np.int64), items
