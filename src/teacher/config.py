"""Settings of the teachers (`conf/teacher/*.yaml`); nothing heavy is imported here.

Which class a group is built into, its key `kind` says: `KINDS` in `src/teacher/factory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
from pydantic import Field

from src.core.artifacts import MANIFEST, fingerprint, read_object
from src.core.config import config_group, determining, setting
from src.core.paths import resolve
from src.student.config import StudentConfig
from src.teacher.config_parts import (
    GateConfig,
    LLMConfig,
    LoraSettings,
    ObjectiveConfig,
    PromptConfig,
    SimilarityConfig,
    TinyLLMConfig,
    TitleStatesConfig,
    TrainConfig,
)

FORMAT_VERSION = 1
_ENCODER_RUN = "the encoder instead: the SASRec of this finished run, e.g. one that has title vectors fused"
_FOLDS = "1: rows of train by a teacher trained on them; n: cross-fitted in n parts"


@config_group
class ExportConfig:
    """`teacher.export`: which rows go into the teacher-output store."""

    splits: tuple[str, ...] = setting(
        "splits whose samples get rankings; []: item vectors only", choices=("train", "valid", "test")
    )
    top_k: int = setting("items listed per sample (K); at most the catalogue", ge=1)
    train_share: float = setting(
        "share of the training samples that get a row (drawn by seed)", gt=0.0, le=1.0
    )
    shard_size: int = setting(
        "samples per shard: bounds memory and the work lost by a kill", ge=1, in_fingerprint=False
    )
    batch_size: int = setting("samples per forward pass in export", ge=1, in_fingerprint=False)

    def problems(self) -> list[str]:
        if len(set(self.splits)) < len(self.splits):
            return [f"export.splits: found {list(self.splits)}, expected each split once"]
        return []


@config_group
class EmbeddingConfig:
    """`teacher.export.embedding`: the item vectors of the store (and the space of `grounding`)."""

    source: str = setting(
        "head: the item objective's vectors; text: states of the titles", choices=("head", "text")
    )
    pooling: str = setting("text: state of the last token, or mean over the title", choices=("last", "mean"))
    weights: str = setting("text: the LLM without (base) or with its adapter", choices=("base", "adapted"))
    layer: int = setting("text: hidden layer; 0 input embeddings, -1 the last block")


@config_group
class IloraExportConfig(ExportConfig):
    """`teacher.export` of iLoRA."""

    ranking: str = setting(
        "how the catalogue is ranked (src/teacher/ranking)",
        choices=("hidden", "rerank", "grounding", "trie"),
    )
    pool: int = setting("items that the frozen SASRec retrieves", ge=1, when={"ranking": ("rerank",)})
    exclude_history: bool = setting("the pool holds no item of the history", when={"ranking": ("rerank",)})
    beams: int = setting(
        "trie: titles and prefixes kept; grounding: beams (1: greedy)",
        ge=1,
        when={"ranking": ("trie", "grounding")},
    )
    max_new_tokens: int = setting("longest generated text in tokens", ge=1, when={"ranking": ("grounding",)})
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

    def ignored(self) -> dict[str, str]:
        if self.embedding.source == "text" or self.ranking == "grounding":
            return {}
        return dict.fromkeys(
            ("embedding.pooling", "embedding.weights", "embedding.layer"),
            "export.embedding.source=head, expected source=text",
        )


@config_group
class TeacherConfig:
    """What every teacher has. `encoder` is the frozen SASRec behind it, None where there is none."""

    name: str = setting("name in paths and tables", file_name=True, in_fingerprint=False)
    kind: str = setting("which teacher: KINDS in src/teacher/factory.py")
    seed: int = setting("seed of the teacher, its encoder and the draw of exported samples", ge=0)
    export: ExportConfig = setting("rows of the store")
    encoder: StudentConfig | None = Field(default=None, init=False)
    folds: int = Field(default=1, init=False)

    def identity(self) -> dict[str, Any]:
        """What determines results, by group."""
        return determining(self)


@config_group
class IloraConfig(TeacherConfig):
    """`teacher=ilora`: an LLM with LoRA experts weighted per user sequence."""

    llm: LLMConfig = setting("the language model")
    encoder: StudentConfig = setting("the frozen sequence encoder: a SASRec trained on the same split")
    encoder_run: str | None = setting(_ENCODER_RUN)
    lora: LoraSettings = setting("the experts")
    gate: GateConfig = setting("the router")
    objective: ObjectiveConfig = setting("losses and read-out")
    prompt: PromptConfig = setting("wordings")
    train: TrainConfig = setting("training")
    overfit: int | None = setting("debug: only memorise this many training rows, then stop; null: off", ge=1)
    folds: int = setting(_FOLDS, ge=1)
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
        if self.batch_norm and self.train.micro_batch_size is None:
            out.append(
                f"train.micro_batch_size: found auto with gate.kind={self.gate.kind}, expected a number "
                "(the gate normalises over so many samples)"
            )
        if self.prompt.candidates and self.objective.lm == 0:
            out.append(
                f"prompt.candidates: found {self.prompt.candidates} with objective.lm=0, expected 0 "
                "(only a prompt that is answered lists candidates)"
            )
        if self.llm.attention == "flash_attention_2" and self.objective.lm > 0 and self.train.show_answers:
            out.append(
                f"train.show_answers: found {self.train.show_answers} with llm.attention=flash_attention_2, "
                "expected 0 (or sdpa): it has no mask for generation here"
            )
        out += _folds_of(self)
        if self.train.curriculum != "none" and self.prompt.mode == "text":
            out.append("train.curriculum: found a curriculum with prompt.mode=text, expected none")
        return out

    def ignored(self) -> dict[str, str]:
        out = _not_this_encoder(self)
        if self.lora.experts == 1:
            out["gate"] = "lora.experts=1, expected more experts than one"
        if self.gate.kind == "uniform" or self.lora.experts == 1:
            out["train.gate_lr_ratio"] = (
                "a gate that learns nothing, expected gate.kind=linear, mlp or resnet1d"
            )
        if self.overfit is not None:
            keys = [f"train.{name}" for name in TrainConfig.NOT_IN_OVERFIT]
            keys += ["lora.dropout", "objective.refresh_steps", "folds", "export"]
            out |= dict.fromkeys(keys, f"overfit={self.overfit}, expected overfit=null")
        return out

    @property
    def batch_norm(self) -> bool:
        """Whether the gate normalises over the micro-batch, whose size then changes what is learned."""
        return self.gate.kind == "resnet1d" and self.lora.experts > 1

    def identity(self) -> dict[str, Any]:
        parts = _with_encoder(self) | {"llm": self.llm.identity()}
        if self.batch_norm:
            parts["train"]["micro_batch_size"] = self.train.micro_batch_size
        return parts


@config_group
class SasrecConfig(TeacherConfig):
    """`teacher=sasrec`: the frozen encoder alone fills the store."""

    encoder: StudentConfig = setting("the sequence encoder")
    encoder_run: str | None = setting(_ENCODER_RUN)
    folds: int = setting(_FOLDS, ge=1)

    def problems(self) -> list[str]:
        return _folds_of(self)

    def ignored(self) -> dict[str, str]:
        return _not_this_encoder(self)

    def identity(self) -> dict[str, Any]:
        return _with_encoder(self)


def _folds_of(config: IloraConfig | SasrecConfig) -> list[str]:
    if config.encoder_run is None or config.folds == 1:
        return []
    return [f"folds: found {config.folds} with encoder_run, expected 1: that encoder saw all users"]


def _not_this_encoder(config: IloraConfig | SasrecConfig) -> dict[str, str]:
    run = config.encoder_run
    return {} if run is None else {"encoder": f"encoder_run={run}, expected null"}


def _with_encoder(config: IloraConfig | SasrecConfig) -> dict[str, Any]:
    """The settings that count, and of an encoder that another run trained what that run computed."""
    parts = determining(config)
    run = parts.pop("encoder_run")
    if run is not None:
        manifest = read_object(resolve(run) / "models" / "student" / MANIFEST)
        parts["encoder"] = {"run": manifest.get("fingerprint"), "seed": manifest.get("seed")}
    return parts


@config_group
class PopularityConfig(TeacherConfig):
    """`teacher=popularity`: the training counts."""


@config_group
class MarkovConfig(TeacherConfig):
    """`teacher=markov`: first-order Markov chain over consecutive items of the training windows."""

    smoothing: float = setting("transitions by popularity added to every item (Dirichlet prior)", gt=0.0)
    leave_one_out: bool = setting("a training sample is ranked without its own transitions")
    dim: int = setting("width of the item embeddings (truncated SVD of the transitions)", ge=1)


@config_group
class KnnConfig(TeacherConfig):
    """`teacher=knn`: transitions from history to target in the training windows, popularity divided out."""

    decay: float = setting("weight of each step back in the history", gt=0.0, le=1.0)
    damping: float = setting("exponent of the two items' counts that a transition is divided by", ge=0.0)
    floor: float = setting("share of popularity in the probabilities; keeps them above 0", gt=0.0, lt=1.0)
    leave_one_out: bool = setting("a training sample is ranked without its own transitions")
    dim: int = setting("width of the item embeddings (truncated SVD of the transitions)", ge=1)


@config_group
class TfidfConfig(TeacherConfig):
    """`teacher=tfidf`: words and word pairs of the titles, no language model; what an LLM has to beat."""

    words: int = setting("longest word sequence that is a term", ge=1)
    least_items: int = setting("items that a term must occur in", ge=1)
    dim: int = setting("width of the item vectors (truncated SVD of the TF-IDF matrix)", ge=1)
    similarity: SimilarityConfig = setting("rankings from the vectors")


@config_group
class TextConfig(TeacherConfig):
    """`teacher=text`: title states of an encoder or causal LM as it is; nothing is trained."""

    llm: LLMConfig = setting("the language model")
    text: TitleStatesConfig = setting("how a title becomes a vector")
    similarity: SimilarityConfig = setting("rankings from the vectors")

    def problems(self) -> list[str]:
        if self.llm.kind == "tiny":
            return ["llm.kind: found tiny (the embedded LLM), expected local or hub (teacher/llm=local)"]
        return []

    def identity(self) -> dict[str, Any]:
        return determining(self) | {"llm": self.llm.identity()}


@config_group
class FusedConfig(TeacherConfig):
    """`teacher=fused`: a weighted sum of other teachers' log-probabilities.

    `encoder`, the SASRec that the quality report compares with, is that of the member `sasrec` or `ilora`.
    """

    members: dict = setting("{name: settings of a teacher that scores the catalogue}")
    weights: dict | None = setting("{member: weight}; null: fitted on validation")
    embeddings: tuple[str, ...] = setting(
        "members whose item vectors the store holds; several: side by side, each scaled to mean square length 1"
    )
    folds: int = setting(_FOLDS, ge=1)

    def __post_init__(self) -> None:
        found = (getattr(self.members.get(name), "encoder", None) for name in ("sasrec", "ilora"))
        object.__setattr__(self, "encoder", next((encoder for encoder in found if encoder), None))

    def problems(self) -> list[str]:
        out, names = [], ", ".join(self.members)
        if not self.members:
            out.append("members: found none, expected at least one")
        elif not self.embeddings or not set(self.embeddings) <= set(self.members):
            out.append(f"embeddings: found {list(self.embeddings)}, expected one or more of {names}")
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

    def ignored(self) -> dict[str, str]:
        keys = ("folds", "export.splits", "export.top_k", "export.train_share", "export.shard_size")
        why = "a member that has no store of its own, expected the same key of teacher"
        return {f"members.{name}.{key}": why for name in self.members for key in keys}

    def identity(self) -> dict[str, Any]:
        """Of a member not what only its own store would have."""
        members = {name: member.identity() for name, member in self.members.items()}
        for parts in members.values():
            parts.pop("folds", None)
            parts["export"] = {k: v for k, v in parts["export"].items() if k == "embedding"}
        parts = {"kind": self.kind, "seed": self.seed, "weights": self.weights, "embeddings": self.embeddings}
        return parts | {"folds": self.folds, "members": members, "export": determining(self.export)}


@config_group
class OfficialFilesConfig(TeacherConfig):
    """`teacher=official_files`: rows of another program (`python -m src.exp.official_files import`)."""

    def identity(self) -> dict[str, Any]:
        """The name stands for the files."""
        return {"kind": self.kind, "name": self.name}


def wants_overfit(config: TeacherConfig) -> TypeGuard[IloraConfig]:
    """Whether this teacher is only debugged (src/teacher/overfit.py): it yields no result."""
    return isinstance(config, IloraConfig) and config.overfit is not None


def members_of(config: TeacherConfig) -> list[TeacherConfig]:
    """The teachers that score for this one: itself, or a pool's members."""
    return list(config.members.values()) if isinstance(config, FusedConfig) else [config]


