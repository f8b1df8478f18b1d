"""Plain teachers against the same rules written out in loops, and against the figures known on ML-100K."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.data_utils import InteractionData, load_dataset
from src.core.errors import UserError
from src.core.metrics import ranking_metrics, ranks_in_lists
from src.core.store_writer import StoreWriter
from src.teacher.classical import ClassicalTeacher, spectral_embeddings
from src.teacher.config import TeacherConfig, encoder_fingerprint
from src.teacher.factory import build_teacher, build_teacher_config
from src.teacher.interfaces import Teacher
from src.teacher.rows import top_k
from tests.compose import composed

N, L = 6, 3
LOGS = [
    [1, 2, 3, 4, 2],
    [2, 3, 1],
    [5, 1, 2, 3],
    [4, 4, 1],
]  # one list per user, oldest first; item 6 is never seen


def toy() -> InteractionData:
    """Samples are all rows with a predecessor; every user's last row is held out."""
    items = np.array([i for log in LOGS for i in log], np.int32)
    offsets = np.cumsum([0, *map(len, LOGS)])
    rows = np.array([r for u in range(len(LOGS)) for r in range(offsets[u] + 1, offsets[u + 1])])
    last = offsets[1:] - 1
    splits = {"train": np.setdiff1d(rows, last), "valid": last[:2], "test": last[2:]}
    titles = ["", *(f"title {i}" for i in range(1, N + 1))]
    return InteractionData("toy", "fp", items, np.arange(len(items)), offsets, splits, titles, titles, L, {})


def settings_of(kind: str, *overrides: str) -> TeacherConfig:
    """`conf/teacher/<kind>.yaml` as shipped, with overrides."""
    problems: list[str] = []
    config = build_teacher_config(composed("teacher", f"teacher={kind}", *overrides), "teacher", problems)
    assert problems == [] and config is not None
    return config


def build(
    kind: str, data: InteractionData, train_ids: np.ndarray | None = None, *overrides: str
) -> ClassicalTeacher:
    """A prepared teacher of these settings."""
    filler = build_teacher(settings_of(kind, *overrides), data, train_ids)
    assert isinstance(filler, ClassicalTeacher)
    filler.prepare(None)
    return filler


def windows() -> list[tuple[list[int], int]]:
    """(history, target) of the toy's training samples, from the logs themselves."""
    return [(log[max(0, i - L) : i], log[i]) for log in LOGS for i in range(1, len(log) - 1)]


def popularity_by_hand() -> dict[int, float]:
    counts = Counter(target for _, target in windows())
    return {i: (counts[i] + 1) / (len(windows()) + N) for i in range(1, N + 1)}


def knn_by_hand(
    history: list[int], decay: float, damping: float, floor: float, without: int | None = None
) -> list[float]:
    """`without`: position of a training window whose transitions are not counted."""
    count, similar = Counter(t for _, t in windows()), defaultdict(float)
    for past, target in (w for i, w in enumerate(windows()) if i != without):
        for age, item in enumerate(reversed(past)):
            similar[item, target] += decay**age
    scores = dict.fromkeys(range(1, N + 1), 0.0)
    for age, item in enumerate(reversed(history)):
        for t in scores:
            scores[t] += decay**age * similar[item, t] / ((count[item] + 1) * (count[t] + 1)) ** damping
    total, pop = sum(scores.values()), popularity_by_hand()
    known = {t: s / total if total else pop[t] for t, s in scores.items()}
    return [math.log((1 - floor) * known[t] + floor * pop[t]) for t in range(1, N + 1)]


def markov_by_hand(newest: int, smoothing: float, without: tuple[int, int] | None = None) -> list[float]:
    # Consecutive pairs inside a training window: all of a log but the pair that ends in its held-out row.
    follows = Counter(pair for log in LOGS for pair in zip(log[:-2], log[1:-1], strict=True))
    if without is not None:
        follows[without] -= 1
    total, pop = sum(n for (h, _), n in follows.items() if h == newest), popularity_by_hand()
    return [math.log((follows[newest, t] + smoothing * pop[t]) / (total + smoothing)) for t in pop]


