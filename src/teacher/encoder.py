"""The frozen sequence encoder: a SASRec trained on the same split, then eval mode forever."""

from __future__ import annotations

import shutil

import numpy as np
import torch
from torch import Tensor

from src.core.artifacts import is_complete, load_manifest, lock, number_in, sha256_file
from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.logging import get_logger
from src.core.metrics import EvalConfig
from src.core.paths import model_dir, resolve, work_dir
from src.core.run import Run
from src.student.architectures import Student
from src.student.checkpoint import load_student_model, save_student
from src.student.config import StudentConfig
from src.student.trainer_baseline import train_student
from src.teacher.config import encoder_fingerprint

# The encoder's best epoch; how the run reports its own metrics has no say in it.
_SELECTION = EvalConfig(
    ks=(10,), select_metric="NDCG@10", exclude_history=False, batch_size=512, candidates=None
)
log = get_logger(__name__)


class FrozenEncoder:
    """A trained SASRec that never trains again: no gradient, no dropout.

    Attributes:
        student: the model.
        seconds: what its training took (in the run that trained it).
        reused: whether it was there already.
        weights: SHA-256 of the file of its weights.
    """

    def __init__(self, student: Student, seconds: float, reused: bool, weights: str):
        self.student = student.eval().requires_grad_(False)
        self.seconds, self.reused, self.weights = seconds, reused, weights

    @property
    def width(self) -> int:
        return self.student.output_width

    def item_table(self) -> Tensor:
        """[N+1, E] raw input item vectors (not contextual states), row 0 zeros."""
        return self.student.item_table().detach()

    @torch.no_grad()
    def h_seq(self, histories: np.ndarray, batch_size: int = 4096) -> Tensor:
        """[n, L] histories -> [n, E] the last block's normed output at the newest item, on the CPU."""
        device, starts = self.item_table().device, range(0, len(histories), batch_size)
        batches = (torch.from_numpy(histories[i : i + batch_size]).long().to(device) for i in starts)
        return torch.cat([self.student.encode(batch).cpu() for batch in batches])

    @torch.no_grad()
    def prior(self, h_seq: Tensor, histories: np.ndarray) -> Tensor:
        """[n, E] of `h_seq` and the [n, L] histories it was made from -> [n, N] log-softmax over the catalogue."""
        device = self.item_table().device
        scores = self.student.score(h_seq.to(device), history=torch.from_numpy(histories).long().to(device))
        return torch.log_softmax(scores, dim=-1).cpu()

    def log_probabilities(self, histories: np.ndarray) -> Tensor:
        """[n, L] histories -> [n, N] log-softmax over the catalogue, on the CPU; the caller bounds n."""
        return self.prior(self.h_seq(histories), histories)


def encoder_of_finished_run(run: str, data: InteractionData) -> FrozenEncoder:
    """The SASRec of a finished run as the frozen encoder; raises UserError where it is none, or of other data."""
    folder = resolve(run) / "models" / "student"
    student, config = load_student_model(folder, dataset_fingerprint=data.fingerprint)
    _refuse_others(config, f"teacher.encoder_run={run}")
    weights = sha256_file(folder / "model.safetensors")
    log.info("frozen encoder: the student of %s", folder)
    return FrozenEncoder(student, 0.0, True, weights)


def _refuse_others(config: StudentConfig, where: str) -> None:
    if config.architecture not in ("sasrec", "sasrec_dllm2rec"):
        raise UserError(f"{where}: architecture {config.architecture}", "a SASRec", "teacher.encoder")


def frozen_encoder(
    config: StudentConfig,
    data: InteractionData,
    seed: int,
    train_ids: np.ndarray | None = None,
    run: Run | None = None,
) -> FrozenEncoder:
    """The encoder for these settings, trained now if no earlier run did.

    Args:
        train_ids: the samples it learns from; None: the training split.
        run: TensorBoard of the run that trains it.

    Raises:
        UserError: not a SASRec whose sequence and item vectors have one width.
    """
    from src.core.selection import Selection

    _refuse_others(config, "teacher.encoder")
    subset = None if train_ids is None else np.sort(np.asarray(train_ids, np.int64))
    fp = encoder_fingerprint(config, seed, data.fingerprint, subset)
    folder = model_dir(data.name, "sasrec_encoder", fp)
    fix = f"delete {folder}"
    work = work_dir("encoder", fp)
    with lock(folder, log.info):
        reused = is_complete(folder)
        if not reused:
            log.info("training the frozen encoder (%s)", config.name)
            student, result = train_student(
                config,
                data,
                _SELECTION,
                seed=seed,
                folder=work,
                fingerprint=fp,
                run=None if run is None else run.within("encoder"),
                selection=None if subset is None else Selection(subset),
            )
            fields = {"fingerprint": fp, "seed": seed, "best_epoch": result.best_epoch}
            fields |= {"valid_ndcg10": result.best_value, "train_seconds": result.seconds}
            save_student(folder, student, config, data, fields)
        shutil.rmtree(work, ignore_errors=True)  # also what a kill after the training left
    manifest = load_manifest(folder, {"dataset_fingerprint": data.fingerprint, "fingerprint": fp}, fix)
    student, _ = load_student_model(folder, fingerprint=fp)
    value, seconds = (number_in(manifest, key, folder, fix) for key in ("valid_ndcg10", "train_seconds"))
    get_logger(f"{__name__}.kept").info("frozen encoder %s: valid NDCG@10 %.4f", folder, value)
    return FrozenEncoder(student, seconds, reused, sha256_file(folder / "model.safetensors"))
