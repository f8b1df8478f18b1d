"""Settings of distillation (`conf/distill`) and of sample selection (`conf/active`).

Two shipped profiles: `distill=dllm2rec` is the corrected algorithm, `distill=dllm2rec_official` has every
term as the official code computes it. Each difference that changes numbers is one key here; the equations
stand in docs/specification/03_distill_dllm2rec_logic.md.
"""

from __future__ import annotations

from typing import Any

from src.core.config import config_group, setting

# With which other keys a key is read (`setting(when=...)`).
_RANK: dict[str, Any] = {"lam": True}
_DRO = _RANK | {"alpha": True}
_CONFIDENCE = _RANK | {"gamma_confidence": True}
_FUSE = {"embedding": ("fuse", "both")}
_ALIGN = {"embedding": ("align", "both")}
_META: dict[str, Any] = {"meta": ("reweight", "weight_net")}
_NET: dict[str, Any] = {"meta": ("weight_net",)}
_EITHER: dict[str, Any] = {"embedding": ("fuse", "align", "both")}
_PCA = _EITHER | {"embedding_scaling": ("pca",)}


@config_group
class DistillConfig:
    """`conf/distill/*.yaml`. The recommendation loss is not here: it is `student.loss`, as in the baseline."""

    name: str = setting("name in tables", in_fingerprint=False)

    # Ranking distillation: total = student.loss + lam * L_rd.
    lam: float = setting("weight of the ranking distillation; 0 switches it off", ge=0)
    gate_rankings: bool = setting(
        "follow rankings only where they are better on validation than the student trained without them",
        when=_RANK,
    )
    top_k: int = setting("teacher candidates used per sample, K", ge=1, when=_RANK)
    history_candidates: str = setting(
        "history items among the candidates: keep, drop, or auto: drop where no training target is one",
        choices=("keep", "drop", "auto"),
        when=_RANK,
    )
    rd_loss: str = setting(
        "per-candidate loss: bce (one negative, as the code) or ce (soft targets over the catalogue)",
        choices=("bce", "ce"),
        when=_RANK,
    )
    rd_negative: str = setting(
        "bce: the negative's term: log sigma(-s) (minus) or log sigma(1 - s) (one_minus, as the code)",
        choices=("minus", "one_minus"),
        when=_RANK | {"rd_loss": ("bce",)},
    )
    alpha: float = setting(
        "weight of the DRO term within L_rd (the target's own DRO term is student.loss=dros)",
        ge=0,
        when=_RANK,
    )
    beta: float = setting("robustness radius of the DRO term", gt=0, when=_DRO)
    dro_weighting: str = setting(
        "DRO term weighted per sample, or product of two batch means (a broadcast slip of the code)",
        choices=("per_sample", "batch_mean"),
        when=_DRO,
    )
    gamma_position: float = setting("share of the position weight", ge=0, when=_RANK)
    gamma_confidence: float = setting("share of the confidence weight", ge=0, when=_RANK)
    gamma_consistency: float = setting("share of the consistency weight", ge=0, when=_RANK)
    beta_pos: float = setting(
        "decay of the position weight exp(-k / beta_pos), in ranks",
        gt=0,
        when=_RANK | {"gamma_position": True},
    )
    confidence: str = setting(
        "confidence from each candidate's distance (as the code) or from the true next item's (as the paper)",
        choices=("candidate", "target"),
        when=_CONFIDENCE,
    )
    confidence_scaling: str = setting(
        "distances before exp(-d): min-max scaled per row (of the target: over all rows), or raw (as the code)",
        choices=("minmax", "none"),
        when=_CONFIDENCE,
    )
    confidence_temperature: float = setting(
        "divides the (scaled) distances; smaller is sharper", gt=0, when=_CONFIDENCE
    )

    # Embedding distillation.
    embedding: str = setting(
        "fuse: projected teacher vectors in the input table; align: a distance loss; both; none",
        choices=("fuse", "align", "both", "none"),
    )
    ed_weight: float = setting("fuse: factor of the projected teacher vector", ge=0, when=_FUSE)
    offset: bool = setting(
        "fuse: add the student's own item vector (false: projected vector alone)", when=_FUSE
    )
    own_start: str = setting(
        "fuse: own item vectors at the start: zero, or the baseline's random ones (as the code)",
        choices=("zero", "random"),
        when=_FUSE,
    )
    own_shrinkage: float = setting(
        "fuse: an item's own part counts n / (n + this), n its training targets; 0: always 1 (as the code)",
        ge=0,
        when=_FUSE,
    )
    fuse_output: bool = setting(
        "fuse: an untied output layer and the items' biases are fused as well", when=_FUSE
    )
    untrained_negatives: bool = setting(
        "fuse: items that no training sample asks for are negatives all the same (as the code)",
        when=_FUSE | {"fuse_output": True},
    )
    align_weight: float = setting("align: weight of the distance loss", ge=0, when=_ALIGN)
    align_loss: str = setting("align: distance", choices=("cosine", "mse"), when=_ALIGN)
    align_items: int | None = setting(
        "align: items drawn per step; null: the whole catalogue", ge=1, when=_ALIGN
    )
    projector: str = setting(
        "map from the teacher's width to the student's", choices=("linear", "mlp"), when=_EITHER
    )
    projector_width: int = setting(
        "hidden width of the mlp projector", ge=1, when=_EITHER | {"projector": ("mlp",)}
    )
    embedding_scaling: str = setting(
        "teacher vectors as they are (none, as the code); centred and scaled to unit mean square (standardize); "
        "or that on their principal directions (pca)",
        choices=("none", "standardize", "pca"),
        when=_EITHER,
    )
    pca_dim: int = setting("pca: principal directions kept at most", ge=1, when=_PCA)
    pca_power: float = setting(
        "pca: power of the singular values; 1 keeps them, 0 whitens", ge=0, le=1, when=_PCA
    )

    control: str = setting(
        "negative controls of a study: rankings shuffled among samples, embeddings permuted among items",
        choices=("none", "shuffle_rankings", "permute_embeddings", "both"),
    )
    projection_dtype: str = setting(
        "precision of the projection's product; bf16 is faster and rounds",
        choices=("float32", "bf16"),
        when=_EITHER,
    )

    @property
    def ranks(self) -> bool:
        """Whether the ranking distillation is on."""
        return self.lam > 0

    @property
    def fuses(self) -> bool:
        return self.embedding in ("fuse", "both")

    @property
    def aligns(self) -> bool:
        return self.embedding in ("align", "both")

    def problems(self) -> list[str]:
        out = []
        gammas = (self.gamma_position, self.gamma_confidence, self.gamma_consistency)
        if self.ranks and not any(gammas):
            out.append(
                "gamma_position, gamma_confidence, gamma_consistency: found all 0, expected one above 0"
            )
        if not self.ranks and self.embedding == "none":
            out.append("lam: found 0 with embedding=none, expected something to distil")
        if self.fuses and self.ed_weight == 0:
            out.append(f"ed_weight: found 0 with embedding={self.embedding}, expected > 0")
        if self.embedding == "both" and not self.offset:
            out.append("offset: found false with embedding=both, expected true: align draws the own vectors")
        if self.aligns and self.align_weight == 0:
            out.append(f"align_weight: found 0 with embedding={self.embedding}, expected > 0")
        if self.control in ("shuffle_rankings", "both") and not self.ranks:
            out.append(f"control: found {self.control} with lam=0, expected rankings to shuffle")
        if self.control in ("permute_embeddings", "both") and self.embedding == "none":
            out.append(f"control: found {self.control} with embedding=none, expected embeddings to permute")
        return out


