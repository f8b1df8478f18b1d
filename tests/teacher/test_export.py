"""Filling a store: resume, processes, partial export, and what is refused before or while it is written."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from src.core import store_writer
from src.core.artifacts import write_manifest
from src.core.data_utils import InteractionData
from src.core.errors import Interrupted, UserError
from src.core.paths import ROOT
from src.core.teacher_store import TeacherStore
from src.teacher import export as export_module
from src.teacher.classical import ClassicalTeacher
from src.teacher.config import TeacherConfig, encoder_fingerprint
from src.teacher.export import export_ids, fill_store
from src.teacher.factory import build_teacher
from tests.teacher.conftest import compose_teacher
from tests.teacher.test_folds import files

KNN = ("teacher=knn", "teacher.export.top_k=10", "teacher.export.shard_size=100")


def test_the_forecast_comes_before_the_first_shard(demo_data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        store, _ = fill_store(compose_teacher(*KNN), demo_data, tmp_path / "fp", None)
    lines = [r.getMessage() for r in caplog.records]
    forecast = next(i for i, line in enumerate(lines) if line.startswith("forecast:"))
    n = sum(map(len, demo_data.splits.values()))
    assert f"forecast: {n} samples, K=10" in lines[forecast] and "hours at" in lines[forecast]
    assert forecast < next(i for i, line in enumerate(lines) if "ranks" in line)
    # the bytes of the forecast are those of the files, but for headers, embeddings and the manifest
    size = sum(p.stat().st_size for p in store.folder.rglob("*.npy"))
    assert abs(size - export_module.forecast_bytes(n, 10)) <= 3 * 5 * 128


def test_progress_counts_samples_and_says_what_is_left(demo_data, tmp_path, caplog, monkeypatch):
    """Every look at the clock is ten seconds later than the last one."""
    from src.core import logging as core_logging

    ticks = iter(range(0, 10**6, 10))
    monkeypatch.setattr(core_logging, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    with caplog.at_level(logging.INFO):
        fill_store(compose_teacher(*KNN), demo_data, tmp_path / "fp", None)
    told = [r.getMessage() for r in caplog.records if r.name == "progress"]
    n = len(demo_data.splits["train"])
    # the sixth shard of 100 ends at 60 s: 10 samples/s
    assert told[0] == f"export train: 600/{n} sample, 10.0/s, {(n - 600) / 10:.0f} s left"


def test_an_interrupted_export_goes_on_to_the_same_bytes(trained, demo_data, tmp_path, monkeypatch):
    """The LLM teacher with `rerank`; only the shards that are missing are ranked again."""
    teacher, _ = trained
    config = replace(
        teacher.config,
        export=replace(teacher.config.export, ranking="rerank", pool=12, top_k=5, shard_size=150),
    )
    whole, _ = fill_store(config, demo_data, tmp_path / "whole", None)
    ranked: list[int] = []
    real = export_module.build_teacher

    def stopping(*args, **kwargs):
        made = real(*args, **kwargs)
        rank = made.rank

        def stop(split, ids, k):
            if len(ranked) == 5:
                raise Interrupted(15)
            ranked.append(len(ids))
            return rank(split, ids, k)

        made.rank = stop
        return made

    monkeypatch.setattr(export_module, "build_teacher", stopping)
    with pytest.raises(Interrupted):
        fill_store(config, demo_data, tmp_path / "parted", None)
    monkeypatch.setattr(export_module, "build_teacher", real)
    store, _ = fill_store(config, demo_data, tmp_path / "parted", None)
    assert files(store.folder) == files(whole.folder)
    assert store.score_kind == "log_likelihood" and store.manifest["history_excluded"]
    again, reused = fill_store(config, demo_data, tmp_path / "parted", None)
    assert reused and again.manifest == store.manifest


def train_again(folder: Path, file: str) -> None:
    """What a training leaves that did not repeat bit by bit: one weight elsewhere, hashes that fit."""
    tensors = load_file(folder / file)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, folder / file)
    fields = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {k: v for k, v in fields.items() if k != "files"})


def encoder_of(config: TeacherConfig, data: InteractionData) -> str:
    return encoder_fingerprint(config.encoder, config.seed, data.fingerprint, None)


@pytest.fixture
def own_models(trained, teacher_roots, tmp_path, monkeypatch):
    """A copy of the trained models, to change: encoder, tiny LLM, teacher."""
    shutil.copytree(teacher_roots / "data" / "models", tmp_path / "data" / "models")
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path / "data"))
    return tmp_path / "data" / "models" / "demo"


@pytest.mark.parametrize("kind", ["knn", "markov", "popularity", "sasrec", "ilora"])
def test_shards_of_other_weights_are_not_mixed(kind, trained, own_models, demo_data, tmp_path, monkeypatch):
    """A stopped export, the teacher trained again to other weights: refused, and nothing is lost."""
    changes = {"top_k": 5, "shard_size": 300, "train_share": 0.2}
    if kind == "ilora":
        config = trained[0].config
        config = replace(config, export=replace(config.export, **changes))
    elif kind == "sasrec":
        config = compose_teacher("teacher=sasrec", *(f"teacher.export.{k}={v}" for k, v in changes.items()))
        config = replace(config, encoder=trained[0].config.encoder)
    else:
        config = compose_teacher(f"teacher={kind}", *(f"teacher.export.{k}={v}" for k, v in changes.items()))
    whole, _ = fill_store(config, demo_data, tmp_path / "whole", None)
    real = export_module.StoreWriter.finish

    def stopped(*args):
        raise Interrupted(15)

    monkeypatch.setattr(export_module.StoreWriter, "finish", stopped)
    with pytest.raises(Interrupted):
        fill_store(config, demo_data, tmp_path / "fp", None)
    monkeypatch.setattr(export_module.StoreWriter, "finish", real)
    shutil.rmtree(next((tmp_path / "fp.partial" / "test").glob("[!.]*")))
    before = files(tmp_path / "fp.partial")

    models = tmp_path / "kept"
    shutil.copytree(own_models, models)
    with monkeypatch.context() as patch:
        if kind == "ilora":
            train_again(own_models / "teacher" / trained[0].fingerprint, "head.safetensors")
        elif kind == "sasrec":
            train_again(own_models / "sasrec_encoder" / encoder_of(config, demo_data), "model.safetensors")
        else:  # a kNN of another version, say
            popularity = ClassicalTeacher._popularity
            patch.setattr(ClassicalTeacher, "_popularity", lambda self: popularity(self) * 1.001)
        with pytest.raises(
            UserError, match=r"weights \w{12}; expected \w{12}, those of .*delete .*fp.partial"
        ):
            fill_store(config, demo_data, tmp_path / "fp", None)
    assert files(tmp_path / "fp.partial") == before and not (tmp_path / "fp").exists()

    shutil.rmtree(own_models)
    shutil.move(models, own_models)
    store, _ = fill_store(config, demo_data, tmp_path / "fp", None)
    assert files(store.folder) == files(whole.folder)
    assert store.manifest["weights"] == whole.manifest["weights"]
    assert len(set(store.manifest["weights"].values())) == 1, "one teacher"


def test_a_teacher_is_not_put_on_an_encoder_trained_again(trained, own_models, demo_data):
    config = trained[0].config
    train_again(own_models / "sasrec_encoder" / encoder_of(config, demo_data), "model.safetensors")
    with pytest.raises(
        UserError, match=r"trained with an encoder of the weights \w{64}; expected \w{64}, those"
    ):
        build_teacher(config, demo_data).prepare(None)


def test_choices_and_rows_of_one_run_come_from_one_teacher(demo_data, tmp_path):
    """`run_teacher` asks the teacher about candidates after it found the store finished."""
    config = compose_teacher(*KNN)
    store, _ = fill_store(config, demo_data, tmp_path / "fp", None)
    teacher = build_teacher(config, demo_data)
    teacher.prepare(None)
    export_module.refuse_other_weights(store, teacher)
    teacher._pop = teacher._pop * 1.001
    with pytest.raises(
        UserError, match=r"fp was written by .* the weights \w{12}; expected \w{12}, those of"
    ):
        export_module.refuse_other_weights(store, teacher)
    del store.manifest["weights"]  # nothing says who wrote it
    with pytest.raises(UserError, match=r"the weights None; expected \w{12}, those of"):
        export_module.refuse_other_weights(store, teacher)


def test_a_distance_teacher_end_to_end(trained, demo_data, tmp_path):
    teacher, _ = trained
    embedding = replace(teacher.config.export.embedding, source="text")
    export = replace(
        teacher.config.export, ranking="grounding", beams=1, top_k=20, embedding=embedding, max_new_tokens=8
    )
    export = replace(export, train_share=0.05)
    store, _ = fill_store(replace(teacher.config, export=export), demo_data, tmp_path / "fp", None)
    assert store.score_kind == "distance" and store.manifest["ranking"] == "grounding"
    rows = store.rows("test")  # checks the order for this kind
    listed = rows.rankings == demo_data.targets(rows.sample_ids)[:, None]
    np.testing.assert_array_equal(rows.scores[listed], rows.target_scores[listed.any(axis=1)])
    assert store.item_embeddings().shape == (demo_data.n_items + 1, 32)


def test_bigrec_profile_is_plain_lora_on_1024_rows(demo_data):
    config = compose_teacher("teacher=bigrec")
    assert (config.lora.rank, config.lora.alpha, config.lora.experts) == (8, 16.0, 1)
    assert (config.train.samples, config.train.batch_size) == (1024, 128)
    assert config.prompt.candidates == 0 and config.prompt.mode == "text"
    teacher = build_teacher(config, demo_data)
    assert teacher.name == "bigrec" and teacher.score_kind == "distance"


SMALL_DEMO = (
    "dataset.demo.users=60",
    "dataset.demo.items=40",
    "dataset.demo.groups=4",
    "dataset.demo.interactions_per_user=8",
    "teacher.encoder.max_epochs=1",
    "teacher.export.top_k=20",
    "teacher.export.shard_size=40",
)


def launch(root: Path, processes: int, *overrides: str) -> TeacherStore:
    """`run_teacher` in a launch of its own, below `root`; the one store that is there after it."""
    env = {**os.environ, "ANYO_DATA_ROOT": str(root / "data"), "ANYO_RESULT_ROOT": str(root / "result")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "ANYO_VERBOSE": "1"}
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), "-m", "src.exp.run_teacher", *overrides],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{processes} process(es)" in done.stderr
    (manifest,) = (root / "data" / "teacher_outputs").glob("*/*/*[!y]/manifest.json")
    assert not list(manifest.parent.parent.glob("*.partial"))
    return TeacherStore(manifest.parent, json.loads(manifest.read_text())["dataset_fingerprint"])


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_of_one_launch_make_the_same_store(processes, tmp_path):
    """A teacher with two folds, the encoder trained on the way."""
    overrides = [*SMALL_DEMO, "teacher=sasrec", "teacher.encoder.width=16", "teacher.folds=2"]
    one, several = (launch(tmp_path / str(n), n, *overrides) for n in (1, processes))
    assert one.folder.name == several.folder.name
    assert files(one.folder) == files(several.folder)
    for n in (1, processes):
        assert len(list((tmp_path / str(n) / "result").glob("result_*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["hidden", "rerank", "trie"])
def test_an_llm_ranks_alike_in_one_two_and_three_processes(ranking, tmp_path):
    """One trained iLoRA, exported anew by every launch. Shards are ranked one by one, whoever ranks them."""
    llm = ("vocab_size=300", "hidden_size=32", "intermediate_size=48", "layers=1", "heads=2", "epochs=1")
    overrides = [
        *SMALL_DEMO,
        *(f"teacher.llm.tiny.{o}" for o in llm),
        "teacher.train.epochs=1",
        "teacher.train.samples=64",
        "teacher.objective.lm=0.5",
        f"teacher.export.ranking={ranking}",
        *{"hidden": [], "rerank": ["teacher.export.pool=20"], "trie": ["teacher.export.beams=20"]}[ranking],
    ]
    made = {}
    for processes in (1, 2, 3):
        store = launch(tmp_path, processes, *overrides)
        made[processes] = files(store.folder), store.manifest["files"]
        assert {len(store.rows(s).sample_ids) for s in ("train", "valid", "test")} == {296, 37}
        shutil.rmtree(tmp_path / "data" / "teacher_outputs")
    assert made[1] == made[2] == made[3]


def test_partial_export(demo_data, tmp_path):
    config = compose_teacher(*KNN)
    chosen = demo_data.splits["train"][[3, 5, 200, 201]]
    store, _ = fill_store(config, demo_data, tmp_path / "fp", None, chosen[::-1])
    assert store.manifest["n_samples"]["train"] == 4
    np.testing.assert_array_equal(store.rows("train").sample_ids, chosen)
    np.testing.assert_array_equal(store.rows("test").sample_ids, demo_data.splits["test"])
    foreign = np.append(chosen, demo_data.splits["test"][0])
    with pytest.raises(UserError, match="is no training sample"):
        export_ids(config.export, 1, demo_data, foreign)


class TestRefusals:
    def test_a_disk_too_small_for_the_forecast(self, demo_data, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")(10**6, 0, 5_000)
        monkeypatch.setattr(export_module.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(UserError, match=r"0.00 GiB free at .*; expected .* GiB for \d+ rows"):
            fill_store(compose_teacher(*KNN), demo_data, tmp_path / "fp", None)

    @pytest.mark.parametrize("where", ["shard", "finish"])
    def test_a_disk_that_fills_up_loses_nothing_finished(self, demo_data, tmp_path, monkeypatch, where):
        config = compose_teacher(*KNN)
        whole, _ = fill_store(config, demo_data, tmp_path / "whole", None)
        name, calls = ("save_npy", 22) if where == "shard" else ("publish", 12)
        real, seen = getattr(store_writer, name), []

        def full(*args, **kwargs):
            seen.append(args)
            if len(seen) > calls:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        if where == "finish":  # the shards are done; the joined store does not fit
            calls = sum(1 for s in demo_data.splits.values() for _ in range(0, len(s), 100))
        monkeypatch.setattr(store_writer, name, full)
        with pytest.raises(UserError, match=r"no space left for .*finished shards are kept"):
            fill_store(config, demo_data, tmp_path / "fp", None)
        monkeypatch.undo()
        assert not (tmp_path / "fp").exists()
        done = list((tmp_path / "fp.partial").glob("*/[!.]*/manifest.json"))
        assert len(done) == (5 if where == "shard" else calls)
        assert not list((tmp_path / "fp.partial").glob("*/.*")), "what did not fit gives its room back"
        store, _ = fill_store(config, demo_data, tmp_path / "fp", None)
        assert files(store.folder) == files(whole.folder)

    def test_a_truncated_shard_is_named(self, demo_data, tmp_path, monkeypatch):
        config = compose_teacher(*KNN)
        real = export_module.StoreWriter.finish

        def cut(self, *args):
            shard = sorted((self.partial / "train").glob("[!.]*"))[1]
            with open(shard / "scores.npy", "r+b") as f:
                f.truncate(100)
            return real(self, *args)

        monkeypatch.setattr(export_module.StoreWriter, "finish", cut)
        with pytest.raises(UserError, match=r"scores.npy does not have the hash of its manifest.*delete"):
            fill_store(config, demo_data, tmp_path / "fp", None)

    def test_a_list_longer_than_the_catalogue(self, demo_data, tmp_path):
        """It is the whole catalogue, and the log says so."""
        config = compose_teacher("teacher=knn", "teacher.export.top_k=1000")
        store, _ = fill_store(config, demo_data, tmp_path / "fp", None)
        assert store.top_k == demo_data.n_items == len(np.unique(store.rows("test").rankings[0]))

    def test_a_store_under_the_name_of_another_configuration(self, demo_data, tmp_path):
        """Renamed by hand, it would be reused for settings that did not make it."""
        store, _ = fill_store(compose_teacher(*KNN), demo_data, tmp_path / "fp", None)
        store.folder.rename(tmp_path / "other")
        with pytest.raises(UserError, match="teacher_fingerprint is 'fp'; expected 'other'"):
            fill_store(compose_teacher(*KNN), demo_data, tmp_path / "other", None)


def test_rows_do_not_depend_on_the_shards(trained, demo_data, tmp_path):
    """Several shard sizes: the same rankings; scores within float32 rounding."""
    teacher, _ = trained
    stores = []
    for size in (37, 400):
        export = replace(
            teacher.config.export, ranking="rerank", pool=12, top_k=5, shard_size=size, train_share=0.1
        )
        config = replace(teacher.config, export=export)
        stores.append(fill_store(config, demo_data, tmp_path / str(size), None)[0])
    a, b = (s.rows("test") for s in stores)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
