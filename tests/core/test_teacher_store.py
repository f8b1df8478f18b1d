"""The teacher-output store: resume, several processes, damaged and foreign files, and its contract."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.core.artifacts import lock, sha256_file, write_manifest
from src.core.errors import UserError
from src.core.store_writer import StoreWriter
from src.core.teacher_store import TeacherRows, TeacherStore, check_embeddings, locate

N_ITEMS, TOP_K, SHARD = 50, 7, 8
SPLITS = {"train": np.arange(100, 160, 2), "valid": np.arange(161, 175), "test": np.arange(300, 303)}
FIELDS = {"dataset": "toy", "dataset_fingerprint": "d1", "teacher": "stub", "in_sample": {"train": 30}}
EMBEDDINGS = np.vstack([np.zeros((1, 5)), np.random.default_rng(9).normal(size=(N_ITEMS, 5))]).astype(
    np.float32
)


def rank(ids: np.ndarray) -> TeacherRows:
    """A stub teacher: rows that depend on the sample id alone."""
    rows = [np.random.default_rng(int(i)) for i in ids]
    rankings = np.array([r.permutation(N_ITEMS)[:TOP_K] + 1 for r in rows], np.int32)
    scores = -np.sort(np.array([r.random(TOP_K) for r in rows], np.float32), axis=1)
    return TeacherRows(np.asarray(ids, np.int64), rankings, scores, scores[:, 0] - 1)


def make(folder: Path, shard_size: int = SHARD) -> TeacherStore:
    writer = StoreWriter(folder, N_ITEMS, "log_likelihood", shard_size)
    for split, ids in SPLITS.items():
        writer.export(split, ids, rank)
    return writer.finish(SPLITS, EMBEDDINGS, FIELDS)


def hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()
    }


def reseal(folder: Path) -> None:
    """Give changed files a fitting manifest: what a faulty writer, not a faulty disk, would leave."""
    fields = json.loads((folder / "manifest.json").read_text())
    fields.pop("files")
    write_manifest(folder, fields)


@pytest.fixture(scope="module", autouse=True)
def no_fsync():
    """Hundreds of shards: on a busy disk syncing them takes minutes (that it is done, test_artifacts tests)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    return make(tmp_path / "store")


