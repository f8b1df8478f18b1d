"""Bad configurations: unknown keys, values out of range, contradictions within and across groups."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from src.exp.overrides import compose_values
from src.exp.settings import Settings
from tests.robustness.cases import Box, Case

GONE = object()


def load(changes: dict[str, Any], *groups: str) -> Settings:
    """The settings of a shipped configuration with some keys (dotted) changed; GONE deletes one."""
    values = copy.deepcopy(compose_values(groups))
    for key, value in changes.items():
        *path, last = key.split(".")
        at = values
        for name in path:
            at = at[name]
        if value is GONE:
            del at[last]
        else:
            at[last] = value
    return Settings.load(OmegaConf.create(values))


def _case(name: str, changes: dict[str, Any], *says: str, groups: tuple[str, ...] = ()) -> Case:
    def run(box: Box) -> None:
        load(changes, *groups)

    return Case(f"config: {name}", run, says)


# key, bad value, what the line says
VALUES: tuple[tuple[str, Any, str], ...] = (
    ("seed", -1, "config.seed: found -1, expected >= 0"),
    ("seed", "today", "config.seed: found 'today', expected int"),
    ("seed", True, "config.seed: found True, expected int"),
    ("skip_if_done", "yes", "config.skip_if_done: found 'yes', expected bool"),
    ("dataset.name", "../../etc", "dataset.name: found '../../etc', expected a name"),
    ("dataset.name", "/tmp", "dataset.name: found '/tmp', expected a name"),
    ("dataset.name", "", "dataset.name: found '', expected a name"),
    ("dataset.name", ".hidden", "dataset.name: found '.hidden'"),
    ("dataset.reader", "netflix", "dataset.reader: found 'netflix', expected one of"),
    ("dataset.min_history", 0, "dataset.min_history: found 0, expected >= 1"),
    ("dataset.max_history", 2.5, "dataset.max_history: found 2.5, expected int"),
    ("dataset.max_history", None, "dataset.max_history: found None, expected int"),
    ("dataset.split", "random", "dataset.split: found 'random', expected one of"),
    ("dataset.split_ratio", [0.5, 0.5], "dataset: split_ratio: found [0.5, 0.5], expected three shares"),
    ("dataset.split_ratio", [0.9, 0.2, -0.1], "dataset.split_ratio: found -0.1, expected >= 0"),
    ("dataset.split_ratio", "80/10/10", "dataset.split_ratio: found '80/10/10', expected a list"),
    ("dataset.split_times", ["soon", "later"], "dataset: split_times:"),
    ("dataset.split_times", ["2020-01-01", "2019-01-01"], "expected two ascending times"),
    ("dataset.demo", None, "dataset: demo: found null with reader=demo"),
    ("dataset.demo.groups", 99, "dataset.demo.groups: found 99, expected <= 16"),
    ("dataset.demo", [1, 2], "dataset.demo: found [1, 2], expected a group of settings"),
    ("dataset.bad_times", "ignore", "dataset.bad_times: found 'ignore'"),
    ("student.architecture", "bert4rec", "student.architecture: found 'bert4rec'"),
    ("student.width", 0, "student.width: found 0, expected >= 1"),
    ("student.lr", 0.0, "student.lr: found 0.0, expected > 0"),
    ("student.lr", float("nan"), "student.lr: found nan, expected a finite number"),
    ("student.lr", float("inf"), "student.lr: found inf, expected a finite number"),
    ("student.lr", "1e-3", "student.lr: found '1e-3', expected float"),
    ("student.dropout", 1.0, "student.dropout: found 1.0, expected < 1"),
    ("student.batch_size", 10**400, "student.batch_size: found a number of 1329 bits"),
    ("student.device", "cuda:9", "student.device: found 'cuda:9', expected one of auto"),
    ("distill.lam", -0.1, "distill.lam: found -0.1, expected >= 0"),
    ("distill.rd_loss", "mse", "distill.rd_loss: found 'mse', expected one of"),
    ("distill.beta_pos", 0, "distill.beta_pos: found 0.0, expected > 0"),
    ("distill.embedding", "concat", "distill.embedding: found 'concat'"),
    ("active.policy", "oracle", "active: policy: found 'oracle', expected one of"),
    ("active.share", 0.5, "active: share, count: found share, expected neither"),
    ("active.refresh_every", 2, "active: refresh_every: found 2, expected null"),
    ("active.options", {"temperature": 1}, "temperature: unknown key"),
    ("eval.ks", [], "eval: select_metric"),
    ("eval.ks", [0, 10], "eval.ks: found 0, expected >= 1"),
    ("eval.ks", ["10"], "eval.ks: found '10', expected int"),
    ("eval.select_metric", "NDCG@7", "select_metric: found 'NDCG@7'"),
    ("eval.select_metric", "NDCG@010", "select_metric: found 'NDCG@010'"),
    ("eval.select_metric", "NDCG@²", "select_metric: found 'NDCG@²'"),
    ("eval.batch_size", 0, "eval.batch_size: found 0, expected >= 1"),
    ("eval.candidates", 20, "eval.candidates: found 20, expected a group of settings"),
    ("eval.candidates.count", 1, "eval.candidates.count: found 1, expected >= 2"),
    ("eval.candidates.draws", 0, "eval.candidates.draws: found 0, expected >= 1"),
    ("eval.candidates.samples", 0, "eval.candidates.samples: found 0, expected >= 1"),
    ("compare.draws", 10, "compare.draws: found 10, expected >= 100"),
    ("compare.metrics", ["NDCG@7"], "compare.metrics: found NDCG@7, expected one of"),
    ("compare.metrics", ["MRR@10"], "compare.metrics: found MRR@10, expected one of"),
    ("compare.seeds", [-1], "compare.seeds: found -1"),
    ("compare.variants", {"x": "distill.lam=0"}, "variants.x: found 'distill.lam=0', expected a list"),
    ("compare.runs", ["a"], "compare.runs: found ['a'], expected dict"),
    ("teacher.kind", "gpt", "teacher.kind: found 'gpt', expected one of ilora"),
    ("teacher.name", "a/b", "teacher.name: found 'a/b', expected a name"),
    ("teacher.seed", -3, "teacher.seed: found -3"),
    ("teacher.lora.experts", 3, "found rank=8 and experts=3, expected rank divisible by experts"),
    ("teacher.lora.dropout", 1.5, "teacher.lora.dropout: found 1.5"),
    ("teacher.lora.targets", "q_proj", "teacher.lora.targets: found 'q_proj', expected a list"),
    ("teacher.gate.kind", "transformer", "teacher.gate.kind: found 'transformer'"),
    ("teacher.gate.temperature", 0.0, "teacher.gate.temperature: found 0.0, expected > 0"),
    ("teacher.objective.temperature", -1.0, "teacher.objective.temperature: found -1.0"),
    ("teacher.llm.kind", "openai", "teacher.llm.kind: found 'openai'"),
    ("teacher.llm.dtype", "float64", "teacher.llm.dtype: found 'float64'"),
    ("teacher.llm.trust_remote_code", "true", "teacher.llm.trust_remote_code: found 'true', expected bool"),
    ("teacher.llm.revision", "main", "llm.revision: found 'main' with kind=tiny, expected null"),
    ("teacher.llm.tiny.heads", 3, "expected heads of equal, even width"),
    ("teacher.llm.tiny", None, "llm.tiny: found null with kind=tiny"),
    ("teacher.prompt.candidates", 1, "prompt.candidates: found 1, expected 0 or at least 2"),
    ("teacher.prompt.train", [], "prompt.train: found no wording"),
    ("teacher.prompt.item", "{title}", "prompt.item"),
    ("teacher.prompt.evaluation.prefix", "What next?", "found 0 times {history}, expected once"),
    ("teacher.train.batch_size", 0, "teacher.train.batch_size: found 0"),
    ("teacher.train.precision", "fp8", "teacher.train.precision: found 'fp8'"),
    ("teacher.train.precision", False, "teacher.train.precision: found False, expected str"),
    ("teacher.overfit", 0, "teacher.overfit: found 0, expected >= 1"),
    ("teacher.export.top_k", 0, "teacher.export.top_k: found 0, expected >= 1"),
    ("teacher.export.train_share", 0.0, "teacher.export.train_share: found 0.0, expected > 0"),
    ("teacher.encoder.width", -8, "teacher.encoder.width: found -8"),
)


def config_cases() -> Iterator[Case]:
    for key, value, says in VALUES:
        shown = repr(value) if len(repr(value)) < 40 else "a very large number"
        yield _case(f"{key}={shown}", {key: value}, says)
    for group in ("dataset", "teacher", "student", "distill", "active", "eval", "compare", "teacher.lora"):
        yield _case(f"unknown key in {group}", {f"{group}.nosuch": 1}, f"{group}.nosuch: unknown key")
    for key in (
        "seed",
        "dataset.min_history",
        "student.lr",
        "teacher.train",
        "distill.lam",
        "eval",
        "compare.runs",
    ):
        yield _case(f"no {key}", {key: GONE}, f"{key.split('.')[-1]}")
    yield _case("an unknown group", {"optimizer": {"lr": 1}}, "optimizer: unknown key, expected one of seed")
    yield _case("a group that is a number", {"student": 3}, "student: found 3, expected a group of settings")
    yield _case("a value left open", {"dataset.name": "???"}, "dataset.name")
    yield _case("an interpolation into nothing", {"student.width": "${nosuch.key}"}, "nosuch")
    yield _case(
        "an interpolation of the environment", {"student.name": "${oc.env:NO_SUCH_VAR}"}, "NO_SUCH_VAR"
    )
    yield from _contradictions()


def _contradictions() -> Iterator[Case]:
    yield _case(
        "more candidates than the teacher exports",
        {"distill.top_k": 50, "teacher.export.top_k": 20},
        "distill.top_k: found 50, expected <= teacher.export.top_k=20",
    )
    yield _case(
        "more candidates than the prompts list",
        {"teacher.prompt.candidates": 10},
        "eval.candidates.count: found 20, expected teacher.prompt.candidates=10",
    )
    yield _case(
        "candidates without a mask for trees",
        {"teacher.llm.attention": "flash_attention_2", "teacher.train.show_answers": 0},
        "teacher.llm.attention: found flash_attention_2 with eval.candidates and objective.lm > 0",
    )
    yield _case(
        "answers shown without a mask to generate",
        {"teacher.llm.attention": "flash_attention_2"},
        "train.show_answers: found 4 with llm.attention=flash_attention_2, expected 0 (or sdpa)",
    )
    yield _case(
        "metrics that eval does not give",
        {"eval.ks": [10], "compare.metrics": ["NDCG@10", "NDCG@20"]},
        "compare.metrics: found NDCG@20, expected one of Recall, NDCG, HitRatio @ one of eval.ks",
    )
    yield _case("nothing to distil", {"distill.lam": 0.0, "distill.embedding": "none"}, "something to distil")
    yield _case(
        "a control without its signal",
        {"distill.lam": 0.0, "distill.control": "shuffle_rankings", "distill.embedding": "align"},
        "expected rankings to shuffle",
    )
    yield _case(
        "no weight at all",
        {f"distill.gamma_{n}": 0.0 for n in ("position", "confidence", "consistency")},
        "found all 0, expected one above 0",
    )
    yield _case(
        "a curriculum without placeholders",
        {"teacher.train.curriculum": "linear", "teacher.prompt.mode": "text"},
        "expected none",
    )
    yield _case(
        "no objective",
        {"teacher.objective.item": 0.0, "teacher.objective.lm": 0.0},
        "expected a positive weight",
    )
    yield _case(
        "heads that do not divide",
        {"student.width": 10, "student.heads": 3},
        "expected a divisor of the width",
    )
    yield _case(
        "smoothing without softmax",
        {"student.loss": "bce", "student.label_smoothing": 0.1},
        "label_smoothing",
    )
    yield _case("official splits of a log", {"dataset.split": "official"}, "official is for split files")
    yield _case(
        "split times with user_split",
        {"dataset.split": "user_split", "dataset.split_times": ["2019", "2020"]},
        "expected split=global_time",
    )
    yield _case(
        "filters on split files",
        {"dataset.k_core_items": 5},
        "split files are taken as they are",
        groups=("dataset=lastfm_ilora",),
    )
    yield _case(
        "an encoding that does not exist",
        {"dataset.csv.encoding": "klingon"},
        "found 'klingon'",
        groups=("dataset=csv",),
    )
    yield _case(
        "an encoding that is none",
        {"dataset.csv.encoding": "base64"},
        "found 'base64'",
        groups=("dataset=csv",),
    )
    yield _case(
        "a hub model without name",
        {"teacher.llm.kind": "hub", "teacher.llm.tiny": None},
        "llm.path: found null, expected a model name",
    )
    yield _case(
        "caser with tied output", {"student.tie_output": True}, "tie_output", groups=("student=caser",)
    )
    many = {
        "seed": -1,
        "dataset.min_history": 0,
        "student.lr": -1.0,
        "teacher.lora.rank": 0,
        "distill.lam": -1.0,
        "active.policy": "x",
        "eval.batch_size": 0,
        "compare.draws": 1,
    }
    yield _case("eight groups wrong, all listed at once", many, *(k.split(".")[-1] for k in many))
