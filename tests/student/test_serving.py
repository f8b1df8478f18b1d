"""A saved student in use: raw ids in, raw ids with titles out."""

from __future__ import annotations

import pytest
import torch

from src.core.errors import UserError
from src.student.architectures import Student
from src.student.checkpoint import save_student
from src.student.item_search import Int8Search
from src.student.models import build_student
from src.student.onnx_export import write_onnx
from src.student.serving import SEARCHES, StudentRecommender, load_student
from tests.student.conftest import make_student_config


@pytest.fixture(scope="module")
def served(small_data, tmp_path_factory):
    config = make_student_config("sasrec", "width=16")
    torch.manual_seed(2)
    student = build_student(config, small_data.n_items, small_data.max_history).eval()
    folder = tmp_path_factory.mktemp("serving") / "student"
    save_student(folder, student, config, small_data, {})
    return student, load_student(folder)


def test_ranking_is_the_students(served, small_data):
    student, recommender = served
    with torch.no_grad():
        scores = student(torch.tensor([[3, 7, 4]]))[0]
    ranking = recommender.recommend([103, "107", 104], k=30)
    columns = [int(r.raw_id) - 101 for r in ranking]
    assert columns == scores.argsort(descending=True, stable=True).tolist()
    assert [r.title for r in ranking] == [f"title {c + 1}" for c in columns]
    assert [r.score for r in ranking] == pytest.approx(scores[columns].tolist(), abs=1e-6)


def test_only_the_newest_items_are_read(served):
    _, recommender = served
    newest = [105, 106, 107, 108, 109, 110]
    assert recommender.recommend([101, 102, 103, *newest]) == recommender.recommend(newest)


def test_history_can_be_left_out(served):
    _, recommender = served
    history = [101, 102, 103, 105, 106, 107, 108, 109]
    ids = {r.raw_id for r in recommender.recommend(history, k=22, exclude_history=True)}
    assert len(ids) == 22 and not ids & {str(i) for i in history}


@pytest.mark.parametrize(
    ("history", "k", "message"),
    [([], 5, "empty history"), ([101, 999], 5, "unknown item 999"), ([101], 31, "k=31"), ([101], 0, "k=0")],
)
def test_unusable_requests_are_refused(served, history, k, message):
    with pytest.raises(UserError, match=message):
        served[1].recommend(history, k=k)


def test_many_users_at_once_get_what_each_gets_alone(served):
    _, recommender = served
    histories = [[101], [102, 103, 104], list(range(101, 116)), [107, 107]]
    for leave_out in (False, True):
        alone = [recommender.recommend(h, 7, leave_out) for h in histories]
        together = recommender.recommend_many(histories, 7, leave_out)
        assert [[r.raw_id for r in row] for row in together] == [[r.raw_id for r in row] for row in alone]
    assert recommender.recommend_many([]) == []


def large_student(n_items: int, seed: int = 3) -> Student:
    """A student with far more items than a search reads at once, a bias, and learned repeats."""
    torch.manual_seed(seed)
    student = build_student(make_student_config("sasrec", "width=16"), n_items, 6).eval()
    with torch.no_grad():
        student.items.weight[1:] *= torch.rand(n_items, 1) * 2  # vectors of different length
        student.output_bias.normal_(std=0.3)
        student.repeat.normal_()
    return student


@pytest.fixture(scope="module")
def many() -> tuple[Student, list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    student = large_student(150_001)
    return student, torch.randint(1, 150_002, (40, 6), generator=generator).tolist()


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("search", ["float32", "int8"])
def test_exact_searches_find_the_best_of_all_items(many, search: str, exclude: bool):
    """Against the sorted scores of the whole catalogue; nothing of the student but its forward pass."""
    student, histories = many
    names = [str(i) for i in range(1, 150_002)]
    found = StudentRecommender(student, names, names, search).recommend_many(histories, 20, exclude)
    with torch.no_grad():
        scores = student(torch.tensor(histories))
    if exclude:
        scores.scatter_(1, torch.tensor(histories) - 1, float("-inf"))
    values, columns = scores.sort(dim=1, descending=True)
    assert [[int(r.raw_id) - 1 for r in row] for row in found] == columns[:, :20].tolist()
    given = torch.tensor([[r.score for r in row] for row in found])
    torch.testing.assert_close(given, values[:, :20], rtol=1e-5, atol=1e-5)


def test_int8_is_exact_where_its_own_scores_order_wrongly():
    """Vectors that differ by less than a step of int8, and one outlier that makes the steps coarse: the bound makes
    the search take more until the best are proved to be among them."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.ones(60_000, 8) + 1e-4 * torch.randn(60_000, 8, generator=generator)
    vectors[:, 0] = 50.0
    hidden = torch.randn(3, 8, generator=generator)
    bias = torch.zeros(60_000)
    search = Int8Search(vectors, bias)
    exact = (hidden.double() @ vectors.double().T).topk(5).indices
    codes = (search.codes.float() * search.scale[:, None]) @ hidden.T
    assert not torch.equal(codes.T.topk(5).indices, exact), "int8 alone must fail here"
    scores = hidden.double() @ vectors.double().T
    torch.testing.assert_close(
        scores.gather(1, search.best(hidden, 5)), scores.gather(1, exact), rtol=0, atol=2e-5
    )  # float32 rounds scores of about 50 by 4e-6


@pytest.mark.parametrize(("centres", "least"), [(None, 0.7), (200, 0.95)])
def test_ann_finds_nearly_all_of_the_best(many, centres: int | None, least: float):
    """Random vectors are the hardest case: an index finds no lists among them."""
    pytest.importorskip("faiss")
    student, histories = many
    if centres is not None:
        student = large_student(150_001)
        with torch.no_grad():
            vectors = torch.randn(centres, 16)[torch.randint(centres, (150_001,))]
            student.items.weight[1:] = vectors + 0.3 * torch.randn_like(vectors)
    names = [str(i) for i in range(1, 150_002)]
    recommenders = [StudentRecommender(student, names, names, search) for search in ("float32", "ann")]
    exact, found = (
        [{r.raw_id for r in row} for row in x.recommend_many(histories, 10)] for x in recommenders
    )
    recall = sum(len(a & b) for a, b in zip(exact, found, strict=True)) / 400
    assert recall >= least
    assert len(recommenders[1].recommend(histories[0], k=90_000)) == 90_000, "more than the probed lists hold"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sasrec", ["blocks=2", "heads=2", "learn_repeats=true"]),
        ("sasrec_dllm2rec", []),
        ("gru4rec", ["blocks=2"]),
        ("caser", []),
    ],
)
def test_onnx_scores_are_the_students(name, options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(4)
    student = build_student(make_student_config(name, "width=16", *options), 30, 6).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        student.items.weight[0] = 0
    assert write_onnx(student, tmp_path / "student.onnx") < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    histories = torch.randint(0, 31, (17, 6), generator=torch.Generator().manual_seed(5)).sort().values
    histories[:, -1] = 7
    found = session.run(None, {"history": histories.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), student(histories), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("search", ["hnsw", ""])
def test_unknown_search_is_refused(served, search):
    with pytest.raises(UserError, match=f"search={search}; expected one of {', '.join(SEARCHES)}"):
        StudentRecommender(served[0], ["1"] * 30, [""] * 30, search)
