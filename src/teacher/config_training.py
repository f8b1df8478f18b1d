"""Settings of the teacher's losses and training loop (`teacher.objective`, `teacher.train`)."""

from __future__ import annotations

from typing import ClassVar

from src.core.config import config_group, setting


@config_group
class ObjectiveConfig:
    """Weights of the two losses and the settings of the item read-out."""

    item: float = setting("weight of next-item cross-entropy over the catalogue", ge=0.0)
    lm: float = setting("weight of token cross-entropy on the target's title", ge=0.0)
    dim: int = setting("width D of user and item vectors", ge=2, when={"item": True})
    temperature: float = setting("divides the scores user . item", gt=0.0, when={"item": True})
    prior: str = setting(
        "what the item scores are added to: the frozen SASRec's log-probabilities, or nothing",
        choices=("sasrec", "none"),
        when={"item": True},
    )
    refresh_steps: int | None = setting(
        "optimizer steps between new LLM states of the item texts; null: once per epoch",
        ge=1,
        when={"item": True},
    )
    negatives: int | None = setting(
        "items drawn per step beside the batch's targets; null: the full catalogue", ge=1, when={"item": True}
    )

    def problems(self) -> list[str]:
        return [] if self.item + self.lm else ["item, lm: found 0 and 0, expected a positive weight"]


@config_group
class TrainConfig:
    """The teacher's training loop."""

    # What a debug run (`teacher.overfit`) sets itself, or has no use for: it validates on its own rows, to the end.
    NOT_IN_OVERFIT: ClassVar = (
        *("samples", "batch_size", "epochs", "lr_floor", "weight_decay", "curriculum"),
        *("eval_samples", "evals_per_epoch", "patience", "show_answers", "checkpoint_minutes"),
    )

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
