"""A teacher small enough for tests: real parts, tiny sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.core.data_utils import InteractionData
from src.core.errors import ConfigError
from src.teacher.config import IloraConfig
from src.teacher.factory import build_teacher_config
from tests.compose import composed

TINY = [
    "teacher.llm.tiny.vocab_size=400",
    "teacher.llm.tiny.hidden_size=32",
    "teacher.llm.tiny.intermediate_size=48",
    "teacher.llm.tiny.layers=2",
    "teacher.llm.tiny.heads=2",
    "teacher.llm.tiny.epochs=1",
    "teacher.llm.tiny.words.epochs=1",
    "teacher.llm.tiny.words.texts=40",
]
SMALL = [
    "teacher.encoder.width=16",
    "teacher.encoder.blocks=1",
    "teacher.encoder.max_epochs=3",
    "teacher.objective.dim=16",
    "teacher.train.epochs=1",
    "teacher.train.batch_size=32",
    "teacher.train.micro_batch_size=16",
    "teacher.train.eval_samples=40",
]


def compose_teacher(*overrides: str) -> IloraConfig:
    """`conf/teacher` with Hydra overrides, checked as a run checks it."""
    problems: list[str] = []
    config = build_teacher_config(composed("teacher", *overrides), "teacher", problems)
    if problems:
        raise ConfigError(problems)
    return config


@pytest.fixture(scope="session")
def make_config() -> Callable[..., IloraConfig]:
    """The small teacher, with further overrides."""

    def make(*overrides: str) -> IloraConfig:
        embedded = not any(o.startswith("teacher/llm=") for o in overrides)
        return compose_teacher(*SMALL, *(TINY if embedded else ()), *overrides)

    return make


@pytest.fixture(scope="session")
def teacher_roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One data root for all teacher tests, so that encoder and tiny LLM are trained once."""
    root = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(root / "data"))
        patch.setenv("ANYO_RESULT_ROOT", str(root / "result"))
        yield root


@pytest.fixture(scope="session")
def trained(make_config: Callable, demo_data: InteractionData, teacher_roots: Path):
    """A trained small teacher, and what `prepare` said."""
    from src.teacher.ilora_teacher import IloraTeacher

    teacher = IloraTeacher(make_config("teacher.objective.lm=0.5"), demo_data)
    return teacher, teacher.prepare(None)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory, demo_data: InteractionData) -> Callable[[str], Path]:
    """Name of a family -> a folder with a tiny random model of it, as the hub would give it."""
    from tests.teacher.test_families import FAMILIES, WITHOUT_TREES, write_family

    root, made = tmp_path_factory.mktemp("families"), {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = write_family((FAMILIES | WITHOUT_TREES)[name], root / name, demo_data)
        return made[name]

    return make


def untrained(config: IloraConfig, data: InteractionData):
    """A teacher with everything loaded and nothing learned."""
    from src.teacher.ilora_teacher import IloraTeacher

    teacher = IloraTeacher(config, data)
    teacher.open()
    return teacher