class TestAgainstLoops:
    def test_toy_is_what_the_loops_take_it_for(self):
        data = toy()
        ids = data.splits["train"]
        got = [
            ([int(i) for i in h if i], int(t))
            for h, t in zip(data.histories(ids), data.targets(ids), strict=True)
        ]
        assert got == windows()

    def test_popularity(self):
        """Training targets: 2 3 4 3 1 2 4; one is added to every count: 2 3 3 3 1 1 of 13."""
        scores = build("popularity", toy()).score_all(np.array([4, 7]))
        np.testing.assert_allclose(np.exp(scores), np.array([[2, 3, 3, 3, 1, 1]] * 2) / 13, rtol=1e-6)

    @pytest.mark.parametrize("decay, damping, floor", [(0.8, 0.45, 0.01), (1.0, 0.0, 0.5), (0.3, 1.0, 1e-6)])
    def test_knn(self, decay: float, damping: float, floor: float):
        values = [f"teacher.decay={decay}", f"teacher.damping={damping}", f"teacher.floor={floor}"]
        filler = build("knn", toy(), None, *values)
        histories = np.array([[0, 0, 2], [1, 2, 3], [0, 4, 4], [0, 0, 6], [5, 6, 1]])
        expected = [knn_by_hand([int(i) for i in h if i], decay, damping, floor) for h in histories]
        np.testing.assert_allclose(filler.log_probabilities(histories), expected, rtol=1e-6)

    @pytest.mark.parametrize("smoothing", [0.1, 10.0])
    def test_markov(self, smoothing: float):
        filler = build("markov", toy(), None, f"teacher.smoothing={smoothing}")
        histories = np.array([[0, 0, newest] for newest in range(1, N + 1)])
        expected = [markov_by_hand(newest, smoothing) for newest in range(1, N + 1)]
        np.testing.assert_allclose(filler.log_probabilities(histories), expected, rtol=1e-6)

    def test_knn_leaves_a_training_sample_out_of_its_own_row(self):
        data = toy()
        filler = build("knn", data)
        expected = [knn_by_hand(past, 0.8, 0.45, 0.01, without=i) for i, (past, _) in enumerate(windows())]
        np.testing.assert_allclose(filler.score_all(data.splits["train"]), expected, rtol=1e-6)
        in_sample = build("knn", data, None, "teacher.leave_one_out=false")
        expected = [knn_by_hand(past, 0.8, 0.45, 0.01) for past, _ in windows()]
        np.testing.assert_allclose(in_sample.score_all(data.splits["train"]), expected, rtol=1e-6)
        np.testing.assert_array_equal(in_sample.train_sample_ids(), data.splits["train"])
        held_out = data.splits["test"]
        np.testing.assert_array_equal(filler.score_all(held_out), in_sample.score_all(held_out))

    def test_markov_leaves_a_training_sample_out_of_its_own_row(self):
        data = toy()
        expected = [markov_by_hand(past[-1], 10.0, without=(past[-1], t)) for past, t in windows()]
        np.testing.assert_allclose(build("markov", data).score_all(data.splits["train"]), expected, rtol=1e-6)
        in_sample = build("markov", data, None, "teacher.leave_one_out=false")
        expected = [markov_by_hand(past[-1], 10.0) for past, _ in windows()]
        np.testing.assert_allclose(in_sample.score_all(data.splits["train"]), expected, rtol=1e-6)

    def test_markov_reads_the_newest_item_only(self):
        filler = build("markov", toy())
        one, other = filler.log_probabilities(np.array([[1, 2, 3], [5, 4, 3]]))
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module", params=["popularity", "knn", "markov", "sasrec"])
def filler(request, demo_data: InteractionData, tmp_path_factory) -> ClassicalTeacher:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(tmp_path_factory.mktemp("models")))
        fast = (
            ["teacher.encoder.max_epochs=2", "teacher.encoder.width=16"] if request.param == "sasrec" else []
        )
        return build(request.param, demo_data, None, *fast)


