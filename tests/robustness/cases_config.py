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
    ("active.policy", "oracle", "active.policy: found 'oracle', expected one of"),
    ("active.share", 0.5, "active.share, active.count: found share, expected neither"),
    ("active.refresh_every", 2, "active.refresh_every: found 2, expected null"),
    ("active.options", {"temperature": 1}, "temperature: unknown key"),
    ("eval.ks", [], "eval: select_metric"),
    ("eval.ks", [0, 10], "eval.ks: found 0, expected >= 1"),
    ("eval.ks", ["10"], "eval.ks: found '10', expected int"),
    *(
        ("eval.select_metric", name, f"select_metric: found '{name}'")
        for name in ("NDCG@7", "MRR@10", "NDCG", "NDCG@x", "@10")
    ),
    ("eval.select_metric", "NDCG@010", "select_metric: found 'NDCG@010'"),
    ("eval.select_metric", "NDCG@²", "select_metric: found 'NDCG@²'"),
    ("eval.batch_size", 0, "eval.batch_size: found 0, expected >= 1"),
    ("eval.candidates", 20, "eval.candidates: found 20, expected a group of settings"),
    ("eval.candidates.count", 1, "eval.candidates.count: found 1, expected >= 2"),
    ("eval.candidates.draws", 0, "eval.candidates.draws: found 0, expected >= 1"),
    ("eval.candidates.count", "20", "eval.candidates.count: found '20', expected int"),
    ("eval.candidates.seed", -1, "eval.candidates.seed: found -1, expected >= 0"),
    ("eval.candidates.samples", 0, "eval.candidates.samples: found 0, expected >= 1"),
    ("compare.draws", 10, "compare.draws: found 10, expected >= 100"),
    ("compare.metrics", ["NDCG@7"], "compare.metrics: found NDCG@7, expected one of"),
    ("compare.metrics", ["MRR@10"], "compare.metrics: found MRR@10, expected one of"),
    ("compare.seeds", [-1], "compare.seeds: found -1"),
    ("compare.seeds", [1, 2, 1], "seeds: found 1 more than once, expected different seeds"),
    ("compare.users", "196", "compare.users: found"),
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
    ("teacher.prompt.title_tokens", 0, "teacher.prompt.title_tokens: found 0"),
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


