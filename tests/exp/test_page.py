"""The page of a comparison read with the standard parser, and answers on the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.core.data_utils import InteractionData
from src.core.errors import UserError
from src.core.paths import processed_dir
from src.core.run import Run
from src.exp import compare, export_onnx, report
from src.exp.examples import costs, examples
from src.exp.page import write_page
from src.exp.recommend import main, parse
from src.exp.settings import Settings
from src.exp.tables import differences, long_table
from src.student.checkpoint import save_student
from src.student.models import build_student
from src.student.serving import load_student
from tests.exp.test_compare import METRICS, write_run
from tests.student.conftest import make_student_config

EVIL = "<script>alert('x')</script> & co"


class Page(HTMLParser):
    """Texts, tags and attributes that could reach out of the page."""

    def __init__(self, html: str):
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v and v[0] != "#"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def student_run(folder: Path, stage: str, data: InteractionData, rank: int, seed: int) -> Path:
    """A completed run with a student of random weights."""
    config = make_student_config("sasrec", "width=16")
    torch.manual_seed(seed)
    student = build_student(config, data.n_items, data.max_history)
    fields = {"seed": seed, "fingerprint": "x"}
    save_student(folder.with_name(f"{folder.name}.student"), student, config, data, fields)
    write_run(folder, stage, data, rank, seed, teacher="llm", teacher_fingerprint="0")
    folder.with_name(f"{folder.name}.student").rename(folder / "models" / "student")
    return folder


@pytest.fixture
def rows(demo_data: InteractionData, tmp_path: Path) -> list[compare.Row]:
    made = {"base": ("student_baseline", 3), "own": ("distill", 2)}
    return [
        compare.load_row(name, [student_run(tmp_path / name, stage, demo_data, rank, 0)], demo_data)
        for name, (stage, rank) in made.items()
    ]


@pytest.fixture
def users(demo_data: InteractionData) -> list[str]:
    return list(pd.read_parquet(processed_dir("demo", demo_data.fingerprint) / "users.parquet")["raw_id"])


def test_page(rows: list[compare.Row], demo_data: InteractionData, users: list[str], tmp_path: Path) -> None:
    folder = Run.start(tmp_path / "e", "eval_all", "").dir
    wanted = users[demo_data.users_of(demo_data.splits["test"])[5]]
    evil = replace(demo_data, titles=[*demo_data.titles[:3], EVIL, *demo_data.titles[4:]])
    settings = Settings.compose([f"compare.users=['{wanted}']", "compare.draws=100"])
    long = long_table(rows, demo_data, (1, 10), METRICS)
    pairs = differences(rows, demo_data, METRICS, 1, 100)
    found = report.Comparison(
        rows, "history_ranked", METRICS, long, pairs, None, costs(rows, demo_data), [f"a gain of {EVIL}"]
    )
    report.write_report(folder, found, evil)
    write_page(folder, found, evil, settings)
    html = (folder / "metrics" / "report.html").read_text()
    page = Page(html)
    text = " ".join(" ".join(page.texts).split())
    assert page.outside == [], "one self-contained file"
    assert page.tags.count("script") == 1 and page.tags.count("svg") == 4, "titles are text"
    assert f"a gain of {EVIL}" in text and f"{EVIL} [{demo_data.raw_items[3]}]" in text
    assert "0.6309" in text and "+0.1309 (+0.1309 to +0.1309)" in text
    assert (
        f"User {wanted} chosen" in text and "drawn at random" in text and "distillation helped most" in text
    )
    assert "true item: rank 3" in text and "true item: rank 2" in text
    assert "student.name" not in text and "interactions" in text, "settings that differ: none here"


def test_examples_are_what_the_students_say(
    rows: list[compare.Row], demo_data: InteractionData, users: list[str]
) -> None:
    shown = examples(rows, demo_data, "history_ranked", [], seed=0)
    owners = np.unique(demo_data.users_of(demo_data.splits["test"]))
    assert len({e.user for e in shown}) == len(shown) == min(12, len(owners)), "six that gained, six drawn"
    assert {e.why for e in shown} == {"distillation helped most", "drawn at random"}, "nobody was harmed"
    student = load_student(rows[0].runs[0].folder / "models" / "student")
    example = shown[0]
    sample = demo_data.splits["test"][
        users.index(example.user) == demo_data.users_of(demo_data.splits["test"])
    ][-1]
    assert example.target == demo_data.targets(np.array([sample]))[0]
    assert example.history == [i for i in demo_data.histories(np.array([sample]))[0] if i]
    best = student.recommend([demo_data.raw_items[i] for i in example.history], 10)
    base, _ = example.rankings
    assert [demo_data.raw_items[i] for i, _ in base.items] == [r.raw_id for r in best]
    assert [s for _, s in base.items] == pytest.approx([r.score for r in best], abs=1e-5) and base.rank == 3
    with pytest.raises(UserError, match="user 'nobody'; expected a user with a test sample.*compare.users"):
        examples(rows, demo_data, "history_ranked", ["nobody"], seed=0)


def test_answer_of_one_user(
    rows: list[compare.Row], demo_data: InteractionData, users: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(rows[0].runs[0].folder)
    owned = demo_data.items[: demo_data.offsets[1]]
    assert main([f"run={run}", f"user={users[0]}", "k=5"]) == 0
    out = capsys.readouterr().out
    student = load_student(Path(run) / "models" / "student")
    expected = student.recommend([demo_data.raw_items[i] for i in owned], 5)
    for number, best in enumerate(expected, 1):
        assert f"{number}. {best.title} [{best.raw_id}]" in out
    assert main([f"run={run}", f"user={users[0]}", "k=5", "search=int8"]) == 0
    assert capsys.readouterr().out == out
    assert main([f"run={run}", f"user={users[0]}", "search=hnsw"]) == 2
    assert "search=hnsw; expected one of float32, int8, ann" in capsys.readouterr().err
    by_hand = [demo_data.raw_items[owned[0]], demo_data.titles[owned[1]].upper()]
    assert main([f"run={run}", f"history=[{','.join(by_hand)}]", "exclude_history=true", "k=3"]) == 0
    out = capsys.readouterr().out
    expected = student.recommend([demo_data.raw_items[i] for i in owned[:2]], 3, exclude_history=True)
    assert "history (2 items" in out and f"1. {expected[0].title} [{expected[0].raw_id}]" in out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["user=nobody"], "user 'nobody'"),
        (["history=[nothing of the kind]"], "unknown item 'nothing of the kind'"),
        (["user=1", "history=[1]"], "either user=ID or history"),
        ([], "either user=ID or history"),
        (["usr=1"], "did you mean user?"),
        (["user=1", "k=many"], "k=many"),
        (["user=1", "exclude_history=maybe"], "true or false"),
        (["history=[1"], "titles with a comma in quotes"),
        (["history=[]"], "an empty history"),
    ],
)
def test_answers_that_cannot_be_given(rows, arguments: list[str], says: str, capsys) -> None:
    assert main([f"run={rows[0].runs[0].folder}", *arguments]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_export_onnx(rows: list[compare.Row], tmp_path: Path, capsys) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run, out = rows[0].runs[0].folder, tmp_path / "served"
    assert export_onnx.main([f"run={run}", f"out={out}"]) == 0
    assert "scores [B, " in capsys.readouterr().out
    recommender = load_student(run / "models" / "student")
    session = onnxruntime.InferenceSession(out / "student.onnx")
    history = np.zeros((1, recommender.student.max_history), np.int64)
    history[0, -2:] = (3, 1)
    (scores,) = session.run(None, {"history": history})[0]
    raw_ids = json.loads((out / "catalogue.json").read_text())["raw_ids"]
    best = recommender.recommend([raw_ids[2], raw_ids[0]], 5)
    assert [raw_ids[c] for c in np.argsort(-scores)[:5]] == [r.raw_id for r in best]
    for arguments, says in (
        ([f"run={run}", f"out={out}"], f"{out} exists; expected a new folder"),
        (["out=x"], "expected run=FOLDER"),
        (["rnu=x"], "did you mean run?"),
        ([f"run={tmp_path / 'none'}"], "status.json is missing"),
    ):
        assert export_onnx.main(arguments) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_ids_are_text() -> None:
    assert parse(["run=r", "history=[007,1e3]"])["history"] == ["007", "1e3"]
    titles = ["Star Wars: A New Hope (1977)", "Good, the Bad and the Ugly", "50"]
    text = f"history=[{titles[0]}, '{titles[1]}', {titles[2]}]"
    assert parse(["run=r", text])["history"] == titles


def test_no_answer_of_a_teacher(demo_data: InteractionData, tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "t", "teacher", demo_data, 1)
    assert main([f"run={run}", "user=1"]) == 2
    assert "is a run of teacher; expected student_baseline or distill" in capsys.readouterr().err
