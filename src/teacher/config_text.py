"""Settings of the teachers that know only what titles say (`conf/teacher/tfidf.yaml`, `text.yaml`)."""

from __future__ import annotations

from src.core.config import config_group, setting


@config_group
class SimilarityConfig:
    """How title vectors rank the catalogue for a history."""

    decay: float = setting("weight of each step back in the history", gt=0.0, le=1.0)
    dim: int | None = setting("principal directions of the vectors that are compared; null: all", ge=1)
    whiten: float = setting(
        "singular values to the power 1 - whiten: 0 as they are, 0.5 half, 1 all equal", ge=0.0, le=1.0
    )
    temperature: float = setting("divides the cosine similarity", gt=0.0)
    popularity: float = setting("weight of log(1 + training count) beside the similarity", ge=0.0)


@config_group
class TitleStatesConfig:
    """How a text becomes one vector."""

    prompt: str = setting("text around {title}")
    pooling: str = setting(
        "mean: over the title's tokens; last: the last token's state; cls: the first token's (encoders)",
        choices=("mean", "last", "cls"),
    )
    layers: tuple[int, ...] = setting(
        "hidden layers whose mean is taken; 0: input embeddings, -1: the last block"
    )
    batch_size: int = setting("texts per forward pass", ge=1, in_fingerprint=False)
    device: str = setting("auto, cpu or cuda", choices=("auto", "cpu", "cuda"), in_fingerprint=False)

    def problems(self) -> list[str]:
        out = []
        if self.prompt.count("{title}") != 1:
            out.append(f"text.prompt: found {self.prompt!r}, expected {{title}} once")
        if not self.layers:
            out.append("text.layers: found none, expected at least one layer")
        return out
