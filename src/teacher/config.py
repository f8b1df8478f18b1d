"""Settings of the teachers (`conf/teacher/*.yaml`); nothing heavy is imported here.

The class that a group is built into is chosen by its key `kind`: see `TEACHER_CONFIGS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.core.artifacts import fingerprint
from src.core.config import build, determining, setting
from src.student.config import StudentConfig
from src.teacher.config_llm import GateConfig, LLMConfig, LoraSettings, TinyLLMConfig
from src.teacher.config_prompt import PromptConfig

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExportConfig:
    """`teacher.export`: which rows go into the teacher-output store."""

    top_k: int = setting("items listed per sample (K)", ge=1)
    train_share: float = setting(
        "share of the training samples that get a row (drawn by seed)", gt=0.0, le=1.0
    )
    shard_size: int = setting(
        "samples per shard: bounds memory and the work lost by a kill", ge=1, in_fingerprint=False
    )
    batch_size: int = setting("samples per forward pass in export", ge=1, in_fingerprint=False)
    samples: str = setting(
        "training samples that get a row: all, or those that the policy `active` selects",
        choices=("all", "active"),
    )

    def problems(self) -> list[str]:
        if self.samples == "active" and self.train_share < 1.0:
            return [
                f"export: found samples=active with train_share={self.train_share}, expected train_share=1.0"
            ]
        return []


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the two losses and the settings of the item read-out."""

    item: float = setting("weight of next-item cross-entropy over the catalogue", ge=0.0)
    lm: float = setting("weight of token cross-entropy on the target's title", ge=0.0)
    dim: int = setting("width D of user and item vectors", ge=2)
    temperature: float = setting("divides the scores user . item", gt=0.0)
    prior: str = setting(
        "what the item scores are added to: the frozen SASRec's log-probabilities, or nothing",
        choices=("sasrec", "none"),
    )
    refresh_steps: int = setting("optimizer steps between new LLM states of the item texts", ge=1)
    negatives: int | None = setting(
        "items drawn per step beside the batch's targets; null: the full catalogue", ge=1
    )

    def problems(self) -> list[str]:
        return (
            []
            if self.item + self.lm > 0
            else ["objective: item and lm are both 0, expected a positive weight"]
        )


@dataclass(frozen=True)
class TrainConfig:
    """The teacher's training loop."""

    epochs: int = setting("passes over the training samples", ge=1)
    samples: int | None = setting(
        "training samples used (drawn by seed); null: all; 0: the LLM as it is, untrained", ge=0
    )
    batch_size: int = setting("samples per optimizer step (effective batch)", ge=1)
    # Counts in fingerprints where the gate has BatchNorm, and only there: `IloraConfig.identity`.
    micro_batch_size: int = setting("samples per forward pass", ge=1, in_fingerprint=False)
    optimizer: str = setting("adam (L2) or adamw (decoupled decay)", choices=("adam", "adamw"))
    lr: float = setting("peak learning rate of LoRA, projector and item head", gt=0.0)
    gate_lr_ratio: float = setting("learning rate of the gate relative to lr", gt=0.0)
    lr_floor: float = setting("first and last learning rate relative to the peak", ge=0.0, le=1.0)
    warmup_share: float = setting(
        "share of the steps with a linearly rising rate; cosine after it", ge=0.0, lt=1.0
    )
    weight_decay: float = setting("decay of projector, gate and item head (LoRA has none)", ge=0.0)
    grad_clip: float | None = setting("largest gradient norm; null: no clipping", gt=0.0)
    curriculum: str = setting(
        "none, or linear: a step is hybrid with probability step / steps", choices=("none", "linear")
    )
    train_projector: bool = setting("train the projector of item vectors into the LLM (the code does)")
    precision: str = setting("arithmetic of the forward pass", choices=("no", "bf16"))
    device: str = setting("auto, cpu or cuda", choices=("auto", "cpu", "cuda"), in_fingerprint=False)
    eval_samples: int = setting("validation samples that choose the best epoch (drawn by seed)", ge=1)
    evals_per_epoch: int = setting("validations per epoch", ge=1)
    show_answers: int = setting(
        "validation rows whose generated answers TensorBoard shows at each validation (lm); 0: none",
        ge=0,
        in_fingerprint=False,
    )
    patience: int = setting("validations without gain before training stops", ge=1)
    checkpoint_minutes: float = setting("time between checkpoints for resuming", gt=0.0, in_fingerprint=False)


