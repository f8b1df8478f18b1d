"""Random bytes for every reader and parser: one line or a right result, never a traceback, never a hang."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.core.artifacts import load_manifest
from src.core.data_utils import _open
from src.core.datasets.raw_log import RawLog, RawSplits
from src.core.datasets.readers import reader
from src.core.errors import UserError
from src.core.teacher_store import TeacherStore
from tests.robustness.conftest import Artifacts, reseal
from tests.robustness.raw_files import SOURCES, config_of

if TYPE_CHECKING:
    from src.teacher.ilora_teacher import IloraTeacher

SECONDS = 5.0  # far above any of these on a busy machine; a hang would be caught here
FUZZ = settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# What breaks parsers: separators, quotes, other line ends, signs, numbers at the limits, other encodings.
PIECES = [
    *(b"\n", b"\r", b"\r\n", b",", b"\t", b"::", b"|", b'"', b"'", b"\\", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"nan", b"inf", b"-1", b"1e400", b"9" * 25, b"0x10", b"None", b"null", b"{}", b"[", b"]", b"{", b"}"),
    *("\u2028".encode(), "１".encode(), b"1_000", b" ", b""),
]


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """A few edits: cut, insert a piece, replace a stretch, repeat a stretch; or bytes of any kind."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        a = draw(st.integers(0, len(out)))
        b = min(len(out), a + draw(st.integers(0, 30)))
        kind = draw(st.sampled_from(["insert", "replace", "delete", "repeat", "cut"]))
        piece = draw(st.sampled_from(PIECES))
        if kind == "cut":
            out = out[:a] if draw(st.booleans()) else out[a:]
        else:
            new = {"insert": piece + out[a:b], "replace": piece, "delete": b"", "repeat": bytes(out[a:b]) * 2}
            out[a:b] = new[kind]
    return bytes(out)


def usable(raw: RawLog | RawSplits) -> None:
    """What a reader hands over keeps its contract, whatever it was given."""
    if isinstance(raw, RawSplits):
        assert raw.items.min() >= 0 and raw.items.max() < len(raw.raw_items)
        assert raw.offsets[0] == 0 and raw.offsets[-1] == len(raw.items) and (np.diff(raw.offsets) > 0).all()
        assert len(raw.split) == len(raw.offsets) - 1
        return
    n = len(raw.timestamps)
    assert n == len(raw.users) == len(raw.items) > 0
    for ids in (raw.users, raw.items):
        assert ids.codes.min() >= 0 and ids.codes.max() < len(ids.values)
        assert len(set(map(str, ids.values))) == len(ids.values)
    assert raw.timestamps.dtype == np.int64
    assert raw.ratings is None or (len(raw.ratings) == n and np.isfinite(raw.ratings).all())
    assert raw.titles.index.is_unique


