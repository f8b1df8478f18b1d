"""Settings of a student (`conf/student/*.yaml`); no heavy import here."""

from __future__ import annotations

from src.core.config import config_group, setting

ARCHITECTURES = ("sasrec", "sasrec_dllm2rec", "gru4rec", "caser", "caser_dllm2rec")
CAUSAL = ("sasrec", "gru4rec")  # their state at an item has seen no later one
BASE_LOSSES = ("ce", "bce", "gbce")


@config_group
class StudentConfig:
    """A sequential recommender, its loss and its training."""

    name: str = setting("name in paths and tables", in_fingerprint=False)
    architecture: str = setting("what encodes a history", choices=ARCHITECTURES)
    width: int = setting("width H of item vectors and hidden states", ge=1)
    blocks: int = setting(
        "transformer blocks or GRU layers",
        ge=1,
        when={"architecture": ("sasrec", "sasrec_dllm2rec", "gru4rec")},
    )
    heads: int = setting("attention heads", ge=1, when={"architecture": ("sasrec", "sasrec_dllm2rec")})
    dropout: float = setting("dropout rate", ge=0.0, lt=1.0)
    tie_output: bool = setting("score with the input item table instead of a second one")
    learn_repeats: bool = setting("learn how likely the history's own items come again (ce, dros)")
    loss: str = setting(
        "recommendation loss, the same for baseline and distilled", choices=(*BASE_LOSSES, "dros")
    )
    label_smoothing: float = setting(
        "share of the target's mass spread over the catalogue (ce)", ge=0.0, lt=1.0
    )
    negatives: int = setting(
        "sampled negatives per sample (bce takes one)", ge=1, when={"base_loss": ("gbce",)}
    )
    gbce_t: float = setting(
        "calibration t of gBCE: 0 plain BCE, 1 fully calibrated",
        ge=0.0,
        le=1.0,
        when={"base_loss": ("gbce",)},
    )
    dros_base: str = setting(
        "loss that the DROS term is added to", choices=BASE_LOSSES, when={"loss": ("dros",)}
    )
    dros_alpha: float = setting("weight of the DROS term", ge=0.0, when={"loss": ("dros",)})
    dros_beta: float = setting(
        "temperature of the DROS term, its robust radius", gt=0.0, when={"loss": ("dros",)}
    )
    optimizer: str = setting("adam (decay as an L2 penalty) or adamw (decoupled)", choices=("adam", "adamw"))
    lr: float = setting("learning rate", gt=0.0)
    weight_decay: float = setting("weight decay", ge=0.0)
    batching: str = setting(
        "what a step encodes: a history per sample, or whole sequences with all their targets",
        choices=("samples", "sequences"),
    )
    batch_size: int = setting("samples (batching=sequences: windows of sequences) per step", ge=1)
    ema: float = setting("decay per step of the weights' exponential moving average; 0: off", ge=0.0, lt=1.0)
    max_epochs: int = setting("epochs at most", ge=1)
    patience: int = setting("epochs without a better validation metric before training stops", ge=1)
    device: str = setting(
        "auto takes CUDA when there is one", choices=("auto", "cpu", "cuda"), in_fingerprint=False
    )
    compile: bool = setting("fuse the step's kernels with torch.compile (minutes of compilation once)")
    precision: str = setting("of the training step; evaluation is always fp32", choices=("fp32", "bf16"))

    @property
    def base_loss(self) -> str:
        """The loss without its DROS term."""
        return self.dros_base if self.loss == "dros" else self.loss

    def problems(self) -> list[str]:
        out = []
        if self.architecture == "sasrec" and self.width % self.heads:
            out.append(f"heads: found {self.heads} with width={self.width}, expected a divisor of the width")
        if self.architecture == "sasrec_dllm2rec" and (self.blocks, self.heads) != (1, 1):
            out.append(
                f"blocks, heads: found {self.blocks}, {self.heads}, expected 1, 1 with sasrec_dllm2rec"
            )
        if self.architecture.startswith("caser") and self.tie_output:
            out.append(
                "tie_output: found true with caser, expected false (its hidden state is wider than the items)"
            )
        if self.batching == "sequences" and self.architecture not in CAUSAL:
            out.append(
                f"batching: found sequences with architecture={self.architecture}, expected samples, or one of "
                f"{', '.join(CAUSAL)}, which read no item after the target"
            )
        if self.batching == "sequences" and self.compile:
            out.append("compile: found true with batching=sequences, expected false (steps differ in size)")
        if self.learn_repeats and self.loss in ("bce", "gbce"):
            out.append(
                f"learn_repeats: found true with loss={self.loss}, expected false (sampled negatives are never "
                "history items, so they cannot teach it)"
            )
        if self.label_smoothing and self.base_loss != "ce":
            out.append(
                f"label_smoothing: found {self.label_smoothing} with loss={self.base_loss}, expected 0"
            )
        return out