@dataclass(frozen=True)
class EmbeddingConfig:
    """`teacher.export.embedding`: the item vectors of the store (and the space of `grounding`)."""

    source: str = setting(
        "head: the item objective's vectors; text: states of the titles", choices=("head", "text")
    )
    pooling: str = setting("text: state of the last token, or mean over the title", choices=("last", "mean"))
    weights: str = setting("text: the LLM without (base) or with its adapter", choices=("base", "adapted"))
    layer: int = setting("text: hidden layer; 0 input embeddings, -1 the last block")


@dataclass(frozen=True)
class IloraExportConfig(ExportConfig):
    """`teacher.export` of iLoRA."""

    ranking: str = setting(
        "how the catalogue is ranked (src/teacher/ranking)",
        choices=("hidden", "rerank", "grounding", "trie", "exact"),
    )
    pool: int = setting("rerank: items that the frozen SASRec retrieves", ge=1)
    exclude_history: bool = setting("rerank: the pool holds no item of the history")
    shared_prefix: bool = setting(
        "rerank: titles share one prefill of the prompt; false: one text per title", in_fingerprint=False
    )
    beams: int = setting("trie: titles and prefixes kept; grounding: beams (1: greedy)", ge=1)
    max_new_tokens: int = setting("grounding: longest generated text in tokens", ge=1)
    tree_tokens: int = setting("exact: title tokens per forward pass", ge=1, in_fingerprint=False)
    embedding: EmbeddingConfig = setting("item embeddings")

    def problems(self) -> list[str]:
        out = super().problems()
        for ranking, key in (("rerank", "pool"), ("trie", "beams")):
            if self.ranking == ranking and self.top_k > (size := getattr(self, key)):
                out.append(
                    f"export: found top_k={self.top_k} with ranking={ranking} and {key}={size}, "
                    f"expected top_k <= {key}"
                )
        return out


@dataclass(frozen=True)
class IloraConfig:
    """`teacher=ilora`: an LLM with LoRA experts weighted per user sequence."""

    name: str = setting("name in paths and tables", file_name=True)
    kind: str = setting("which teacher", choices=("ilora",))
    seed: int = setting("seed of the teacher and its encoder", ge=0)
    llm: LLMConfig = setting("the language model")
    encoder: StudentConfig = setting("the frozen sequence encoder: a SASRec trained on the same split")
    lora: LoraSettings = setting("the experts")
    gate: GateConfig = setting("the router")
    objective: ObjectiveConfig = setting("losses and read-out")
    prompt: PromptConfig = setting("wordings")
    train: TrainConfig = setting("training")
    overfit: int | None = setting(
        "debug: only learn this many training rows by heart, then stop; null: off", ge=1
    )
    folds: int = setting("1: rows of train by a teacher trained on them; n: cross-fitted in n parts", ge=1)
    export: IloraExportConfig = setting("rows of the store")

    def problems(self) -> list[str]:
        out = []
        loss = "item" if self.export.ranking == "hidden" else "lm"
        if getattr(self.objective, loss) == 0:
            out.append(
                f"export.ranking: found {self.export.ranking} with objective.{loss}=0, expected objective.{loss} > 0"
            )
        if self.export.embedding.source == "head" and self.objective.item == 0:
            out.append("export.embedding.source: found head with objective.item=0, expected text")
        if self.llm.attention == "flash_attention_2" and self.objective.lm > 0 and self.train.show_answers:
            out.append(
                f"train.show_answers: found {self.train.show_answers} with llm.attention=flash_attention_2, "
                "expected 0 (or sdpa): it has no mask for generation here"
            )
        if self.train.curriculum != "none" and self.prompt.mode == "text":
            out.append("train.curriculum: found a curriculum with prompt.mode=text, expected none")
        return out

    @property
    def batch_norm(self) -> bool:
        """Whether the gate normalises over the micro-batch, whose size then changes what is learned."""
        return self.gate.kind == "resnet1d" and self.lora.experts > 1

    def identity(self) -> dict[str, Any]:
        """What determines results, by group."""
        parts = determining(self) | {"llm": self.llm.identity()}
        if self.batch_norm:
            parts["train"]["micro_batch_size"] = self.train.micro_batch_size
        return parts


