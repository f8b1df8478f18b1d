"""Random streams: named, independent of each other, the same everywhere; what is said where a GPU is used."""

from __future__ import annotations

import hashlib
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from src.core.logging import close_logging, setup_logging
from src.core.seed import derive, global_state, numpy_stream, seed_everything, set_global_state, torch_stream


def test_a_stream_is_the_hash_of_seed_and_name() -> None:
    expected = int(hashlib.sha256(b"7/epoch/3").hexdigest()[:16], 16) // 2
    assert derive(7, "epoch", 3) == expected < 2**63
    assert len({derive(s, n) for s in range(20) for n in ("a", "b", "a/b")}) == 60


def test_equal_seeds_equal_numbers_and_streams_do_not_shift_each_other() -> None:
    first = numpy_stream(1, "order").permutation(50), torch.rand(5, generator=torch_stream(1, "noise"))
    numpy_stream(1, "something new").random(1000)
    again = numpy_stream(1, "order").permutation(50), torch.rand(5, generator=torch_stream(1, "noise"))
    assert np.array_equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not np.array_equal(first[0], numpy_stream(2, "order").permutation(50))


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_the_global_generators() -> None:
    seed_everything(3, "x")
    first = draws()
    state = global_state()
    after = float(torch.rand(()))
    seed_everything(3, "x")
    assert draws() == first
    seed_everything(3, "y")
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    set_global_state(state)
    assert float(torch.rand(())) == after


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch believes that there is a GPU; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def test_with_a_gpu_the_log_says_what_equal_seeds_promise(gpu: None, tmp_path: Path, capsys) -> None:
    setup_logging(tmp_path / "run.log")
    try:
        seed_everything(1, "x")
        seed_everything(1, "y")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(
                "scatter_add_cuda_kernel does not have a deterministic implementation", stacklevel=1
            )
    finally:
        close_logging()
    said, terminal = (tmp_path / "run.log").read_text(), capsys.readouterr().err
    assert said.count("equal seeds may differ in the last digits") == 1
    assert "scatter_add_cuda_kernel" in said and "scatter_add_cuda_kernel" not in terminal


def test_without_a_gpu_nothing_is_said(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO):
        seed_everything(1, "x")
    assert not caplog.records and not torch.are_deterministic_algorithms_enabled()
