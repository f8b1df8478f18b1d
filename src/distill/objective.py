"""What a distilled student minimises: its own loss, the teacher's rankings, the teacher's item vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.seed import derive
from src.distill import kd_losses
from src.distill.config import DistillConfig
from src.distill.data_bridge import RankingSignals
from src.distill.item_fusion import FusedItems, TeacherProjection
from src.distill.meta_weights import LearnedWeights
from src.student.architectures import ItemTables, Student
from src.student.config import StudentConfig
from src.student.datamodule import SampleBatch, Samples
from src.student.fused_losses import CatalogueTerms, catalogue_terms, in_full_precision
from src.student.objective import Objective, RecommendationLoss, draw_negatives


class DistillObjective(Objective):
    """student.loss + lam * L_rd + align_weight * L_align, the student reading fused item vectors.

    Per sample: the trainer averages. What the policy selected and the samples' last recommendation losses
    are buffers, so a checkpoint holds them.

    Args:
        student, student_config, data, seed: as for the baseline.
        config: the distillation.
        signals: the teacher's rankings in the order of `data.splits["train"]`; None when lam = 0.
        vectors: [N+1, D] teacher item vectors; None with embedding=none.
    """

    def __init__(
        self,
        student: Student,
        student_config: StudentConfig,
        config: DistillConfig,
        data: InteractionData,
        seed: int,
        signals: RankingSignals | None,
        vectors: Tensor | None,
    ):
        super().__init__(student)
        self.config, self.seed = config, seed
        self.recommendation = RecommendationLoss(student_config, data, seed)
        self.fusion = self.projection = None
        if vectors is not None and config.fuses:
            counts = torch.from_numpy(data.train_counts())
            self.fusion = FusedItems(student, vectors, counts, self._excluded(counts, signals), config)
            self.projection = self.fusion.inputs
        elif vectors is not None:
            self.projection = TeacherProjection(vectors, student.width, config, unit_rows=False)
        self.ranks = signals is not None
        if signals is not None:
            gammas = (config.gamma_position, config.gamma_confidence, config.gamma_consistency)
            self.gammas = gammas
            position = kd_losses.position_weights(signals.candidates.shape[1], config.beta_pos)
            self.register_buffer("position", position, persistent=False)
            self.register_buffer("candidates", signals.candidates, persistent=False)
            self.register_buffer("confidence", signals.confidence, persistent=False)
            self.register_buffer("gate", signals.gate, persistent=False)
            self.register_buffer("sample_weights", signals.weights)
            self.register_buffer("sample_losses", torch.full_like(signals.weights, float("nan")))
        self.learned: LearnedWeights | None = None
        self._generator: torch.Generator | None = None

    def start_epoch(self, epoch: int, samples: Samples) -> None:
        if self.ranks and len(samples) != len(self.candidates):
            raise ValueError(
                f"{len(samples)} samples; the teacher's rows stand beside {len(self.candidates)}"
            )
        self.recommendation.start_epoch(epoch)
        self._generator = torch.Generator(samples.device).manual_seed(
            derive(self.seed, "distill", "draws", epoch)
        )
        if self.learned is not None:
            self.learned.start_epoch(epoch)

    def _excluded(self, counts: Tensor, signals: RankingSignals | None) -> Tensor | None:
        """[N] bool, items that no sample is asked for: with `untrained_negatives=false` they are no negatives.

        The DRO terms square the scores and label smoothing averages them: there no score stands for "not there".
        """
        own = self.recommendation.config
        whole = self.recommendation.needs_dro or self.config.alpha > 0 or own.label_smoothing > 0
        if self.config.untrained_negatives or whole:
            return None
        excluded = counts[1:] == 0
        if signals is not None:
            followed = signals.weights > 0 if signals.gate is None else (signals.weights * signals.gate) > 0
            excluded[signals.candidates[followed].long().cpu()] = False
        return excluded

    def item_tables(self) -> ItemTables | None:
        """The fused tables; None where nothing is fused."""
        return None if self.fusion is None else self.fusion(self.student)

    def forward(self, batch: SampleBatch) -> tuple[Tensor, dict[str, Tensor]]:
        learned = self._learn_weights(batch) if self.learned is not None and self.training else {}
        hidden, tables = self._encode(batch)
        negatives = self.recommendation.negatives(batch)
        if not self.ranks:
            loss = self.recommendation(self.student, hidden, batch, negatives, tables)
            parts = {"recommendation": loss.detach().mean()}
        else:
            loss, ranking, _ = self._rank(batch, hidden, tables, negatives)
            parts = {"recommendation": loss.detach().mean(), "ranking": ranking.detach().mean(), **learned}
            self.sample_losses[batch.rows] = loss.detach().to(self.sample_losses.dtype)
            loss = loss + ranking
        if self.config.aligns:
            align = self.config.align_weight * self._align()
            parts["align"] = align.detach()
            loss = loss + align
        return loss, parts

    def learn_weights(self, learned: LearnedWeights) -> None:
        """Let `learned` set the samples' distillation weights; its net is a part of this module's state."""
        own = self.recommendation.config
        if not self.recommendation.needs_log_z or self.config.rd_loss != "ce" or own.compile:
            raise UserError(
                f"active.meta={learned.config.meta} with student.loss={own.loss}, distill.rd_loss={self.config.rd_loss}, "
                f"student.compile={own.compile}",
                "losses without drawn negatives (ce), and compile=false: weights need the same loss twice",
                "active.meta",
            )
        self.learned, self.weight_net = learned, learned.net
        self.register_buffer("selected_weights", self.sample_weights.clone())

    def _learn_weights(self, batch: SampleBatch) -> dict[str, Tensor]:
        """Set the weights of the batch's samples; returns how they are spread and how far they moved."""

        def held_out_loss(held_out: SampleBatch) -> Tensor:
            hidden, tables = self._encode(held_out)
            return self.recommendation(self.student, hidden, held_out, None, tables).mean()

        def terms() -> tuple[Tensor, Tensor, Tensor]:
            loss, ranking, consistency = self._rank(batch, *self._encode(batch), None)
            return ranking, loss, consistency

        before, selected = self.sample_weights[batch.rows], self.selected_weights[batch.rows]
        self.sample_weights[batch.rows] = selected
        self.eval()  # the same loss at every evaluation
        parameters = [p for p in self.parameters() if p.requires_grad]
        confidence = self.confidence[batch.rows].mean(dim=1)
        with torch.autocast(before.device.type, enabled=False):  # differences of losses need all digits
            weights = self.learned.weights(parameters, held_out_loss, terms, batch, confidence, selected)
        self.train()
        self.sample_weights[batch.rows] = weights
        return {
            "weight_zero": (weights == 0).float().mean(),
            "weight_deviation": weights.std(correction=0),
            "weight_drift": (weights - before).abs().mean(),
        }

    def _encode(self, batch: SampleBatch) -> tuple[Tensor, ItemTables | None]:
        """Sequence vectors [B, D], and the tables that scoring needs (None: the student's own).

        Where only the input table is fused and the output layer has its own, only the rows of the batch's
        histories are fused: [M, D] instead of [N+1, D]. Not on a GPU, which would wait for their number, nor
        compiled.
        """
        student, fusion = self.student, self.fusion
        if fusion is None:
            return student.encode_at(batch.inputs, batch.places), None
        inputs_alone = student.output is not None and not self.config.fuse_output
        if not inputs_alone or batch.inputs.is_cuda or torch.compiler.is_compiling():
            tables = fusion(student, training=self.training)
            return student.encode_at(batch.inputs, batch.places, tables), tables
        # Row 0 must stay first: students take id 0 for padding.
        padded = torch.cat([batch.inputs.new_zeros(1), batch.inputs.flatten()])
        rows, local = torch.unique(padded, return_inverse=True)
        tables = student.tables()._replace(inputs=fusion.input_rows(student, rows))
        return student.encode_at(local[1:].view_as(batch.inputs), batch.places, tables), None

    def _rank(
        self, batch: SampleBatch, hidden: Tensor, tables: ItemTables | None, negatives: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """student.loss [B]; lam * L_rd of every sample [B], 0 where it is not distilled; its mean consistency [B].

        Args:
            hidden, tables: of `_encode`.
            negatives: [B, M] items that the recommendation loss drew; the first is shared, as in the code.
        """
        c, rec = self.config, self.recommendation
        candidates = self.candidates[batch.rows].long()
        if negatives is None and c.rd_loss == "bce":
            negatives = draw_negatives(batch, self.student.n_items, 1, self._generator)
        own = rec.columns(batch, negatives)
        scores, terms, dro = self._terms(batch, hidden, tables, own, candidates)
        chosen = terms.values[:, own.shape[1] :]
        consistency = kd_losses.consistency(scores, scores.gather(1, candidates), candidates.shape[1])
        confidence = self.confidence[batch.rows]
        weights = kd_losses.ranking_weights(self.position, confidence, consistency, self.gammas)
        if c.rd_loss == "ce":
            per_candidate = kd_losses.rd_ce(terms.log_z, chosen)
        else:
            per_candidate = kd_losses.rd_bce(chosen, terms.values[:, 1], c.rd_negative)
        ranking = (weights * per_candidate).sum(dim=1)
        sample_weights = self.sample_weights[batch.rows]
        if self.gate is not None:
            sample_weights = sample_weights * self.gate[batch.rows]
        if dro is not None:
            share = kd_losses.dro_weights(weights, sample_weights, c.dro_weighting)
            ranking = ranking + c.alpha * (share * dro).sum(dim=1)
        loss = rec.from_terms(scores, terms, own.shape[1])
        return loss, c.lam * sample_weights * ranking, consistency.float().mean(dim=1)

    def _terms(
        self, batch: SampleBatch, hidden: Tensor, tables: ItemTables | None, own: Tensor, candidates: Tensor
    ) -> tuple[Tensor, CatalogueTerms, Tensor | None]:
        """Scores [B, N]; terms at the columns of the recommendation loss, then the candidates; the
        candidates' DRO terms. One pass serves all, unless the DRO terms have different radii.

        Where no term sums over the catalogue, the score matrix (for the consistency weights) carries no
        gradient: the chosen items are scored by themselves, which saves two products of its size.
        """
        c, rec = self.config, self.recommendation
        columns = torch.cat([own, candidates], dim=1)
        log_z = rec.needs_log_z or c.rd_loss == "ce"
        dro = rec.needs_dro or c.alpha > 0
        with torch.set_grad_enabled(torch.is_grad_enabled() and (log_z or dro)):
            scores = self.student.score(hidden, tables, batch.history)
        if not (log_z or dro):
            values = self.student.score_items(hidden, columns + 1, tables, batch.history)
            return scores, CatalogueTerms(values, None, None), None
        scores = in_full_precision(scores)
        beta = rec.config.dros_beta if rec.needs_dro else c.beta
        propensity = rec.propensity if dro else None
        terms = catalogue_terms(scores, columns, log_z=log_z, propensity=propensity, beta=beta)
        if c.alpha == 0:
            return scores, terms, None
        if beta == c.beta:
            return scores, terms, terms.dro[:, own.shape[1] :]
        return scores, terms, catalogue_terms(scores, candidates, propensity=propensity, beta=c.beta).dro

    def _align(self) -> Tensor:
        """Distance of the student's own item vectors to the projected ones, over all items or a draw of them."""
        n_items, count, own = self.student.n_items, self.config.align_items, self.student.items.weight
        if count is None or count >= n_items:
            student, teacher = own[1:], self.projection()[1:]
        else:
            drawn = torch.randint(1, n_items + 1, (count,), device=own.device, generator=self._generator)
            student, teacher = own[drawn], self.projection(drawn)
        return kd_losses.align_loss(student, teacher, self.config.align_loss)
