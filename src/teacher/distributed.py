"""The processes of one launch: their ranks, and decisions that all of them must share.

Accelerate's own state holds for a whole Python process: a teacher on the CPU would keep a later one from the GPU. So it
is only made where there are several processes.

Without GPUs `accelerate launch --multi_gpu --num_processes 2` (or `torchrun --nproc-per-node 2`) starts several
processes all the same; `--cpu` starts one, unless there is MPI.
Long waits look for files (`wait_until`): no collective call times out while one process trains.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from src.core.artifacts import lock
from src.core.logging import get_logger
from src.core.signals import check_stop

_POLL_S = 0.2
log = get_logger(__name__)


@dataclass(frozen=True)
class ProcessGroup:
    """Attributes:
    rank, size: this process and their number; rank 0 is the main process.
    """

    rank: int
    size: int

    @classmethod
    def join(cls, cpu: bool) -> ProcessGroup:
        """The processes of this launch; the process group is made where there are several processes.

        Args:
            cpu: no process uses a GPU.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1)
        import torch
        from accelerate import PartialState

        # The main process may wait for the lock of another launch: that takes what it takes.
        state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=timedelta(days=30))
        if state.num_processes != size:
            raise RuntimeError(f"WORLD_SIZE={size}, but the process group has {state.num_processes}")
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def agree(self, value: bool) -> bool:
        """The main process's value, in every process; the others wait for it."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """The lock of an artifact, held by the main process for all."""
        if not self.main:
            yield
            return
        with lock(path, log.info):
            yield

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for the other processes' files; a signal ends it (the launcher sends one when a process fails)."""
        if not done():
            log.info("waiting for %s", what)
        while not done():
            check_stop()
            time.sleep(_POLL_S)
