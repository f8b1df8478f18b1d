"""The teacher's samples: prompts, gates' inputs and labels for given sample ids, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.geometry import principal_directions
from src.teacher.config import IloraExportConfig
from src.teacher.encoder import FrozenEncoder
from src.teacher.find_batch_size import BatchSizeFinder
from src.teacher.ilora_model import IloraModel
from src.teacher.prompts import Example, PromptBatch, PromptBuilder, collate


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass: prompts with what belongs to them, on one device.

    Attributes:
        rows: [B] positions of the samples in the ids that were asked for.
        prompts: tokens.
        h_seq: [B, E] frozen sequence vectors.
        targets: [B] item ids.
        prior: [B, N] the frozen SASRec's log-probabilities; None where the objective has no prior.
    """

    rows: np.ndarray
    prompts: PromptBatch
    h_seq: Tensor
    targets: Tensor
    prior: Tensor | None

    def to(self, device: torch.device) -> MicroBatch:
        prior = None if self.prior is None else self.prior.to(device)
        return MicroBatch(
            self.rows, self.prompts.to(device), self.h_seq.to(device), self.targets.to(device), prior
        )


class SampleSource:
    """Turns sample ids into micro-batches.

    Args:
        data: the dataset.
        builder: of prompts.
        encoder: gives h_seq.
        prior: whether micro-batches carry the encoder's log-probabilities of the catalogue.
    """

    def __init__(
        self, data: InteractionData, builder: PromptBuilder, encoder: FrozenEncoder, prior: bool = False
    ):
        self.data, self.builder, self.encoder, self.prior = data, builder, encoder, prior
        # Short texts, many at once: they may shrink further than a training pass.
        self.item_passes = BatchSizeFinder(min(256, data.n_items), "teacher.llm.dtype", most=8)
        self._titles: Tensor | None = None
        self._item_states: tuple[IloraModel, bool, list[Tensor], Tensor] | None = None

    def titles_are(self, states: np.ndarray, device: torch.device) -> None:
        """Items are read as these states [N, H] of their bare titles, whatever the adapter learns.

        Their principal directions are half-whitened, as the distillation reads them: raw states share one large
        direction, beside which the head would have to learn the small ones.
        """
        left, values = principal_directions(states)
        half = np.zeros(states.shape, np.float32)
        half[:, : len(values)] = left * np.sqrt(values)
        self._titles = torch.from_numpy(half).to(device)

    def examples(
        self, sample_ids: np.ndarray, epoch: int | None, answers: bool, candidates: int, reserve: int = 0
    ) -> list[Example]:
        """Prompts of the samples, in order.

        Args:
            epoch: choose a training wording for this epoch; None takes the evaluation's.
            answers: end with the target's title.
            candidates: length of the candidate list; 0 lists none.
            reserve: tokens of the context that stay free behind a prompt.
        """
        histories, targets = self.data.histories(sample_ids), self.data.targets(sample_ids)
        out = []
        for sample, history, target in zip(sample_ids.tolist(), histories, targets.tolist(), strict=True):
            # Training sees other candidates in every epoch, evaluation always the same.
            draw = epoch or 0
            listed = (
                self.builder.candidates(sample, history, target, candidates, draw) if candidates else None
            )
            wording = None if epoch is None else self.builder.wording(sample, epoch)
            answer = target if answers else None
            out.append(self.builder.build(history, wording, listed, answer, reserve))
        return out

    def micro_batches(
        self,
        sample_ids: np.ndarray,
        size: int,
        *,
        epoch: int | None = None,
        answers: bool = False,
        candidates: int = 0,
    ) -> Iterator[MicroBatch]:
        """The samples, those of like length together, at most `size` at a time."""
        examples = self.examples(sample_ids, epoch, answers, candidates)
        histories = self.data.histories(sample_ids)
        h_seq = self.encoder.h_seq(histories)
        targets = torch.from_numpy(self.data.targets(sample_ids).astype(np.int64))
        order = np.argsort([len(e.ids) for e in examples], kind="stable")
        for i in range(0, len(order), size):
            rows = order[i : i + size]
            prior = self.encoder.prior(h_seq[rows], histories[rows]) if self.prior else None
            yield MicroBatch(rows, collate([examples[r] for r in rows]), h_seq[rows], targets[rows], prior)

    def item_states(self, model: IloraModel, hybrid: bool) -> Tensor:
        """[N, H] `model.item_states` of the catalogue, in passes that fit the memory.

        Read again only where a weight that acts on titles has another value than at the last reading: a refresh, the
        validation and the export at the same step share one reading.
        """
        if self._titles is not None:
            return self._titles
        weights = [p.detach() for part in ("lora", "projector") for p in model.parts()[part]]
        kept = self._item_states
        if kept is not None and kept[0] is model and kept[1] == hybrid and _equal(kept[2], weights):
            return kept[3]
        self._item_states = None  # its memory first
        states = self.item_passes.run(lambda size: self._read_items(model, hybrid, size))
        self._item_states = model, hybrid, [w.clone() for w in weights], states
        return states

    def _read_items(self, model: IloraModel, hybrid: bool, size: int) -> Tensor:
        """The texts of the catalogue, those of like length together: in id order most of what is read is padding."""
        texts = [self.builder.item_text(i) for i in range(1, self.data.n_items + 1)]
        order = np.argsort([len(text.ids) for text in texts], kind="stable")
        starts = range(0, len(order), size)
        found = model.item_states(
            [collate([texts[i] for i in order[at : at + size]]) for at in starts], hybrid
        )
        states = torch.empty_like(found)
        states[torch.from_numpy(order).to(found.device)] = found
        return states


@dataclass(frozen=True)
class Context:
    """A teacher with its samples and export settings, as ranking, evaluation and validation need them.

    Attributes:
        model, source: the trained teacher and its samples.
        export: `teacher.export`.
        hybrid: placeholders carry item vectors.
        seed: of the order in which candidates are listed.
    """

    model: IloraModel
    source: SampleSource
    export: IloraExportConfig
    hybrid: bool
    seed: int

    def with_batch(self, size: int) -> Context:
        """The same with `size` samples per forward pass."""
        return replace(self, export=replace(self.export, batch_size=size))


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """By value: some optimizers change a tensor without a mark on it."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