@dataclass(frozen=True)
class SasrecConfig:
    """`teacher=sasrec`: the frozen encoder alone fills the store."""

    name: str = setting("name in paths and tables", file_name=True)
    kind: str = setting("which teacher", choices=("sasrec",))
    seed: int = setting("seed of the encoder", ge=0)
    encoder: StudentConfig = setting("the sequence encoder")
    folds: int = setting("1: rows of train by a teacher trained on them; n: cross-fitted in n parts", ge=1)
    export: ExportConfig = setting("rows of the store")


@dataclass(frozen=True)
class KnnConfig:
    """`teacher=knn`: transitions from history to target in the training windows, popularity divided out."""

    name: str = setting("name in paths and tables", file_name=True)
    kind: str = setting("which teacher", choices=("knn",))
    seed: int = setting("seed of the export's draw", ge=0)
    decay: float = setting("weight of each step back in the history", gt=0.0, le=1.0)
    damping: float = setting("exponent of the two items' counts that a transition is divided by", ge=0.0)
    floor: float = setting("share of popularity in the probabilities; keeps them above 0", gt=0.0, lt=1.0)
    leave_one_out: bool = setting("a training sample is ranked without its own transitions")
    dim: int = setting("width of the item embeddings (truncated SVD of the transitions)", ge=1)
    export: ExportConfig = setting("rows of the store")


@dataclass(frozen=True)
class MarkovConfig:
    """`teacher=markov`: first-order Markov chain over consecutive items of the training windows."""

    name: str = setting("name in paths and tables", file_name=True)
    kind: str = setting("which teacher", choices=("markov",))
    seed: int = setting("seed of the export's draw", ge=0)
    smoothing: float = setting("transitions by popularity added to every item (Dirichlet prior)", gt=0.0)
    leave_one_out: bool = setting("a training sample is ranked without its own transitions")
    dim: int = setting("width of the item embeddings (truncated SVD of the transitions)", ge=1)
    export: ExportConfig = setting("rows of the store")


@dataclass(frozen=True)
class PopularityConfig:
    """`teacher=popularity`: the training counts."""

    name: str = setting("name in paths and tables", file_name=True)
    kind: str = setting("which teacher", choices=("popularity",))
    seed: int = setting("seed of the export's draw", ge=0)
    export: ExportConfig = setting("rows of the store")


@dataclass(frozen=True)
class FusedConfig:
    """`teacher=fused`: a weighted sum of other teachers' log-probabilities."""

    name: str = setting("name in paths and tables", file_name=True)
    kind: str = setting("which teacher", choices=("fused",))
    seed: int = setting("seed of the export's draw", ge=0)
    members: dict = setting("{name: settings of a teacher that scores the catalogue}")
    weights: dict | None = setting("{member: weight}; null: fitted on validation")
    embeddings: str = setting("the member whose item vectors the store holds")
    folds: int = setting("1: rows of train by a teacher trained on them; n: cross-fitted in n parts", ge=1)
    export: ExportConfig = setting("rows of the store")

    def problems(self) -> list[str]:
        out, names = [], ", ".join(self.members)
        if not self.members:
            out.append("members: found none, expected at least one")
        elif self.embeddings not in self.members:
            out.append(f"embeddings: found {self.embeddings}, expected one of {names}")
        for name, member in self.members.items():
            if isinstance(member, FusedConfig):
                out.append(f"members.{name}.kind: found fused, expected another teacher")
            elif isinstance(member, IloraConfig) and member.export.ranking != "hidden":
                found = member.export.ranking
                out.append(
                    f"members.{name}.export.ranking: found {found}, expected hidden (it scores all items)"
                )
        weights = self.weights
        if weights is not None and (
            set(weights) != set(self.members)
            or not all(isinstance(w, (int, float)) and 0 <= w < float("inf") for w in weights.values())
            or not any(weights.values())
        ):
            out.append(
                f"weights: found {weights}, expected a number >= 0 for each of {names}, one of them above 0"
            )
        return out

    @property
    def encoder(self) -> StudentConfig | None:
        """The SASRec that the quality report compares with: that of the member `sasrec` or `ilora`."""
        found = (getattr(self.members.get(name), "encoder", None) for name in ("sasrec", "ilora"))
        return next((encoder for encoder in found if encoder is not None), None)

    def identity(self) -> dict[str, Any]:
        """What determines results, by group; of a member not what only its own store would have."""
        members = {name: identity(member) for name, member in self.members.items()}
        for parts in members.values():
            parts.pop("folds", None)
            parts["export"] = {k: v for k, v in parts["export"].items() if k == "embedding"}
        own = {k: v for k, v in vars(self).items() if k not in ("members", "export")}
        return own | {"members": members, "export": determining(self.export)}