@config_group
class ActiveConfig:
    """`conf/active/*.yaml`: which training samples teach, and with which weights. What a strategy demands of these
    is checked by `src.distill.strategies.active_problems`."""

    policy: str = setting("name of a strategy, as its file in conf/active")
    use: tuple[str, ...] = setting(
        "where the selection acts: the teacher's training, the export of training rows, the distillation",
        choices=("teacher_train", "export", "distill"),
    )
    share: float | None = setting("share of the training samples to select", gt=0, le=1)
    count: int | None = setting("number of training samples to select (instead of share); 0: none", ge=0)
    ratio: float = setting(
        "of the selected samples, the share that the strategy chooses; the rest is drawn at random",
        ge=0,
        le=1,
    )
    weighted: bool = setting("distill: selected samples weigh by the strategy's score (mean 1) instead of 1")
    refresh_every: int | None = setting(
        "distill: epochs between two selections; null: once, before the first", ge=1
    )
    meta: str | None = setting(
        "distill: weights learned on held-out validation rows: reweight or weight_net; null: not learned",
        choices=("reweight", "weight_net"),
    )
    meta_share: float = setting(
        "share of the validation users whose rows are held out for it", gt=0, lt=1, when=_META
    )
    meta_batch: int = setting("held-out rows per step", ge=1, when=_META)
    meta_hidden: int = setting("hidden width of the weight net", ge=1, when=_NET)
    meta_lr: float = setting("learning rate of the weight net", gt=0, when=_NET)
    student: str | None = setting(
        "the student that is asked: folder of a finished run; null: the teacher's frozen encoder, else the baseline"
    )
    options: dict = setting("settings of this strategy only; see its class")

    def problems(self) -> list[str]:
        out = []
        if not self.use or len(set(self.use)) != len(self.use):
            expected = "one or more of teacher_train, export, distill, each once"
            out.append(f"use: found {list(self.use)}, expected {expected}")
        if self.meta is not None and "distill" not in self.use:
            out.append(
                f"meta: found {self.meta} with use={list(self.use)}, expected null: only the distillation weighs"
            )
        if self.weighted and "distill" not in self.use:
            out.append(
                f"weighted: found true with use={list(self.use)}, expected false: only the distillation weighs"
            )
        return out
