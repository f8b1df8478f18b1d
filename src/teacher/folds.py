"""Cross-fitting (`teacher.folds`): training rows ranked by teachers that did not see their users.

A fold holds whole users: a later sample's history contains the targets of its user's earlier samples, so
that a teacher trained on any of a user's samples has read them.
"""

from __future__ import annotations

import numpy as np

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.seed import numpy_stream


def split_folds(data: InteractionData, folds: int, seed: int) -> list[np.ndarray]:
    """The training split in `folds` parts of about equally many samples, each ascending.

    Users are shuffled by seed and dealt out one after the other, each to the part with the fewest samples.

    Raises:
        UserError: more folds than users.
    """
    train = np.asarray(data.splits["train"])
    users, samples = np.unique(data.users_of(train), return_inverse=True)
    if folds > len(users):
        raise UserError(f"teacher.folds={folds}", f"<= {len(users)} users", "teacher.folds")
    order = numpy_stream(seed, "folds", folds).permutation(len(users))
    counts = np.bincount(samples)
    fold, sizes = np.empty(len(users), np.int64), np.zeros(folds, np.int64)
    for user in order:
        fold[user] = sizes.argmin()
        sizes[fold[user]] += counts[user]
    return [train[fold[samples] == part] for part in range(folds)]
