"""What every test needs: the real data if it is there, and a small prepared dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.core.config import build_or_raise
from src.core.data_utils import DatasetConfig, InteractionData, load_dataset
from src.core.paths import ROOT
from tests.compose import composed


def make_dataset_config(name: str, *overrides: str) -> DatasetConfig:
    """`conf/dataset/<name>.yaml` with Hydra overrides ("dataset.min_history=3")."""
    return build_or_raise(DatasetConfig, composed("dataset", f"dataset={name}", *overrides), "dataset")


@pytest.fixture(scope="session")
def dataset_config() -> Callable[..., DatasetConfig]:
    return make_dataset_config


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data (ANYO_DATA; `../shared/data` beside the repository by default)."""
    folder = Path(os.environ.get("ANYO_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder} (environment variable ANYO_DATA)")
    return folder


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with fresh data and result roots, for tests that write."""
    monkeypatch.setenv("ANYO_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("ANYO_RESULT_ROOT", str(tmp_path / "result"))
    return tmp_path


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractionData]:
    """The demo dataset in small (about 100 users and 60 items, all item groups of four)."""
    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(root))
        config = make_dataset_config(
            "demo",
            "dataset.demo.users=100",
            "dataset.demo.items=60",
            "dataset.demo.groups=4",
            "dataset.demo.interactions_per_user=10",
        )
        yield load_dataset(config)