class TestProtocol:
    def test_is_a_teacher(self, filler: ClassicalTeacher, demo_data: InteractionData):
        assert isinstance(filler, Teacher)
        one_out = filler.name in ("knn", "markov")
        np.testing.assert_array_equal(
            filler.train_sample_ids(), demo_data.splits["train"][: 0 if one_out else None]
        )

    def test_scores_are_log_probabilities(self, filler: ClassicalTeacher, demo_data: InteractionData):
        scores = filler.score_all(demo_data.splits["test"])
        assert scores.dtype == np.float32 and scores.shape == (
            len(demo_data.splits["test"]),
            demo_data.n_items,
        )
        np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(axis=1), 1.0, rtol=1e-5)

    def test_rows_are_the_sorted_scores(self, filler: ClassicalTeacher, demo_data: InteractionData):
        ids = demo_data.splits["valid"]
        rows = filler.rank("valid", ids, 10)
        rows.check(demo_data.n_items, filler.score_kind, "rows")
        scores = filler.score_all(ids)
        for i in (0, len(ids) // 2, len(ids) - 1):
            by_hand = sorted(range(demo_data.n_items), key=lambda c: (-scores[i, c], c))[:10]
            assert rows.rankings[i].tolist() == [c + 1 for c in by_hand]
            np.testing.assert_array_equal(rows.scores[i], scores[i, by_hand])
            assert rows.target_scores[i] == scores[i, demo_data.targets(ids)[i] - 1]

    def test_a_sample_does_not_depend_on_its_batch(
        self, filler: ClassicalTeacher, demo_data: InteractionData
    ):
        ids = demo_data.splits["valid"][:40]
        together, shuffled = filler.rank("valid", ids, 10), np.random.default_rng(0).permutation(40)
        apart = filler.rank("valid", ids[shuffled], 10)
        single = filler.rank("valid", ids[3:4], 10)
        np.testing.assert_array_equal(apart.rankings, together.rankings[shuffled])
        np.testing.assert_array_equal(single.rankings[0], together.rankings[3])
        np.testing.assert_allclose(single.scores[0], together.scores[3], atol=1e-5)

    def test_embeddings(self, filler: ClassicalTeacher, demo_data: InteractionData):
        table = filler.item_embeddings()
        assert table.dtype == np.float32 and table.shape[0] == demo_data.n_items + 1
        assert not table[0].any() and table[1:].any() and np.isfinite(table).all()
        np.testing.assert_array_equal(table, filler.item_embeddings())

    def test_fills_a_store_twice_with_the_same_bytes(
        self, filler: ClassicalTeacher, demo_data: InteractionData, tmp_path: Path
    ):
        ids = {split: demo_data.splits[split] for split in ("train", "valid")}
        stores = []
        for name, shard_size, parts in (("one", 500, 1), ("two", 200, 2)):
            writer = StoreWriter(tmp_path / name, demo_data.n_items, filler.score_kind, shard_size)
            for part in range(parts):
                for split, samples in ids.items():
                    writer.export(
                        split, samples, lambda s, split=split: filler.rank(split, s, 20), (part, parts)
                    )
            fields = {"dataset_fingerprint": demo_data.fingerprint, "teacher": filler.name}
            stores.append(writer.finish(ids, filler.item_embeddings(), fields))
        assert stores[0].manifest["files"] == stores[1].manifest["files"]

    def test_non_finite_scores_are_refused(self, demo_data: InteractionData):
        broken = build("popularity", demo_data)
        broken._log_p[3] = -np.inf
        with pytest.raises(UserError, match=r"scores of sample \d+ are not finite"):
            broken.rank("test", demo_data.splits["test"], 5)


class TestTrainingSubset:
    """A fold leaves samples out: nothing of their targets may be known."""

    @pytest.mark.parametrize("kind", ["popularity", "knn", "markov"])
    def test_left_out_samples_do_not_matter(self, kind: str):
        data = toy()
        fold = data.splits["train"][:4]  # user 0's samples and user 1's
        filler = build(kind, data, fold)
        # Another log whose left-out rows hold other items gives the same teacher.
        changed = toy()
        changed.items[8:] = 6
        histories = np.array([[1, 2, 3], [0, 0, 5]])
        np.testing.assert_array_equal(
            filler.log_probabilities(histories), build(kind, changed, fold).log_probabilities(histories)
        )
        assert not np.array_equal(
            filler.log_probabilities(histories), build(kind, data).log_probabilities(histories)
        )

    def test_no_window_brings_a_left_out_target_back(self):
        """Sample 2 (2 -> 3) is left out, and stands in the window 1, 2, 3 of sample 3."""
        filler = build("markov", toy(), np.array([1, 3]))
        assert filler._counts.sum() == 2.0 and filler._counts[1, 2] == 0.0

    def test_sasrec_of_a_fold_is_another_model(self, demo_data: InteractionData, roots: Path):
        small = ["teacher.encoder.max_epochs=1", "teacher.encoder.width=8", "teacher.encoder.heads=1"]
        half = demo_data.splits["train"][::2]
        whole, part = build("sasrec", demo_data, None, *small), build("sasrec", demo_data, half, *small)
        again = build("sasrec", demo_data, half, *small)
        assert again.prepare(None)["reused"] and len(list(roots.glob("data/models/demo/*/[!.]*"))) == 2
        scores = [f.score_all(demo_data.splits["test"]) for f in (whole, part, again)]
        assert not np.array_equal(scores[0], scores[1])
        np.testing.assert_array_equal(scores[1], scores[2])


def test_sasrec_is_the_encoder_of_ilora():
    """As shipped the two share one model; it is trained once."""
    ilora, sasrec = settings_of("ilora"), settings_of("sasrec")
    prints = [encoder_fingerprint(c.encoder, c.seed, "d") for c in (ilora, sasrec)]
    assert prints[0] == prints[1]


class TestTopK:
    def test_ties_go_by_item_id(self):
        scores = np.array([[0.0, 3.0, 1.0, 3.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
        assert top_k(scores, 4).tolist() == [[1, 3, 2, 4], [0, 1, 2, 3]]
        assert top_k(scores, 1).tolist() == [[1], [0]]
        assert top_k(scores, 6).tolist() == [[1, 3, 2, 4, 5, 0], [0, 1, 2, 3, 4, 5]]

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(data=st.data())
    def test_is_the_head_of_a_stable_sort(self, data):
        n = data.draw(st.integers(1, 30))
        values = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 7.0])  # few values: many ties
        scores = np.array(
            data.draw(st.lists(st.lists(values, min_size=n, max_size=n), min_size=1, max_size=4))
        )
        k = data.draw(st.integers(1, n))
        expected = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(top_k(scores.astype(np.float32), k), expected)


class TestSpectralEmbeddings:
    @pytest.mark.parametrize(
        "n", [40, 400]
    )  # a dense solver for the small one, an iterative one for the other
    def test_is_the_best_low_rank_factor(self, n: int):
        import scipy.sparse as sp

        rng = np.random.default_rng(0)
        low = rng.random((n, 5)) @ np.diag([9.0, 4.0, 3.0, 2.0, 1.0]) @ rng.random((5, n))
        table = spectral_embeddings(sp.csr_array(low), 5)[1:].astype(np.float64)
        left, values, _ = np.linalg.svd(low)
        # Up to rotation: the Gram matrices agree.
        np.testing.assert_allclose(
            table @ table.T, (left[:, :5] * values[:5]) @ left[:, :5].T, rtol=1e-4, atol=1e-4
        )
        assert (table[np.abs(table).argmax(axis=0), np.arange(5)] > 0).all(), "signs are fixed"
        lengths = np.linalg.norm(table, axis=0)
        assert (np.diff(lengths) < 0).all(), "the strongest direction first"

    def test_items_that_never_occur_and_narrow_catalogues(self):
        import scipy.sparse as sp

        matrix = sp.csr_array(([2.0, 1.0], ([0, 3], [1, 2])), shape=(5, 5))
        table = spectral_embeddings(matrix, 64)
        assert table.shape == (6, 5)
        np.testing.assert_allclose(np.abs(table[[1, 4], :2]), [[math.sqrt(2), 0], [0, 1]], atol=1e-6)
        assert not table[
            [0, 2, 3, 5]
        ].any(), "no transitions, no vector; and no noise from vanishing directions"
        assert not spectral_embeddings(sp.csr_array((5, 5)), 3).any()


# NDCG@20 on test, history ranked / excluded. Popularity .0233 and kNN .0855 / .0912 were measured
# independently with slightly other conventions (counts without the added one).
KNOWN = {"popularity": (0.0233, 0.0245), "knn": (0.0863, 0.0917), "markov": (0.0544, 0.0586)}


@pytest.fixture(scope="module")
def ml100k(shared_data: Path, dataset_config, tmp_path_factory) -> InteractionData:
    folder = shared_data / "ml-100k"
    if not folder.is_dir():
        pytest.skip(f"no ML-100K at {folder}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(tmp_path_factory.mktemp("ml100k")))
        return load_dataset(
            dataset_config("movielens", f"dataset.raw_dir={folder}", "dataset.download=false")
        )


def whole_ranks(teacher: ClassicalTeacher, data: InteractionData, ids: np.ndarray) -> list[np.ndarray]:
    """The targets' ranks in the whole catalogue, with and without the items of the history."""
    rows, targets = teacher.rank("test", ids, data.n_items), data.targets(ids)
    return [ranks_in_lists(rows.rankings, rows.scores, targets, h) for h in (None, data.histories(ids))]


def test_training_rows_are_no_better_than_others(ml100k: InteractionData):
    """In sample the kNN finds its own transition again; left out, train looks like validation and test."""
    ids = ml100k.splits["train"][::8]
    ndcg = {}
    for one_out in ("true", "false"):
        knn = build("knn", ml100k, None, f"teacher.leave_one_out={one_out}")
        ndcg[one_out] = ranking_metrics(whole_ranks(knn, ml100k, ids)[0], (20,))["NDCG@20"]
    assert ndcg["false"] > 0.2
    assert 0.05 < ndcg["true"] < 0.12


@pytest.mark.parametrize("kind", KNOWN)
def test_figures_on_movielens(kind: str, ml100k: InteractionData):
    ranks = whole_ranks(build(kind, ml100k), ml100k, ml100k.splits["test"])
    got = [ranking_metrics(r, (20,))["NDCG@20"] for r in ranks]
    assert got == pytest.approx(KNOWN[kind], abs=1e-4)
