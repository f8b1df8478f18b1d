"""Settings without a running Hydra: equal to Hydra's own, cheap by the thousand."""

from __future__ import annotations

import time

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.core.errors import ConfigError
from src.core.paths import CONF
from src.exp.overrides import compose_values
from src.exp.settings import Settings

COMMANDS = [
    (),
    ("seed=7", "distill.lam=0.5", "eval.ks=[1,10]", "compare.metrics=[NDCG@10]"),
    ("student=gru4rec", "student.lr=1e-4", "student.name='two words'"),
    ("teacher=fused", "~teacher.members.ilora", "teacher.embeddings=[sasrec]", "teacher.seed=3"),
    ("teacher/llm=local", "teacher.llm.path=/models/x", "teacher/prompt=movie"),
    ("teacher.seed=${seed}", "seed=5", "dataset=csv", "dataset.csv.rating=stars"),
    ("active=diversity", "active.options={clusters: 7}", "+compare.variants.x=['distill.lam=1']"),
    ("teacher.llm.tiny=null", "eval.candidates=null", "seed=1", "seed=2"),
    ("student.lr=0.1", "student=caser", "dataset.split_times=['2015-01-01','2016-01-01']"),
]


@pytest.mark.parametrize("overrides", COMMANDS, ids=" ".join)
def test_values_are_those_of_hydra(overrides: tuple[str, ...]) -> None:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        expected = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    assert compose_values(overrides) == expected
    assert compose_values(overrides) == expected, "and again, from what was kept"


def test_a_variant_adds_to_the_overrides() -> None:
    settings = Settings.compose(["seed=3", "teacher.train.epochs=2"]).with_seed(4)
    variant = settings.variant(["distill.lam=0"])
    assert (variant.seed, variant.teacher.train.epochs, variant.distill.lam) == (4, 2, 0)
    other = settings.variant(["teacher=knn"])
    assert (other.teacher.kind, other.seed) == ("knn", 4)


@pytest.mark.parametrize("override", ["student.nosuch=1", "student=nosuch", "student.lr=[", "nosuch=1"])
def test_what_fits_nothing_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        Settings.compose([override])


def test_ten_thousand_rows_take_seconds() -> None:
    Settings.compose([])
    start = time.process_time()
    for row in range(100):
        Settings.compose([f"seed={row}", f"distill.lam={row / 100}", "student=gru4rec"])
    assert time.process_time() - start < 100 * 0.02, "10,000 rows would take minutes"


def prints(*overrides: str) -> tuple[str, str, str]:
    settings = Settings.compose(overrides)
    return settings.teacher_fp, settings.baseline_fp, settings.distill_fp


SAME = [
    ("eval.ks=[1,10]", "compare.metrics=[NDCG@10]"),
    ("eval.exclude_history=true",),
    ("eval.batch_size=64",),
    ("eval.candidates=null",),
    ("compare.draws=20000",),
    ("student.name=mine",),
    ("distill.name=mine",),
    ("teacher.name=mine",),
    ("teacher.encoder.name=mine",),
    ("student.device=cpu", "teacher.train.device=cpu"),
    ("teacher.export.batch_size=8", "teacher.export.shard_size=16", "teacher.train.micro_batch_size=8"),
    ("teacher.train.checkpoint_minutes=1.0", "teacher.train.show_answers=0"),
    ("dry_run=true",),
]


@pytest.mark.parametrize("overrides", SAME, ids=" ".join)
def test_what_is_only_reported_is_in_no_fingerprint(overrides: tuple[str, ...]) -> None:
    assert prints(*overrides) == prints()


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("eval.select_metric=Recall@10", (False, True, True)),
        ("seed=7", (False, True, True)),
        ("teacher.seed=7", (True, False, True)),
        ("teacher.export.top_k=50", (True, False, True)),
        ("student.lr=0.01", (False, True, True)),
        ("distill.lam=0.5", (False, False, True)),
        ("dataset.max_history=5", (True, True, True)),
    ],
)
def test_what_determines_weights_and_rankings_is(override: str, changed: tuple[bool, ...]) -> None:
    assert tuple(a != b for a, b in zip(prints(override), prints(), strict=True)) == changed


def test_a_key_that_is_not_read_is_in_no_fingerprint() -> None:
    """Without rankings their settings change nothing; a table may still hold them."""
    none = Settings.compose(["distill.lam=0"])
    assert Settings.compose(["distill.lam=0", "distill.top_k=20"]).distill_fp == none.distill_fp
    lax = Settings.compose(["student.negatives=9"], strict=False)
    assert lax.baseline_fp == Settings.compose([]).baseline_fp
    assert lax.unread == ["student.negatives: found 9, not read with base_loss=ce, expected base_loss=gbce"]


def test_a_sweep_over_students_shares_one_teacher() -> None:
    settings = [Settings.compose([f"seed={seed}"]) for seed in (1, 2, 3)]
    assert len({s.teacher_fp for s in settings}) == 1 and len({s.distill_fp for s in settings}) == 3