_LOCAL = ("teacher/llm=local", "teacher.llm.path=/models/x")
_GGUF = ("teacher/llm=gguf", "teacher.llm.path=/m.gguf")
# overrides, what the line says: a key that nothing reads with the choices made, or that cannot be read at all
COMMANDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("teacher.llm.path=/models/x",),
        "llm.path: found '/models/x' with kind=tiny, expected null (teacher/llm=local",
    ),
    (
        ("teacher.llm.trust_remote_code=true",),
        "llm.trust_remote_code: found True with kind=tiny, expected false",
    ),
    (("teacher.llm.merge_adapter=true",), "llm.merge_adapter: found True with kind=tiny, expected false"),
    (("teacher.llm.quantization=4bit",), "llm.quantization: found '4bit' with kind=tiny, expected none"),
    (
        ("teacher/llm=hub", "teacher.llm.path=a/b", "teacher.llm.merge_adapter=true"),
        "merge_adapter: found True with kind=hub",
    ),
    ((*_GGUF, "teacher.llm.quantization=4bit"), "found '4bit' with kind=gguf"),
    ((*_GGUF, "teacher.llm.path=null"), "llm.path: found null, expected a file"),
    ((*_LOCAL, "teacher.llm.revision=main"), "llm.revision: found 'main' with kind=local, expected null"),
    ((*_LOCAL, "teacher.llm.tiny.layers=3"), "teacher.llm.tiny.layers: not read with the choices made"),
    (
        ("teacher.gate.hidden=32",),
        "teacher.gate.hidden: found 32, not read with kind=linear, expected kind=mlp",
    ),
    (("teacher.gate.kind=uniform", "teacher.gate.temperature=2.0"), "not read with kind=uniform"),
    (("teacher.gate.kind=uniform", "teacher.train.gate_lr_ratio=0.5"), "a gate that learns nothing"),
    (("teacher.lora.experts=1", "teacher.gate.kind=mlp"), "not read with lora.experts=1"),
    (("teacher.overfit=8", "teacher.train.epochs=3"), "not read with overfit=8, expected overfit=null"),
    (
        ("teacher.overfit=8", "teacher.export.top_k=20"),
        "teacher.export.top_k: found 20, not read with overfit=8",
    ),
    (("teacher.overfit=8", "teacher.folds=2"), "teacher.folds: found 2, not read with overfit=8"),
    (("teacher.overfit=8", "teacher.lora.dropout=0.1"), "not read with overfit=8"),
    (("teacher.prompt.candidates=20", "teacher.objective.lm=0"), "found 20 with objective.lm=0, expected 0"),
    (("teacher.export.pool=50",), "teacher.export.pool: found 50, not read with ranking=hidden, expected"),
    (("teacher.export.exclude_history=false",), "not read with ranking=hidden, expected ranking=rerank"),
    (("teacher.export.beams=4",), "not read with ranking=hidden, expected ranking=trie or grounding"),
    (("teacher.export.ranking=trie", "teacher.export.max_new_tokens=9"), "expected ranking=grounding"),
    (
        ("teacher.export.embedding.source=head", "teacher.export.embedding.layer=1"),
        "not read with export.embedding.source=head, expected source=text",
    ),
    (
        ("teacher.export.embedding.source=head", "teacher.export.embedding.pooling=mean"),
        "not read with export.embedding.source=head",
    ),
    (("teacher=knn", "teacher.folds=3"), "teacher.folds: not read with the choices made"),
    (("teacher=knn", "teacher/llm=local"), "teacher/llm: not read with the choices made"),
    (("teacher=sasrec", "teacher.encoder.negatives=9"), "teacher.encoder.negatives: found 9, not read with"),
    (("teacher=fused", "teacher.members.knn.export.top_k=9"), "a member that has no store of its own"),
    (("teacher=fused", "teacher.members.sasrec.folds=2"), "teacher.members.sasrec.folds: found 2, not read"),
    (
        ("teacher=fused", "teacher.embeddings=[ilroa]"),
        "embeddings: found ['ilroa'], expected one or more of ilora",
    ),
    (("student=gru4rec", "student.heads=4"), "student.heads: found 4, not read with architecture=gru4rec"),
    (("student=caser", "student.blocks=2"), "student.blocks: found 2, not read with architecture=caser"),
    (("student.negatives=64",), "student.negatives: found 64, not read with base_loss=ce, expected"),
    (("student.gbce_t=0.5",), "student.gbce_t: found 0.5, not read with base_loss=ce"),
    (("student.dros_alpha=1.0",), "student.dros_alpha: found 1.0, not read with loss=ce, expected loss=dros"),
    (("distill.rd_loss=ce", "distill.rd_negative=minus"), "not read with rd_loss=ce, expected rd_loss=bce"),
    (("distill.embedding=align", "distill.ed_weight=0.3"), "not read with embedding=align, expected"),
    (("distill.embedding=fuse", "distill.align_weight=2.0"), "expected embedding=align or both"),
    (("distill.embedding=none", "distill.projector=mlp"), "not read with embedding=none"),
    (("distill.projector_width=8",), "not read with projector=linear, expected projector=mlp"),
    (
        ("active.weighted=true",),
        "active.weighted: found true, expected false: all gives every sample one score",
    ),
    (("active=random", "active.weighted=true"), "random gives every sample one score"),
    (("active.options.clusters=9",), "active.options.clusters: not read with the choices made"),
    (("active=random", "+active.options.power=1.0"), "active.options.power: unknown key"),
    (("active.policy=diversty",), "(did you mean diversity?)"),
    (
        ("dataset.csv.user=who",),
        "dataset.csv.user: not read with the choices made, expected a choice of dataset",
    ),
    (
        ("dataset=csv", "dataset.amazon.category=Toys"),
        "dataset.amazon.category: not read with the choices made",
    ),
    (("dataset=csv", "dataset.demo.users=9"), "dataset.demo.users: not read with the choices made"),
    (
        ("eval.candidates=null", "eval.candidates.count=9"),
        "eval.candidates.count: not read with the choices made",
    ),
    (("student.widht=8",), "student.widht: unknown key; did you mean student.width?"),
    (("studnet.lr=0.1",), "unknown key; did you mean student.lr?"),
    (("teacher.trian.lr=0.1",), "teacher.trian.lr: unknown key; did you mean teacher.train.lr?"),
    (("student=sasrek",), "student: found 'sasrek', expected one of caser"),
    (("teacher/prmopt=movie",), "unknown key; did you mean teacher/prompt?"),
    (("student=[sasrec,gru4rec]",), "student=[sasrec,gru4rec]; expected one of caser"),
    (("student=null",), "student=null; expected one of caser"),
    (("~teacher",), "~teacher; expected one of bigrec"),
    (("dataset.name=日本",), "put a value with such characters in quotes: 'dataset.name=\"日本\"'"),
    (("dataset.raw_dir=~/logs",), "put a value with such characters in quotes: 'dataset.raw_dir=\"~/logs\"'"),
    (("student.lr=1e-3,1e-4",), "--multirun"),
)


def _commands() -> Iterator[Case]:
    for overrides, says in COMMANDS:

        def run(box: Box, overrides: tuple[str, ...] = overrides) -> None:
            Settings.compose(overrides)

        yield Case(f"command: {' '.join(overrides)}", run, (says,))


def config_cases() -> Iterator[Case]:
    yield from _commands()
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