@pytest.mark.parametrize("name", SOURCES)
@FUZZ
@given(data=st.data())
def test_readers(name: str, data: st.DataObject, tmp_path: Path) -> None:
    source = SOURCES[name]
    changed = data.draw(st.sampled_from(sorted(source.files)), label="file")
    for file, content in source.files.items():
        (tmp_path / file).write_bytes(
            data.draw(damage(content), label="content") if file == changed else content
        )
    config = config_of(name, tmp_path)
    started = time.monotonic()
    try:
        usable(reader(config.reader).read(tmp_path, config))
    except UserError as e:
        assert "\n" not in str(e) and str(e)
    assert time.monotonic() - started < SECONDS


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(data=st.data())
def test_manifests(data: st.DataObject, artifacts: Artifacts, tmp_path: Path) -> None:
    """Bytes of a manifest: refused, or every field as it was written."""
    folder = _once(artifacts.selection, tmp_path / "selection")
    good = (artifacts.selection / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(data.draw(damage(good)))
    try:
        found = load_manifest(folder, {"format_version": 1}, "x")
    except UserError:
        return
    written = json.loads(good)
    own = written.pop("sha256")
    # Without the line of its own hash a manifest is as good as its other lines.
    if json.loads((folder / "manifest.json").read_bytes()).get("sha256") == own:
        assert found == written


@pytest.mark.parametrize("kind", ["dataset", "store", "student", "selection", "encoder", "llm", "teacher"])
@FUZZ
@given(data=st.data())
def test_sealed_manifests_of_any_json(
    kind: str, data: st.DataObject, artifacts: Artifacts, llm_teacher: LLMTeacher, tmp_path: Path
) -> None:
    """Fields of any JSON under a fitting hash: the loaders refuse or open, and never stumble."""
    from src.distill.selection import read_selection
    from src.student.serving import load_student

    own = {"encoder": llm_teacher.encoder, "llm": llm_teacher.llm, "teacher": llm_teacher.folder}
    source = own.get(kind) or getattr(artifacts, kind)
    if kind in own:  # they are found by their fingerprints, in a data root of their own
        data_root = tmp_path / "data"
        _once(llm_teacher.data_root, data_root)
        folder = data_root / source.relative_to(llm_teacher.data_root)
        _sealed_teacher(source, folder, data, data_root, llm_teacher)
        return
    folder = _once(source, tmp_path / kind)
    manifest = json.loads((source / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(manifest.keys() - {"files", "sha256"})))
    (folder / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    reseal(folder, **{key: data.draw(JSON)})
    fp = artifacts.data.fingerprint
    load = {
        "dataset": lambda: _open(artifacts.config, fp, folder),
        "store": lambda: TeacherStore(folder, fp).rows_of("test", artifacts.data.splits["test"]),
        "student": lambda: load_student(folder),
        "selection": lambda: read_selection(folder, fp, artifacts.data.splits["train"]),
    }[kind]
    try:
        load()
    except UserError as e:
        assert "\n" not in str(e)


def _sealed_teacher(
    source: Path, folder: Path, data: st.DataObject, data_root: Path, made: LLMTeacher
) -> None:
    manifest = json.loads((source / "manifest.json").read_text())
    key = data.draw(st.sampled_from(sorted(manifest.keys() - {"files", "sha256"})))
    (folder / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    reseal(folder, **{key: data.draw(JSON)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(data_root))
        try:
            made.again().prepare(None)
        except UserError as e:
            assert "\n" not in str(e)
    (folder / "manifest.json").write_bytes((source / "manifest.json").read_bytes())


@FUZZ
@given(data=st.data())
def test_student_json(data: st.DataObject, artifacts: Artifacts, tmp_path: Path) -> None:
    from src.student.serving import load_student

    folder = _once(artifacts.student, tmp_path / "student")
    file = data.draw(st.sampled_from(["student.json", "catalogue.json"]))
    for name in ("student.json", "catalogue.json", "manifest.json"):
        (folder / name).write_bytes((artifacts.student / name).read_bytes())
    values = json.loads((folder / file).read_text())
    at = values["config"] if "config" in values and data.draw(st.booleans()) else values
    at[data.draw(st.sampled_from(sorted(at)))] = data.draw(JSON)
    (folder / file).write_text(json.dumps(values))
    reseal(folder)
    try:
        load_student(folder)
    except UserError as e:
        assert "\n" not in str(e)


@FUZZ
@given(
    content=st.binary(max_size=300)
    | damage(b'{"state": "completed", "stage": "teacher", "fingerprint": "f"}')
)
def test_status_files(content: bytes, tmp_path: Path) -> None:
    """A damaged `status.json` of one run never stops another."""
    from src.core.runs import completed_run

    (tmp_path / "result" / "a").mkdir(parents=True, exist_ok=True)
    (tmp_path / "result" / "a" / "status.json").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_RESULT_ROOT", str(tmp_path / "result"))
        found = completed_run("teacher", "f")
    assert found is None or json.loads(content)["state"] == "completed"


@FUZZ
@given(data=st.data())
def test_official_files(data: st.DataObject, tmp_path: Path) -> None:
    import torch

    from src.distill.official_files import read_official

    good = {
        "myrank_train.txt": b"0 1 2\n2 1 0\n",
        "confidence_train.txt": b"0.1 0.2 0.3\n0 1 2\n",
    }
    changed = data.draw(st.sampled_from(sorted(good)))
    for file, content in good.items():
        (tmp_path / file).write_bytes(data.draw(damage(content)) if file == changed else content)
    if not (tmp_path / "all_embeddings.pt").exists():
        torch.save(torch.ones(3, 2), tmp_path / "all_embeddings.pt")
    try:
        found = read_official(tmp_path, np.array([4, 7]), 3)
    except UserError as e:
        assert "\n" not in str(e)
        return
    assert found.rankings.min() >= 1 and found.rankings.max() <= 3 and len(found.rankings) == 2
    assert np.isfinite(found.distances).all() and (np.diff(found.distances, axis=1) >= 0).all()


@dataclass(frozen=True)
class LLMTeacher:
    """A trained teacher of the smallest size, and where its parts lie."""

    data_root: Path
    encoder: Path
    llm: Path
    folder: Path
    again: Callable[[], IloraTeacher]


@pytest.fixture(scope="module")
def llm_teacher(artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> LLMTeacher:
    from src.teacher.ilora_teacher import IloraTeacher
    from tests.teacher.conftest import SMALL, TINY, compose_teacher

    config = compose_teacher(*SMALL, *TINY, "teacher.train.samples=32", "teacher.encoder.max_epochs=1")
    root = tmp_path_factory.mktemp("llm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYO_DATA_ROOT", str(root))
        teacher = IloraTeacher(config, artifacts.data)
        teacher.prepare(None)
    (encoder,), (llm,) = (
        (p.parent for p in root.glob(f"models/*/{name}/[!.]*/manifest.json"))
        for name in ("sasrec_encoder", "tiny_llm")
    )
    return LLMTeacher(root, encoder, llm, teacher.folder, lambda: IloraTeacher(config, artifacts.data))


def _once(source: Path, target: Path) -> Path:
    """A copy of an artifact, made for the first example of a test."""
    if not target.exists():
        shutil.copytree(source, target)
    return target
