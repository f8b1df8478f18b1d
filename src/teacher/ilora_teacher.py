"""iLoRA as a `Teacher`: puts encoder, LLM, prompts, training and ranking together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from src.core.artifacts import MANIFEST, fingerprint, is_complete, number_in, read_json
from src.core.candidates import CandidateSet, Choices, choose_by_scores
from src.core.config import determining
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.paths import model_dir, work_dir
from src.core.run import Run
from src.core.seed import numpy_stream, seed_everything
from src.core.teacher_store import TeacherRows
from src.teacher.candidate_eval import by_item_scores, by_language
from src.teacher.checkpoint import load_teacher, reset_trained, save_teacher
from src.teacher.config import IloraConfig, model_fingerprint
from src.teacher.diagnostics import check_reading
from src.teacher.distributed import ProcessGroup
from src.teacher.encoder import encoder_of_finished_run, frozen_encoder
from src.teacher.find_batch_size import BatchSizeFinder
from src.teacher.ilora_model import IloraModel
from src.teacher.kept_states import kept_states
from src.teacher.llm import compile_blocks
from src.teacher.llm_loading import load_llm
from src.teacher.prompt_tokens import readable_titles
from src.teacher.prompts import PromptBuilder, collate
from src.teacher.ranking import SCORE_KIND, Ranker, item_vectors, make_ranker
from src.teacher.ranking.hidden import catalogue_scores
from src.teacher.samples import Context, SampleSource
from src.teacher.tiny_llm import tiny_llm_folder
from src.teacher.title_states import TextEmbedder
from src.teacher.trainer import TeacherProgress, TeacherTrainer, gates_of

log = get_logger(__name__)


class IloraTeacher:
    """See `interfaces.Teacher`. Nothing is loaded before `prepare`.

    Args:
        config: the teacher's settings.
        data: the dataset.
        train_ids: the samples it may learn from; None: the training split.
        tuned_ids: of these, the samples that the adapter is trained on; None: all. The frozen encoder learns from all.
    """

    def __init__(
        self,
        config: IloraConfig,
        data: InteractionData,
        train_ids: np.ndarray | None = None,
        tuned_ids: np.ndarray | None = None,
    ):
        self.config, self.data, self.name = config, data, config.name
        self.subset = None if train_ids is None else np.sort(np.asarray(train_ids, np.int64))
        self.tuned = None if tuned_ids is None else np.sort(np.asarray(tuned_ids, np.int64))
        self.fingerprint = model_fingerprint(config, data.fingerprint, self.subset, self.tuned)
        self.folder = model_dir(data.name, "teacher", self.fingerprint)
        self.score_kind = SCORE_KIND[config.export.ranking]
        self._ranker: Ranker | None = None
        self._passes = BatchSizeFinder(config.export.batch_size, "teacher.export.batch_size")

    def prepare(self, run: Run | None) -> Mapping[str, Any]:
        """Build everything; train unless a teacher of this fingerprint is there.

        Raises:
            UserError: settings that do not fit the data or the LLM, or a training that went wrong.
        """
        if (rows := self.config.overfit) is not None:
            found = f"a teacher with teacher.overfit={rows}"
            raise UserError(found, "null: it is no result", "teacher.overfit")
        processes = self.open(run)
        with processes.lock(self.folder):
            reused = processes.agree(is_complete(self.folder))
            if not reused:
                self._train(run)
                processes.agree(True)  # the others wait until the main process has saved
                before = self._probe()
                reset_trained(self.model)  # what was not saved stays unusable, and the comparison shows it
            expect = {"fingerprint": self.fingerprint, "llm": self.llm_identity}
            manifest = load_teacher(self.folder, self.model, **expect)
            if not reused and not torch.equal(before, self._probe()):
                raise RuntimeError(
                    f"{self.folder}: the reloaded teacher gives other states than the trained one"
                )
            if (weights := manifest.get("encoder_weights")) not in (None, self.encoder.weights):
                raise UserError(
                    f"{self.folder} was trained with an encoder of the weights {weights}",
                    f"{self.encoder.weights}, those of the encoder that is there now",
                    f"delete {self.folder} to train again, or restore the earlier weights",
                )
            trained = {n: h for n, h in manifest["files"].items() if n.endswith(".safetensors")}
            parts = {"encoder": self.encoder.weights, "llm": self.llm_identity, "trained": trained}
            self._weights = fingerprint(parts)
            if processes.main:  # the checkpoint, also one that a kill left
                shutil.rmtree(work_dir("teacher", self.fingerprint), ignore_errors=True)
        self.model.eval()
        self._ranker = None
        return {**manifest["training"], "reused": reused}

    def weights(self) -> str:
        return self._weights

    def open(self, run: Run | None = None) -> ProcessGroup:
        """The processes of the launch, and everything up to the untrained model. What may be refused comes before
        what is trained.

        Args:
            run: TensorBoard of the encoder's training (not of a fold's: one curve per tag).
        """
        config, data = self.config, self.data
        processes = self._processes()  # before the accelerator, for which its timeout holds too
        self.accelerator = self._accelerator()
        folder, self.llm_seconds = self.embedded_llm(), 0.0
        if folder is not None:
            made = read_json(folder / MANIFEST)
            self.llm_seconds = number_in(made, "train_seconds", folder, f"delete {folder}")
        llm = load_llm(config.llm, folder)
        if llm.bidirectional and config.objective.lm > 0:
            found = f"teacher.objective.lm={config.objective.lm} with a bidirectional LLM"
            raise UserError(found, "0: it cannot write an answer", "teacher.objective.lm")
        self.builder = PromptBuilder(config.prompt, llm.tokenizer, data.titles, llm.context, config.seed)
        if config.encoder_run is not None:
            self.encoder = encoder_of_finished_run(config.encoder_run, data)
        else:
            curves = None if self.subset is not None else run
            self.encoder = frozen_encoder(config.encoder, data, config.seed, self.subset, curves)
        prior = config.objective.item > 0 and config.objective.prior == "sasrec"
        self.source = SampleSource(data, self.builder, self.encoder, prior)
        self.llm_identity = llm.identity
        if (chat := self.builder.chat) is not None:  # a template may change with tokenizer and transformers
            self.llm_identity = {**llm.identity, "chat": [chat.before, chat.after, chat.end]}
        seed_everything(config.seed, "teacher_init")
        counts = np.bincount(data.targets(self.train_sample_ids()), minlength=data.n_items + 1)
        self.model = IloraModel(config, llm, self.encoder.item_table(), torch.from_numpy(counts))
        self.model.to(self.accelerator.device)
        check_reading(self.model)
        if config.objective.item > 0 and config.objective.titles == "base":
            self.source.titles_are(self._title_states("base"), self.model.device)
        if config.llm.compile:
            compile_blocks(self.model.llm, self.model.gates)
        return processes

    def embedded_llm(self) -> Path | None:
        """The folder of the embedded LLM, made now if it is not there; None with another LLM."""
        config, processes = self.config, self._processes()
        if config.llm.tiny is None:
            return None
        if processes.main:  # Hugging Face writes a model in the main process only
            folder = self._tiny_llm()
        processes.agree(True)
        return folder if processes.main else self._tiny_llm()

    def _tiny_llm(self) -> Path:
        c, device = self.config, self._accelerator().device
        assert c.llm.tiny is not None
        return tiny_llm_folder(c.llm.tiny, c.prompt, self.data, c.seed, device, self.subset)

    def _processes(self) -> ProcessGroup:
        return ProcessGroup.join(cpu=self.config.train.device == "cpu")

    def _accelerator(self) -> Accelerator:
        train = self.config.train
        if train.device == "cuda" and not torch.cuda.is_available():
            raise UserError("teacher.train.device=cuda without a GPU", "auto or cpu", "teacher.train.device")
        return Accelerator(cpu=train.device == "cpu", mixed_precision=train.precision)

    def starting_weights(self) -> dict[str, Any]:
        """Hashes of the weights that training starts from, which no fingerprint holds: a resume needs the same ones."""
        llm = {f"llm {name}": value for name, value in self.llm_identity.items()}
        return llm | {"encoder weights": self.encoder.weights}

    def train_sample_ids(self) -> np.ndarray:
        """All that the frozen encoder learned from: its scores and vectors are a part of this teacher, so a row
        is out of sample only where neither encoder nor LLM saw its target."""
        return self.data.splits["train"] if self.subset is None else self.subset

    def llm_sample_ids(self) -> np.ndarray:
        """[n] ascending ids that the LLM's adapter is trained on: of the selected ones, `train.samples`."""
        ids, count = self.train_sample_ids(), self.config.train.samples
        if self.tuned is not None:
            ids = np.intersect1d(ids, self.tuned)
        if count is None or count >= len(ids):
            return ids
        return np.sort(numpy_stream(self.config.seed, "teacher_samples").choice(ids, count, replace=False))

    def rank(self, split: str, sample_ids: np.ndarray, k: int) -> TeacherRows:
        ids = np.asarray(sample_ids)
        return self._passes.run(lambda size: self._ranker_with(size).rank(ids, k), self._forget_ranker)

    def score_all(self, sample_ids: np.ndarray) -> np.ndarray:
        """[n, N] float32 log-probabilities of the whole catalogue (objective item); the caller bounds n."""
        out = np.empty((len(sample_ids), self.data.n_items), np.float32)

        def scored(size: int) -> np.ndarray:
            ranker: Any = self._ranker_with(size)
            for rows, log_p in catalogue_scores(ranker.context, sample_ids, ranker.items):
                out[rows] = log_p.cpu().numpy()
            return out

        return self._passes.run(scored, self._forget_ranker)

    def choose(self, candidates: CandidateSet) -> dict[str, Choices]:
        """By generation and likelihood (objective lm), by item scores (objective item), and what the frozen
        SASRec alone chooses."""
        return self._passes.run(lambda size: self._choose_with(size, candidates))

    def _choose_with(self, batch_size: int, candidates: CandidateSet) -> dict[str, Choices]:
        context, objective, out = self._context(batch_size), self.config.objective, dict[str, Choices]()
        if objective.lm > 0:
            out |= by_language(context, candidates)
        if objective.item > 0:
            out["item_scores"] = by_item_scores(context, candidates)

        def sasrec(ids: np.ndarray) -> np.ndarray:
            return self.encoder.log_probabilities(self.data.histories(ids)).numpy()

        return out | {"frozen_sasrec": choose_by_scores(candidates, sasrec, 1024)}

    def _context(self, batch_size: int) -> Context:
        context = Context(self.model, self.source, self.config.export, self.hybrid, self.config.seed)
        return context.with_batch(batch_size)

    def _ranker_with(self, batch_size: int) -> Ranker:
        if self._ranker is None:
            self._ranker = make_ranker(self._context(batch_size))
        return self._ranker

    def _forget_ranker(self) -> None:
        self._ranker = None

    def item_embeddings(self) -> np.ndarray:
        """[N+1, D]: the head's vectors, or the LLM's states of the titles (without the adapter: once per LLM)."""
        export = self.config.export
        # An untrained head has no item vectors: those of the LLM as it is are its states of the titles.
        if export.embedding.source == "head" and len(self.llm_sample_ids()):
            states = item_vectors(self._context(1)).float().cpu().numpy()
        else:
            states = self._title_states(export.embedding.weights)
        return np.concatenate([np.zeros((1, states.shape[1]), np.float32), states])

    def _title_states(self, weights: str) -> np.ndarray:
        """[N, H] by the LLM with its adapter (`adapted`) or without (`base`), which are read once per LLM and kept."""
        export = self.config.export
        embedding = replace(export.embedding, weights=weights)
        embedder = TextEmbedder(self.model, self.builder, embedding, export.batch_size)
        whole = readable_titles(self.builder.tokens, self.data.titles, None)  # however short prompts cut them
        if weights == "adapted":
            return embedder.titles(whole)[1:]
        # As teacher=text calls the same states: who comes second finds them.
        settings = {"prompt": "{title}", "pooling": embedding.pooling, "layers": [embedding.layer]}
        llm = self.config.llm.identity()
        if (
            self.config.llm.tiny is not None or self.model.bidirectional
        ):  # other names, or read otherwise there
            settings, llm = {"embedding": determining(embedding)}, {"llm": llm, "weights": self.llm_identity}
        compute = lambda: (embedder.titles(whole)[1:], self.llm_identity)  # noqa: E731
        return kept_states(self.data, fingerprint(llm), settings, compute).table

    @property
    def hybrid(self) -> bool:
        return self.config.prompt.mode == "hybrid"

    def _train(self, run: Run | None) -> None:
        config, data = self.config, self.data
        valid = data.splits["valid"]
        if len(valid) > config.train.eval_samples:
            rng = numpy_stream(config.seed, "teacher_valid")
            valid = np.sort(rng.choice(valid, config.train.eval_samples, replace=False))
        train_ids = self.llm_sample_ids()
        counts = {name: sum(p.numel() for p in group) for name, group in self.model.parts().items()}
        base = sum(p.numel() for p in self.model.llm.parameters()) - counts["lora"]
        if not len(train_ids):  # teacher.train.samples=0: the LLM as it is
            self._save(TeacherProgress(), 0)
            return
        log.info("training on %d samples; base %d parameters, trained %s", len(train_ids), base, counts)
        trainer = TeacherTrainer(
            config,
            self.model,
            self.source,
            train_ids,
            valid,
            work_dir("teacher", self.fingerprint),
            self.fingerprint,
            self.accelerator,
            run,
            self.starting_weights(),
        )
        self._save(trainer.fit(), len(train_ids))

    def _save(self, done: TeacherProgress, train_samples: int) -> None:
        fields = {
            "dataset": self.data.name,
            "dataset_fingerprint": self.data.fingerprint,
            "fingerprint": self.fingerprint,
            "llm": self.llm_identity,
            "encoder_weights": self.encoder.weights,
            "training": {
                # What the encoder and the tiny LLM cost the run that made them, also where they are reused.
                "train_seconds": round(self.encoder.seconds + self.llm_seconds + done.seconds, 3),
                "encoder_seconds": round(self.encoder.seconds, 3),
                "llm_seconds": round(self.llm_seconds, 3),
                "train_samples": train_samples,
                "processes": self.accelerator.num_processes,
                "steps": done.step,
                "best_step": done.best_step,
                "validation": done.best_value if done.step else None,
            },
        }
        if self.accelerator.is_main_process:
            save_teacher(self.folder, self.model, fields)

    def gates(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Expert weights [n, K] and the sequence vectors [n, E] that they follow from; None with a single expert."""
        if self.model.experts < 2:
            return None
        self.model.eval()
        vectors = self.encoder.h_seq(self.data.histories(sample_ids)).numpy()
        return gates_of(self.model, self.source, sample_ids), vectors

    @torch.no_grad()
    def _probe(self) -> torch.Tensor:
        """The states of one validation prompt, [1, T, H]: equal states are equal logits."""
        history = self.data.histories(self.data.splits["valid"][:1])
        batch = collate([self.builder.build(history[0])]).to(self.model.device)
        self.model.eval()
        with self.model.gates.use(self.model.gate(self.encoder.h_seq(history).to(self.model.device))):
            return self.model.states(batch, self.hybrid)
