"""The official code's files: exact round trip, explicit order, and everything that can be wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.distill.data_bridge import join_rows
from src.distill.official_files import (
    DISTANCES,
    EMBEDDINGS,
    RANKS,
    import_official,
    read_official,
    write_official,
)
from src.distill.trainer_distill import train_distilled
from tests.distill.conftest import make_rows, make_settings, make_store


def written(tmp_path: Path, data: InteractionData, kind: str = "distance") -> tuple[Path, np.ndarray]:
    """A folder with the files of random rows, in an order that is not ascending."""
    train = data.splits["train"]
    store = make_store(tmp_path / "store", data, make_rows(data, train, 6, kind=kind), kind=kind)
    order = np.random.default_rng(5).permutation(train)
    write_official(tmp_path / "files", store, order)
    return tmp_path / "files", order


def test_files_are_zero_based_and_come_back_exactly(tmp_path: Path, small_data: InteractionData) -> None:
    folder, order = written(tmp_path, small_data)
    rows = make_rows(small_data, small_data.splits["train"], 6)
    at = np.searchsorted(rows.sample_ids, order)
    first = [int(x) for x in (folder / RANKS).read_text().splitlines()[0].split()]
    assert first == (rows.rankings[at[0]] - 1).tolist()
    read = read_official(folder, order, small_data.n_items)
    assert np.array_equal(read.rankings, rows.rankings[at]) and read.rankings.dtype == np.int32
    assert np.array_equal(read.distances, rows.scores[at])  # bit for bit
    assert read.item_embeddings.shape == (31, 12) and not read.item_embeddings[0].any()
    assert torch.load(folder / EMBEDDINGS, weights_only=True).shape == (30, 12)


def test_a_log_likelihood_is_written_as_a_distance(tmp_path: Path, small_data: InteractionData) -> None:
    folder, order = written(tmp_path, small_data, kind="log_likelihood")
    distances = read_official(folder, order, small_data.n_items).distances
    assert (np.diff(distances, axis=1) >= 0).all() and distances.min() >= 0


def test_numbers_in_scientific_notation_as_savetxt_writes_them(
    tmp_path: Path, small_data: InteractionData
) -> None:
    folder, order = written(tmp_path, small_data)
    before = read_official(folder, order, 30)
    np.savetxt(folder / RANKS, before.rankings - 1)
    assert np.array_equal(read_official(folder, order, 30).rankings, before.rankings)


def test_import_makes_a_store_that_distillation_joins_by_id(
    tmp_path: Path, small_data: InteractionData
) -> None:
    folder, order = written(tmp_path, small_data)
    store = import_official(folder, order, small_data, tmp_path / "imported")
    rows, original = join_rows(store, small_data, 6), make_rows(small_data, small_data.splits["train"], 6)
    assert np.array_equal(rows.sample_ids, original.sample_ids)
    assert np.array_equal(rows.rankings, original.rankings) and np.array_equal(rows.scores, original.scores)
    targets = small_data.targets(rows.sample_ids)
    hit = rows.rankings == targets[:, None]
    expected = np.where(hit.any(1), (rows.scores * hit).sum(1), rows.scores[:, -1])
    assert hit.any() and np.array_equal(rows.target_scores, expected.astype(np.float32))


@pytest.mark.parametrize("key", ["distill.confidence=target", "active.policy=teacher_confidence"])
def test_what_needs_the_targets_distance_refuses(
    tmp_path: Path, small_data: InteractionData, eval_config: object, key: str
) -> None:
    folder, order = written(tmp_path, small_data)
    store = import_official(folder, order, small_data, tmp_path / "imported")
    confidence = {"confidence": "target"} if key.startswith("distill") else {}
    with pytest.raises(UserError, match=f"{key} with"):
        train_distilled(
            make_settings("student", "sasrec"),
            make_settings("distill", "dllm2rec", top_k=5, **confidence),
            make_settings("active", "all" if confidence else "teacher_confidence"),
            small_data,
            store,
            eval_config,
            seed=0,
            folder=tmp_path / "work",
            fingerprint="f",
        )


def spoil_table(name: str, change) -> object:
    def spoil(folder: Path) -> None:
        table = np.loadtxt(folder / name)
        np.savetxt(folder / name, change(table))

    return spoil


def put(row: int, column: int, value: float):
    def change(table: np.ndarray) -> np.ndarray:
        table[row, column] = value
        return table

    return change


def save_tensor(value: object):
    return lambda folder: torch.save(value, folder / EMBEDDINGS)


class NotATensor:
    pass


BAD = {
    "fewer rows": (spoil_table(RANKS, lambda t: t[:-1]), r"has 59 rows; expected 60"),
    "other columns": (spoil_table(DISTANCES, lambda t: t[:, :-1]), r"is \(60, 5\); expected \(60, 6\)"),
    "id too large": (spoil_table(RANKS, put(3, 2, 30)), r"ids 0\.\.30; expected 0\.\.29"),
    "1-based with id -1": (spoil_table(RANKS, put(3, 2, -1)), r"ids -1\.\.29"),
    "item twice": (spoil_table(RANKS, lambda t: put(0, 1, t[0, 0])(t)), "ranks an item twice"),
    "fractions": (spoil_table(RANKS, put(0, 0, 1.5)), "no integers"),
    "missing id": (spoil_table(RANKS, put(0, 0, np.nan)), "no integers"),
    "argsort of argsort": (spoil_table(DISTANCES, lambda t: t[:, ::-1]), "not best first"),
    "distance not finite": (spoil_table(DISTANCES, put(7, 5, np.inf)), "not finite"),
    "text": (lambda folder: (folder / RANKS).write_text("a b\n"), "cannot be read"),
    "ragged": (lambda folder: (folder / RANKS).write_text("1 2\n3\n"), "cannot be read"),
    "empty": (lambda folder: (folder / DISTANCES).write_text(""), "is empty"),
    "no file": (lambda folder: (folder / EMBEDDINGS).unlink(), "cannot be read"),
    "other catalogue": (save_tensor(torch.zeros(29, 12)), r"is \(29, 12\); expected \(30, D\)"),
    "flat": (save_tensor(torch.zeros(30)), r"is \(30,\); expected \(30, D\)"),
    "a dict": (save_tensor({"a": torch.zeros(2)}), "holds a dict"),
    "NaN": (save_tensor(torch.full((30, 4), float("nan"))), "embedding of item 1 is not finite"),
    "pickled object": (save_tensor(NotATensor()), "cannot be read"),
    "truncated": (
        lambda f: (f / EMBEDDINGS).write_bytes((f / EMBEDDINGS).read_bytes()[:100]),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_files_are_refused(tmp_path: Path, small_data: InteractionData, case: str) -> None:
    folder, order = written(tmp_path, small_data)
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        read_official(folder, order, small_data.n_items)


def test_an_order_that_is_not_the_training_split(tmp_path: Path, small_data: InteractionData) -> None:
    folder, order = written(tmp_path, small_data)
    foreign = order.copy()
    foreign[4] = small_data.splits["test"][0]
    with pytest.raises(UserError, match=f"sample {foreign[4]} is no training sample"):
        import_official(folder, foreign, small_data, tmp_path / "imported")
    foreign[4] = order[5]
    with pytest.raises(UserError, match="stands 2 times"):
        read_official(folder, foreign, small_data.n_items)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200), name=st.sampled_from([RANKS, DISTANCES, EMBEDDINGS]))
def test_arbitrary_bytes_are_refused_with_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    np.savetxt(folder / RANKS, [[0, 1], [1, 0]], fmt="%d")
    np.savetxt(folder / DISTANCES, [[0.1, 0.2], [0.1, 0.2]])
    torch.save(torch.ones(2, 3), folder / EMBEDDINGS)
    read_official(folder, np.array([4, 9]), 2)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_official(folder, np.array([4, 9]), 2)
    assert "\n" not in str(error.value)
