"""Bad artifacts: prepared datasets, stores, students, selections, checkpoints, official files, run folders."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from src.core.artifacts import save_npy
from src.core.data_utils import _open
from src.core.teacher_store import TeacherStore
from tests.robustness.cases import Box, Case
from tests.robustness.conftest import copy_of, reseal

Damage = Callable[[Path], object]


def _edit(file: str, change: Callable[[dict], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / file
        value = json.loads(path.read_text())
        value.pop("sha256", None)  # a manifest's own hash would show the change first
        path.write_text(json.dumps(change(value) or value))

    return damage


def _text(file: str, text: str) -> Damage:
    return lambda folder: (folder / file).write_text(text)


def _gone(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def _array(file: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    return lambda folder: save_npy(folder / file, change(np.load(folder / file)))


def _at(index: object, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def _sealed(damage: Damage) -> Damage:
    """Damage that no hash can show: the manifest is made anew."""

    def both(folder: Path) -> None:
        damage(folder)
        reseal(folder)

    return both


def _dataset(name: str, damage: Damage, *says: str) -> Case:
    def run(box: Box) -> None:
        folder = copy_of(box.good.dataset, box.folder / "dataset")
        damage(folder)
        _open(box.good.config, box.good.data.fingerprint, folder).check_no_leaks(box.good.config)

    return Case(f"dataset: {name}", run, says)


def _store(name: str, damage: Damage, *says: str) -> Case:
    def run(box: Box) -> None:
        folder = copy_of(box.good.store, box.folder / "store")
        damage(folder)
        store = TeacherStore(folder, box.good.data.fingerprint)
        from src.distill.data_bridge import join_rows

        store.item_embeddings()
        for split, ids in box.good.data.splits.items():
            store.rows_of(split, ids)
        join_rows(store, box.good.data, 5)

    return Case(f"store: {name}", run, says)


def _student(name: str, damage: Damage, *says: str) -> Case:
    def run(box: Box) -> None:
        from src.student.serving import load_student

        folder = copy_of(box.good.student, box.folder / "student")
        damage(folder)
        load_student(folder)

    return Case(f"student: {name}", run, says)


def _selection(name: str, damage: Damage, *says: str) -> Case:
    def run(box: Box) -> None:
        from src.distill.selection import read_selection

        folder = copy_of(box.good.selection, box.folder / "selection")
        damage(folder)
        read_selection(folder, box.good.data.fingerprint, box.good.data.splits["train"])

    return Case(f"selection: {name}", run, says)


def artifact_cases() -> Iterator[Case]:
    kinds = (
        (_dataset, "split_train.npy"),
        (_store, "train/scores.npy"),
        (_student, "model.safetensors"),
        (_selection, "weights.npy"),
    )
    for make, file in kinds:  # what every artifact with a manifest must refuse
        yield make("no manifest", _gone("manifest.json"), "no manifest.json", "a completed artifact")
        yield make("half a manifest", _text("manifest.json", '{"files": {'), "manifest.json cannot be read")
        yield make("a manifest that is a list", _text("manifest.json", "[]"), "has no list of files")
        yield make("an empty manifest", _text("manifest.json", ""), "manifest.json cannot be read")
        yield make("a file is gone", _gone(file), f"{file} is missing")
        yield make("a file is empty", _text(file, ""), f"{file} does not have the hash")
        other = _edit("manifest.json", lambda m: m.update(dataset_fingerprint="0" * 12))
        version = _edit("manifest.json", lambda m: m.update(format_version=99))
        if make is not _student:  # a student may serve without its dataset
            yield make("another dataset", other, "'000000000000'", "expected '")
        yield make("another version", version, "format_version is 99")
        yield make(
            "files outside",
            _edit("manifest.json", lambda m: m["files"].update({"../x": "0"})),
            "../x is missing",
        )
        yield make("an empty file, sealed", _sealed(_text(file, "")), file)
        yield make("text for numbers, sealed", _sealed(_text(file, "1 2 3")), file)
    yield from _datasets()
    yield from _stores()
    yield from _students()
    yield from _selections()
    yield from _checkpoints()
    yield from _official()
    yield from _runs()


def _datasets() -> Iterator[Case]:
    def sealed(name: str, damage: Damage, *says: str) -> Case:
        return _dataset(f"{name}, sealed", _sealed(damage), *says)

    yield sealed("an item beyond the catalogue", _array("items.npy", _at(0, 10_000)), "items.npy", "1..")
    yield sealed("an item 0", _array("items.npy", _at(0, 0)), "items.npy", "1..")
    yield sealed("items as floats", _array("items.npy", lambda a: a.astype(float)), "items.npy", "float64")
    yield sealed("a row less", _array("times.npy", lambda a: a[:-1]), "times.npy")
    yield sealed("offsets that end early", _array("offsets.npy", lambda a: a[:-1]), "offsets.npy")
    yield sealed("offsets that fall", _array("offsets.npy", _at(1, 10_000)), "offsets.npy")
    yield sealed(
        "a sample twice",
        _array("split_test.npy", lambda a: np.append(a, a[-1])),
        "test targets are not ascending",
    )
    yield sealed(
        "a sample beyond the table",
        _array("split_test.npy", lambda a: np.append(a, 10**9)),
        "split_test.npy: sample ids",
    )
    yield sealed("a negative sample", _array("split_valid.npy", _at(0, -1)), "split_valid.npy: sample ids -1")
    yield sealed("a matrix of samples", _array("split_valid.npy", lambda a: a[:, None]), "split_valid.npy")
    yield sealed("an empty split", _array("split_test.npy", lambda a: a[:0]), "split_test.npy")
    yield sealed("times that fall", _array("times.npy", lambda a: a[::-1].copy()), "not in time order")

    def share(folder: Path) -> None:
        valid, test = (np.load(folder / f"split_{s}.npy") for s in ("valid", "test"))
        save_npy(folder / "split_test.npy", np.union1d(valid[-1:], test))

    yield sealed("a sample in two splits", share, "stands in two splits")

    def without_titles(folder: Path) -> None:
        table = pd.read_parquet(folder / "catalogue.parquet").drop(columns="title")
        table.to_parquet(folder / "catalogue.parquet", index=False)

    yield sealed("a catalogue without titles", without_titles, "catalogue.parquet", "title")
    yield sealed("no parquet", _text("catalogue.parquet", "raw_id,title"), "catalogue.parquet cannot be read")


def _stores() -> Iterator[Case]:
    def sealed(name: str, damage: Damage, *says: str) -> Case:
        return _store(f"{name}, sealed", _sealed(damage), *says)

    # What a row must keep: tests/core/test_teacher_store.py, TestContract.
    ids = "train/sample_ids.npy"
    yield sealed("a row less", _array(ids, lambda a: a[:-1]), "train: ")
    yield sealed("foreign samples", _array(ids, lambda a: a + 10**6), "has no row for sample")
    yield sealed(
        "rows out of order", _array("valid/sample_ids.npy", lambda a: a[::-1].copy()), "not ascending"
    )
    for key, value in (
        ("top_k", 7),
        ("top_k", "10"),
        ("n_items", 0),
        ("embedding_dim", 5),
        ("score_kind", "cosine"),
    ):
        damage = _edit("manifest.json", lambda m, k=key, v=value: m.update({k: v}))
        yield _store(
            f"{key}={value!r}",
            damage,
            "top_k" if key == "top_k" else key if key != "embedding_dim" else "embedding_dim 5",
        )
    yield _store(
        "another catalogue", _edit("manifest.json", lambda m: m.update(n_items=31)), "float32 (32, D)"
    )

    def no_vectors(folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"other": np.zeros((30, 4), np.float32)}, folder / "item_embeddings.safetensors")

    def padded(folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"item_embeddings": np.ones((30, 4), np.float32)}, folder / "item_embeddings.safetensors")

    yield sealed("no item vectors", no_vectors, "item_embeddings.safetensors", "a tensor item_embeddings")
    yield sealed("a vector for padding", padded, "row 0 of the item embeddings is not zero")

    def too_long(box: Box) -> None:
        from src.distill.data_bridge import join_rows

        join_rows(TeacherStore(box.good.store, box.good.data.fingerprint), box.good.data, 99)

    yield Case("store: shorter than top_k", too_long, ("distill.top_k=99", "<= 10", "teacher.export.top_k"))


def _students() -> Iterator[Case]:
    def sealed(name: str, damage: Damage, *says: str) -> Case:
        return _student(f"{name}, sealed", _sealed(damage), *says)

    def config(**changes: object) -> Damage:
        return _edit("student.json", lambda s: s["config"].update(changes))

    yield sealed("another width", config(width=16), "model.safetensors does not fit its config")
    yield sealed("another architecture", config(architecture="gru4rec"), "does not fit its config")
    yield sealed("a key nobody knows", config(depth=3), "student.json: config.depth: unknown key")
    yield sealed(
        "a key less", _edit("student.json", lambda s: s["config"].pop("width") and None), "width: missing"
    )
    yield sealed(
        "no config", _edit("student.json", lambda s: {"n_items": 30, "max_history": 10}), "student.json"
    )
    yield sealed(
        "items as text", _edit("student.json", lambda s: s.update(n_items="30")), "student.json", "n_items"
    )
    yield sealed("a list", _text("student.json", "[1]"), "student.json holds a list")
    yield sealed("no titles", _edit("catalogue.json", lambda c: c.pop("titles") and None), "catalogue.json")
    yield sealed(
        "an item less",
        _edit("catalogue.json", lambda c: c["raw_ids"].pop() and None),
        "catalogue.json",
        "29 items",
    )


def _selections() -> Iterator[Case]:
    def sealed(name: str, damage: Damage, *says: str) -> Case:
        return _selection(f"{name}, sealed", _sealed(damage), *says)

    yield sealed("a weight of zero", _array("weights.npy", _at(0, 0)), "finite weights > 0")
    yield sealed("a weight that is none", _array("weights.npy", _at(0, np.nan)), "finite weights > 0")
    yield sealed("falling ids", _array("sample_ids.npy", lambda a: a[::-1].copy()), "not rising")
    yield sealed("a foreign id", _array("sample_ids.npy", _at(-1, 10**6)), "no training sample")
    yield sealed("a weight less", _array("weights.npy", lambda a: a[:-1]), "as many weights")


def _checkpoints() -> Iterator[Case]:
    def case(name: str, content: bytes | object, *says: str) -> Case:
        def run(box: Box) -> None:
            import torch

            from src.student.checkpoint import load_checkpoint

            path = box.folder / "checkpoint.pt"
            buffer = io.BytesIO(content if isinstance(content, bytes) else b"")
            if not isinstance(content, bytes):
                torch.save(content, buffer)
            # The hash that `save_checkpoint` writes first, so that the content is looked at.
            path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
            if name.startswith("half"):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            load_checkpoint(path, "f" * 12)

        return Case(f"checkpoint: {name}", run, (*says, "checkpoint.pt", "to train anew"))

    yield case("empty", b"", "cannot be read")
    yield case("text", b"weights", "cannot be read")
    yield case("half of it", {"format_version": 1, "x": list(range(5000))}, "is damaged")
    yield case("a list", [1, 2], "is no checkpoint of format 1")
    yield case(
        "another format", {"format_version": 0, "fingerprint": "f" * 12}, "is no checkpoint of format 1"
    )
    yield case("another training", {"format_version": 1, "fingerprint": "e" * 12}, "eeeeeeeeeeee")
    yield case("no fingerprint", {"format_version": 1}, "fingerprint None")
    yield case("code", {"format_version": 1, "fingerprint": "f" * 12, "x": Path("/etc")}, "cannot be read")

    def foreign(box: Box) -> None:
        """The right name, and the tensors of another program."""
        from src.core.config import build_or_raise
        from src.core.metrics import EvalConfig
        from src.student.checkpoint import save_checkpoint
        from src.student.config import StudentConfig
        from src.student.trainer_baseline import train_student
        from tests.robustness.conftest import student_values

        config = build_or_raise(StudentConfig, student_values(), "student")
        save_checkpoint(box.folder / "checkpoint.pt", {"fingerprint": "f" * 12, "progress": {}})
        evaluation = EvalConfig((10,), "NDCG@10", False, 64, None)
        train_student(config, box.good.data, evaluation, seed=0, folder=box.folder, fingerprint="f" * 12)

    yield Case("checkpoint: parts are missing", foreign, ("checkpoint.pt", "to train anew"))


def _official() -> Iterator[Case]:
    def case(name: str, damage: Damage, *says: str) -> Case:
        def run(box: Box) -> None:
            from src.distill.official_files import read_official, write_official

            store = TeacherStore(box.good.store, box.good.data.fingerprint)
            ids = box.good.data.splits["train"]
            folder = box.folder / "official"
            write_official(folder, store, ids)
            damage(folder)
            read_official(folder, ids, box.good.data.n_items)

        return Case(f"official files: {name}", run, says)

    ranks, distances, vectors = "myrank_train.txt", "confidence_train.txt", "all_embeddings.pt"

    def row(file: str, text: str) -> Damage:
        def damage(folder: Path) -> None:
            lines = (folder / file).read_text().splitlines()
            (folder / file).write_text("\n".join([text, *lines[1:]]))

        return damage

    numbers = " ".join(map(str, range(9)))
    yield case("no ranking", _gone(ranks), f"{ranks} cannot be read")
    yield case("no distances", _gone(distances), f"{distances} cannot be read")
    yield case("no vectors", _gone(vectors), f"{vectors} cannot be read")
    yield case("words", row(ranks, "a b c d e f g h i j"), f"{ranks} cannot be read")
    yield case("an empty ranking", _text(ranks, ""), f"{ranks} is empty")
    yield case("a short line", row(ranks, "1 2 3"), ranks)
    yield case("ids from 1", row(ranks, numbers + " 29"), "0..28")
    yield case("a negative id", row(ranks, numbers + " -1"), "0..28")
    yield case("half an item", row(ranks, numbers + " 9.5"), "no integers")
    yield case("nan as item", row(ranks, numbers + " nan"), "no integers")
    yield case("falling distances", row(distances, "9 8 7 6 5 4 3 2 1 0"), "not best first")
    yield case("infinite distances", row(distances, numbers + " inf"), "not finite")
    yield case("text for vectors", _text(vectors, "x"), f"{vectors} cannot be read")
    yield case(
        "a row less",
        lambda f: (f / ranks).write_text("\n".join((f / ranks).read_text().splitlines()[1:])),
        "one per sample id",
    )


def _runs() -> Iterator[Case]:
    def case(name: str, damage: Damage, *says: str, sealed: bool = True) -> Case:
        def run(box: Box) -> None:
            from src.exp.compare import load_row
            from tests.exp.test_compare import seal, write_run

            folder = write_run(box.folder / "run", "student_baseline", box.good.data, rank=3)
            damage(folder)
            if sealed:  # what another program may have written, hashes and all
                seal(folder, "student_baseline", "student_baseline03")
            load_row("mine", [folder], box.good.data).times()

        return Case(f"run: {name}", run, says)

    status, metrics = "status.json", "metrics/metrics.json"
    yield case("no status", _gone(status), "status.json is missing")
    yield case("half a status", _text(status, '{"state": "comp'), "status.json cannot be read")
    yield case("a status that is a list", _text(status, "[]"), "status.json holds a list")
    yield case("failed", _edit(status, lambda s: s.update(state="failed")), "'failed'", "compare.runs.mine")
    yield case(
        "running", _edit(status, lambda s: s.update(state="running")), "'running'", "compare.runs.mine"
    )
    yield case("no metrics", _gone(metrics), "has no metrics/metrics.json")
    changed = "does not have the hash of its manifest"
    flip = _array("metrics/test_ranks.npy", lambda a: a[::-1] + 1)
    yield case("changed ranks", flip, "test_ranks.npy", changed, sealed=False)
    yield case("changed metrics", _edit(metrics, lambda m: m.update(seed=5)), changed, sealed=False)
    yield case("no manifest", _gone("metrics/manifest.json"), "manifest.json", sealed=False)
    for value in (float("nan"), "0.1", None, 2.0):
        damage = _edit(metrics, lambda m, value=value: m["valid"].update({"NDCG@10": value}))
        yield case(f"a validation metric of {value!r}", damage, "valid NDCG@10", "a number from 0 to 1")
    yield case("no validation", _edit(metrics, lambda m: m.pop("valid") and None), "no metrics of valid")
    yield case("metrics that are a number", _text(metrics, "3"), "metrics.json holds a int")
    yield case(
        "of another stage",
        _edit(status, lambda s: s.update(stage="eval_all")),
        "a run of eval_all",
        sealed=False,
    )
    yield case(
        "of another dataset",
        _edit(metrics, lambda m: m.update(dataset_fingerprint="0")),
        "is of dataset demo/0",
    )
    yield case(
        "no lengths of lists",
        _edit(metrics, lambda m: m.pop("list_lengths") and None),
        "has no list_lengths",
    )
    yield case("no ranks", _gone("metrics/test_ranks.npy"), "has no metrics/test_ranks.npy")
    yield case("other samples", _array("metrics/test_sample_ids.npy", lambda a: a + 1), "other samples")
    yield case(
        "a rank less", _array("metrics/test_ranks.npy", lambda a: a[:-1]), "test_ranks.npy", "ranks from 1 on"
    )
    yield case("a rank of zero", _array("metrics/test_ranks.npy", _at(0, 0)), "ranks from 1 on")
    yield case("ranks as numbers with a point", _array("metrics/test_ranks.npy", lambda a: a / 2), "float64")
    yield case(
        "half an array",
        lambda f: (f / "metrics/test_ranks.npy").write_bytes(b"\x93NUMPY\1\0"),
        "test_ranks.npy cannot be read",
    )
    yield case("times that are a list", _text("metrics/time.json", "[1]"), "time.json holds a list")

    def no_folder(box: Box) -> None:
        from src.exp.compare import load_row

        load_row("mine", [box.folder / "nothing"], box.good.data)

    yield Case("run: no folder", no_folder, ("nothing/status.json is missing",))

    def unknown_item(box: Box) -> None:
        from src.student.serving import load_student

        load_student(box.good.student).recommend(["no such id"])

    def too_many(box: Box) -> None:
        from src.student.serving import load_student

        load_student(box.good.student).recommend(["1"], k=30, exclude_history=True)

    yield Case("serving: an unknown item", unknown_item, ("unknown item 'no such id'", "the history"))
    yield Case("serving: more items than there are", too_many, ("k=30", "1..28"))