class TestReading:
    def test_rows_come_by_sample_id_whatever_the_order(self, store: TeacherStore):
        wanted = np.array([158, 100, 124])
        got, expected = store.rows_of("train", wanted), rank(wanted)
        for name in ("sample_ids", "rankings", "scores", "target_scores"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        np.testing.assert_array_equal(store.item_embeddings(), EMBEDDINGS)
        assert (store.top_k, store.score_kind) == (TOP_K, "log_likelihood")

    def test_manifest_says_what_design_asks(self, store: TeacherStore):
        manifest = json.loads((store.folder / "manifest.json").read_text())
        assert {**manifest, **FIELDS} == manifest
        assert manifest["n_samples"] == {"train": 30, "valid": 14, "test": 3}
        assert (manifest["format_version"], manifest["top_k"], manifest["embedding_dim"]) == (1, TOP_K, 5)
        assert manifest["files"] == {
            name: digest for name, digest in hashes(store.folder).items() if name != "manifest.json"
        }
        assert not store.folder.with_name("store.partial").exists()

    @pytest.mark.parametrize("missing, count", [([101], 1), ([100, 99, 160], 2), ([10**12], 1)])
    def test_a_missing_sample_is_named(self, store: TeacherStore, missing: list[int], count: int):
        first = next(i for i in missing if i not in SPLITS["train"])
        with pytest.raises(
            UserError, match=rf"no row for sample {first} \({count} of {len(missing)} missing\)"
        ):
            store.rows_of("train", np.array(missing))

    def test_locate_against_a_dictionary(self):
        ids = np.array([2, 3, 5, 9])
        wanted = np.array([9, 0, 3, 4, 10, 2])
        position, found = locate(ids, wanted)
        assert found.tolist() == [True, False, True, False, False, True]
        assert position[found].tolist() == [3, 1, 0]
        assert not locate(np.array([], np.int64), wanted)[1].any()

    def test_not_a_store(self, store: TeacherStore, tmp_path: Path):
        with pytest.raises(UserError, match=r"no manifest\.json"):
            TeacherStore(tmp_path, "d1")
        # A prepared dataset has a manifest with the same fingerprint and version.
        (tmp_path / "dataset").mkdir()
        write_manifest(
            tmp_path / "dataset",
            {"format_version": 1, "dataset_fingerprint": "d1", "n_items": 3, "n_samples": {}},
        )
        with pytest.raises(UserError, match="top_k is None; expected a teacher-output store"):
            TeacherStore(tmp_path / "dataset", "d1")


class TestDamage:
    @pytest.mark.parametrize("name", ["train/rankings.npy", "test/scores.npy", "item_embeddings.safetensors"])
    def test_one_flipped_byte(self, store: TeacherStore, name: str):
        file = store.folder / name
        blob = bytearray(file.read_bytes())
        blob[-3] ^= 0x40
        file.write_bytes(blob)
        with pytest.raises(UserError, match=f"{name} does not have the hash of its manifest"):
            TeacherStore(store.folder, "d1")

    def test_a_truncated_shard_stops_the_joining_and_the_others_stay(self, tmp_path: Path):
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        for split, ids in SPLITS.items():
            writer.export(split, ids, rank)
        shards = sorted((writer.partial / "train").iterdir())
        victim = shards[1] / "scores.npy"
        victim.write_bytes(victim.read_bytes()[:-8])
        with pytest.raises(UserError, match=rf"{shards[1].name}/scores.npy.*hash.*delete .*{shards[1].name}"):
            writer.finish(SPLITS, EMBEDDINGS, FIELDS)
        assert not (tmp_path / "store").exists()
        shutil.rmtree(shards[1])
        assert writer.export("train", SPLITS["train"], rank) == SHARD, "only the broken shard is ranked again"
        writer.finish(SPLITS, EMBEDDINGS, FIELDS)


def _broken(kind: str, rows: TeacherRows) -> TeacherRows:
    rankings, scores = rows.rankings.copy(), rows.scores.copy()
    if kind == "item twice":
        rankings[1, 3] = rankings[1, 0]
    elif kind == "item 0":
        rankings[1, 3] = 0
    elif kind == "item beyond the catalogue":
        rankings[1, 3] = N_ITEMS + 1
    elif kind == "worst first":
        scores[1] = scores[1, ::-1]
    elif kind == "nan score":
        scores[1, 2] = np.nan
    elif kind == "infinite score":
        scores[1, -1] = -np.inf
    elif kind == "nan target score":
        target_scores = rows.target_scores.copy()
        target_scores[1] = np.nan
        return replace(rows, target_scores=target_scores)
    elif kind == "float64 scores":
        scores = scores.astype(np.float64)
    elif kind == "int64 rankings":
        rankings = rankings.astype(np.int64)
    elif kind == "other width":
        scores = scores[:, 1:]
    elif kind == "flat rankings":
        rankings = rankings[0]
    elif kind == "sample twice":
        ids = rows.sample_ids.copy()
        ids[1] = ids[0]
        return replace(rows, sample_ids=ids)
    return replace(rows, rankings=rankings, scores=scores)


CONTRACT = [
    ("item twice", "sample 102 ranks an item twice"),
    ("item 0", "item ids 0\\.\\."),
    ("item beyond the catalogue", f"\\.\\.{N_ITEMS + 1}; expected 1\\.\\.{N_ITEMS}"),
    ("worst first", "scores of sample 102 are not best first for score_kind=log_likelihood"),
    ("nan score", "scores of sample 102 are not finite"),
    ("infinite score", "scores of sample 102 are not finite"),
    ("nan target score", "target_scores of sample 102 are not finite"),
    ("float64 scores", "scores is float64"),
    ("int64 rankings", "rankings is int64"),
    ("other width", r"scores is float32 \(8, 6\); expected float32 \(8, 7\)"),
    ("flat rankings", "rankings is int32"),
]


class TestContract:
    @pytest.mark.parametrize("kind, message", CONTRACT)
    def test_the_writer_refuses(self, tmp_path: Path, kind: str, message: str):
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        with pytest.raises(UserError, match=message):
            writer.export("train", SPLITS["train"], lambda ids: _broken(kind, rank(ids)))
        assert not list(writer.partial.rglob("manifest.json")), "a refused shard leaves nothing behind"

    @pytest.mark.parametrize("kind, message", [*CONTRACT, ("sample twice", "sample 100 stands 2 times")])
    def test_the_reader_refuses(self, store: TeacherStore, kind: str, message: str):
        """A folder whose hashes fit but whose writer was wrong."""
        bad = _broken(kind, rank(SPLITS["train"][:8]))
        for name in ("sample_ids", "rankings", "scores", "target_scores"):
            np.save(store.folder / "train" / f"{name}.npy", getattr(bad, name))
        reseal(store.folder)
        with pytest.raises(UserError, match=message):
            TeacherStore(store.folder, "d1").rows("train")

    def test_distances_rise_and_likelihoods_fall(self):
        rows = rank(np.arange(4))
        rows.check(N_ITEMS, "log_likelihood", "x")
        with pytest.raises(UserError, match="not best first for score_kind=distance"):
            rows.check(N_ITEMS, "distance", "x")
        replace(rows, scores=-rows.scores).check(N_ITEMS, "distance", "x")
        replace(rows, scores=np.zeros_like(rows.scores)).check(N_ITEMS, "distance", "x")

    def test_rows_of_other_samples(self, tmp_path: Path):
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        with pytest.raises(RuntimeError, match="rows of other samples"):
            writer.export("train", SPLITS["train"], lambda ids: rank(ids[::-1]))

    def test_writer_settings(self, tmp_path: Path):
        with pytest.raises(UserError, match="score_kind=logit; expected distance or log_likelihood"):
            StoreWriter(tmp_path / "a", N_ITEMS, "logit", SHARD)
        writer = StoreWriter(tmp_path / "b", N_ITEMS, "distance", SHARD)
        with pytest.raises(UserError, match="sample ids repeat"):
            writer.shards(np.array([1, 2, 2]))
        with pytest.raises(UserError, match="no samples"):
            writer.shards(np.array([], np.int64))

    @pytest.mark.parametrize(
        "table, message",
        [
            (EMBEDDINGS.astype(np.float64), "float64"),
            (EMBEDDINGS[:-1], r"\(50, 5\).*expected float32 \(51, D\)"),
            (EMBEDDINGS.ravel(), "item embeddings"),
            (EMBEDDINGS + np.float32(1), "row 0"),
            (np.where(np.arange(51)[:, None] == 17, np.float32(np.nan), EMBEDDINGS), "item 17 is not finite"),
        ],
    )
    def test_embeddings(self, tmp_path: Path, table: np.ndarray, message: str):
        with pytest.raises(UserError, match=message):
            check_embeddings(table, N_ITEMS, "teacher")
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", 64)
        for split, ids in SPLITS.items():
            writer.export(split, ids, rank)
        with pytest.raises(UserError, match=message):
            writer.finish(SPLITS, table, FIELDS)
        assert not (tmp_path / "store").exists() and writer.partial.exists(), "the finished shards stay"


class _Killed(Exception):
    pass


class TestResume:
    def test_shard_size_does_not_change_a_byte(self, tmp_path: Path):
        every = [hashes(make(tmp_path / f"s{size}", size).folder) for size in (1, 7, 1000)]
        assert every[0] == every[1] == every[2]

    @settings(derandomize=True, max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(data=st.data())
    def test_killed_anywhere_it_ends_with_the_same_bytes(self, tmp_path_factory, data):
        """Die after some shards, lose some of the finished ones, leave rubbish, go on."""
        tmp_path = tmp_path_factory.mktemp("resume")
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        budget = data.draw(st.integers(0, 7), label="shards before the kill")
        calls = 0

        def mortal(ids: np.ndarray) -> TeacherRows:
            nonlocal calls
            calls += 1
            if calls > budget:
                raise _Killed
            return rank(ids)

        try:
            for split, ids in SPLITS.items():
                writer.export(split, ids, mortal)
        except _Killed:
            pass
        done = sorted(p.parent for p in writer.partial.rglob("manifest.json"))
        assert len(done) == min(budget, 7)
        for shard in done:
            what = data.draw(
                st.sampled_from(["keep", "delete", "half written", "no manifest"]), label=shard.name
            )
            if what == "delete":
                shutil.rmtree(shard)
            elif what == "half written":
                shard.rename(shard.with_name("." + shard.name))
            elif what == "no manifest":
                (shard / "manifest.json").unlink()
        kept = sum(
            len(np.load(p.parent / "sample_ids.npy")) for p in writer.partial.glob("*/[!.]*/manifest.json")
        )
        again = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        ranked = sum(again.export(split, ids, rank) for split, ids in SPLITS.items())
        assert ranked == sum(map(len, SPLITS.values())) - kept
        store = again.finish(SPLITS, EMBEDDINGS, FIELDS)
        assert hashes(store.folder) == hashes(make(tmp_path / "whole").folder)

    @pytest.mark.parametrize("parts", [2, 3])
    def test_several_processes_make_the_same_store(self, tmp_path: Path, parts: int):
        """Real processes side by side, each with its share of the shards."""
        context = multiprocessing.get_context("fork")
        workers = [
            context.Process(target=_export_part, args=(tmp_path / "store", (i, parts))) for i in range(parts)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
            assert worker.exitcode == 0
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        assert all(writer.export(split, ids, _never) == 0 for split, ids in SPLITS.items())
        store = writer.finish(SPLITS, EMBEDDINGS, FIELDS)
        assert hashes(store.folder) == hashes(make(tmp_path / "whole").folder)

    def test_a_missing_part_is_no_store(self, tmp_path: Path):
        _export_part(tmp_path / "store", (0, 2))
        writer = StoreWriter(tmp_path / "store", N_ITEMS, "log_likelihood", SHARD)
        with pytest.raises(UserError, match="has no manifest.json"):
            writer.finish(SPLITS, EMBEDDINGS, FIELDS)
        assert not (tmp_path / "store").exists()

    def test_two_writers_of_one_store_under_the_lock(self, tmp_path: Path):
        """The second waits, then finds a finished store; SIGKILL of a holder frees the lock."""
        context = multiprocessing.get_context("fork")
        holding = context.Event()
        victim = context.Process(target=_hold_for_ever, args=(tmp_path / "store", holding))
        victim.start()
        assert holding.wait(10)
        results = context.Queue()
        writers = [context.Process(target=_make_locked, args=(tmp_path / "store", results)) for _ in range(2)]
        for process in writers:
            process.start()
        os.kill(victim.pid, signal.SIGKILL)
        made = sorted(results.get(timeout=30) for _ in writers)
        for process in (victim, *writers):
            process.join(30)
        assert made == [False, True], "one made it, the other found it"
        assert hashes(tmp_path / "store") == hashes(make(tmp_path / "whole").folder)


def _never(ids: np.ndarray) -> TeacherRows:
    raise AssertionError("nothing is left to rank")


def _export_part(folder: Path, part: tuple[int, int]) -> None:
    writer = StoreWriter(folder, N_ITEMS, "log_likelihood", SHARD)
    for split, ids in SPLITS.items():
        writer.export(split, ids, rank, part)


def _hold_for_ever(folder: Path, holding) -> None:
    with lock(folder):
        holding.set()
        signal.pause()


def _make_locked(folder: Path, results) -> None:
    with lock(folder):
        missing = not (folder / "manifest.json").exists()
        if missing:
            make(folder)
    results.put(missing)