def _fingerprint(dataset_fp: str, parts: Mapping[str, Any], **samples: np.ndarray | None) -> str:
    """Of an artifact of a dataset; `samples` where it was not made from the whole training split."""
    chosen = {name: ids.tolist() for name, ids in samples.items() if ids is not None}
    return fingerprint({"version": FORMAT_VERSION, "dataset": dataset_fp, **parts, **chosen})


def encoder_fingerprint(
    encoder: StudentConfig, seed: int, dataset_fp: str, train_ids: np.ndarray | None = None
) -> str:
    """Identity of the frozen SASRec; `train_ids` where it does not learn from the whole training split."""
    return _fingerprint(dataset_fp, {"encoder": determining(encoder), "seed": seed}, train_ids=train_ids)


def llm_fingerprint(
    tiny: TinyLLMConfig, prompt: PromptConfig, seed: int, dataset_fp: str, train_ids: np.ndarray | None = None
) -> str:
    """Identity of the embedded LLM; `train_ids` where it does not read the whole training split."""
    parts = {"tiny": determining(tiny), "prompt": determining(prompt), "seed": seed}
    return _fingerprint(dataset_fp, parts, train_ids=train_ids)


def model_fingerprint(
    config: IloraConfig,
    dataset_fp: str,
    train_ids: np.ndarray | None = None,
    tuned_ids: np.ndarray | None = None,
) -> str:
    """Identity of the trained iLoRA teacher: everything but the export, and the samples of a fold or a selection."""
    parts = {k: v for k, v in config.identity().items() if k not in ("export", "folds")}
    return _fingerprint(dataset_fp, parts, train_ids=train_ids, tuned_ids=tuned_ids)


def teacher_fingerprint(
    config: TeacherConfig, dataset_fp: str, selected: Mapping[str, str] | None = None
) -> str:
    """Identity of a store: dataset, the teacher's settings and seed, and what is exported.

    Args:
        selected: fingerprints of the selections that act on `teacher_train` and `export`.
    """
    parts = {"teacher": config.identity()}
    return _fingerprint(dataset_fp, parts | ({"selected": dict(selected)} if selected else {}))