TeacherConfig = IloraConfig | SasrecConfig | KnnConfig | MarkovConfig | PopularityConfig | FusedConfig
TEACHER_CONFIGS: dict[str, type] = {
    "ilora": IloraConfig,
    "sasrec": SasrecConfig,
    "knn": KnnConfig,
    "markov": MarkovConfig,
    "popularity": PopularityConfig,
    "fused": FusedConfig,
}


def build_teacher_config(
    values: Mapping[str, Any] | None, where: str, problems: list[str]
) -> TeacherConfig | None:
    """The settings of the teacher named by `kind`; problems are appended with their full keys."""
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in TEACHER_CONFIGS:
        problems.append(f"{where}.kind: found {kind!r}, expected one of {', '.join(TEACHER_CONFIGS)}")
        return None
    before = len(problems)
    if kind == "fused" and isinstance(members := values.get("members"), Mapping):
        made = {n: build_teacher_config(v, f"{where}.members.{n}", problems) for n, v in members.items()}
        values = {**values, "members": made}
    return build(TEACHER_CONFIGS[kind], values, where, problems) if len(problems) == before else None


def members_of(config: TeacherConfig) -> list[TeacherConfig]:
    """The teachers that score for this one: itself, or a pool's members."""
    return list(config.members.values()) if isinstance(config, FusedConfig) else [config]


def identity(config: TeacherConfig) -> dict[str, Any]:
    """What determines a teacher's results, by group."""
    return config.identity() if isinstance(config, (IloraConfig, FusedConfig)) else determining(config)


def encoder_fingerprint(
    encoder: StudentConfig, seed: int, dataset_fp: str, train_ids: np.ndarray | None = None
) -> str:
    """Identity of the frozen SASRec; `train_ids` where it does not learn from the whole training split."""
    parts = {"version": FORMAT_VERSION, "dataset": dataset_fp, "encoder": determining(encoder), "seed": seed}
    return fingerprint(parts | ({} if train_ids is None else {"train_ids": train_ids.tolist()}))


def llm_fingerprint(
    tiny: TinyLLMConfig, prompt: PromptConfig, seed: int, dataset_fp: str, train_ids: np.ndarray | None = None
) -> str:
    """Identity of the embedded LLM; `train_ids` where it does not read the whole training split."""
    parts = {"version": FORMAT_VERSION, "dataset": dataset_fp, "tiny": determining(tiny)}
    parts |= {"prompt": determining(prompt), "seed": seed}
    return fingerprint(parts | ({} if train_ids is None else {"train_ids": train_ids.tolist()}))


def model_fingerprint(config: IloraConfig, dataset_fp: str, train_ids: np.ndarray | None = None) -> str:
    """Identity of the trained iLoRA teacher: everything but the export (and the samples of a fold)."""
    parts = {k: v for k, v in config.identity().items() if k not in ("export", "folds")}
    parts |= {} if train_ids is None else {"train_ids": train_ids.tolist()}
    return fingerprint({"version": FORMAT_VERSION, "dataset": dataset_fp, **parts})


def teacher_fingerprint(config: TeacherConfig, dataset_fp: str, selection_fp: str | None = None) -> str:
    """Identity of a store: dataset, the teacher's settings and seed, and what is exported.

    Args:
        selection_fp: of the selection whose samples are exported; None: all.
    """
    parts = {"version": FORMAT_VERSION, "dataset": dataset_fp, "teacher": identity(config)}
    return fingerprint(parts | ({} if selection_fp is None else {"selection": selection_fp}))
