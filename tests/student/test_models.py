"""Students: the official outputs, and properties that every architecture keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.errors import ConfigError
from src.student.config import ARCHITECTURES
from src.student.models import build_student, fold_item_tables
from tests.student.conftest import make_student_config
from tests.student.official_weights import from_official

ORACLE = Path(__file__).parents[1] / "oracles" / "dllm2rec_models.npz"
OFFICIAL = {"SASRec": "sasrec_dllm2rec", "GRU": "gru4rec", "Caser": "caser_dllm2rec"}
N, L = 25, 7


@pytest.fixture(scope="module")
def oracle():
    return np.load(ORACLE, allow_pickle=False)


def small_student(name: str, seed: int = 0):
    torch.manual_seed(seed)
    student = build_student(make_student_config(name, "width=16"), N, L)
    for parameter in student.parameters():  # away from zero: initial vectors of 0.01 hide mistakes
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        student.items.weight[1:] += torch.randn(N, 16)
    return student.eval()


STUDENTS = {name: small_student(name) for name in ARCHITECTURES}


def official_student(oracle, name):
    prefix = f"{name}/pert/sd/"
    state = {
        k.removeprefix(prefix): torch.from_numpy(oracle[k]) for k in oracle.files if k.startswith(prefix)
    }
    student = build_student(make_student_config(OFFICIAL[name]), 50, 10)
    ours, _ = from_official(state)
    student.load_state_dict(ours, strict=True)
    return student.eval()


def official_histories(oracle):
    """The oracle's right-padded 0-based sequences (padding 50) in this project's layout."""
    histories = np.zeros((8, 10), np.int64)
    for row, (sequence, length) in enumerate(zip(oracle["in/seq"], oracle["in/len_seq"], strict=True)):
        histories[row, 10 - length :] = sequence[:length] + 1
    return torch.from_numpy(histories)


def with_inputs(student, table):
    """The student's item tables with this input table, which a tied student scores with as well."""
    tables = student.tables()._replace(inputs=table)
    return tables if student.output is not None else tables._replace(outputs=table[1:])


@pytest.mark.parametrize("name", OFFICIAL)
@torch.no_grad()
def test_official_weights_give_official_outputs(oracle, name):
    scores = official_student(oracle, name)(official_histories(oracle))
    np.testing.assert_allclose(scores.numpy(), oracle[f"{name}/pert/out"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_official_outputs_with_fused_teacher_embeddings(oracle):
    student, histories = official_student(oracle, "SASRec"), official_histories(oracle)
    projected = torch.from_numpy(oracle["SASRec/llm_projected"]).float()
    tables = student.tables()._replace(inputs=student.item_table().clone())
    tables.inputs[1:] += float(oracle["in/ed_weight"]) * projected
    expected = oracle["SASRec/pert/out_llm"]
    assert np.abs(student(histories).numpy() - expected).max() > 1e-2
    tables.inputs[0] = 7.0  # what stands in the padding row must not matter
    np.testing.assert_allclose(student(histories, tables).numpy(), expected, rtol=1e-5, atol=1e-5)
    fold_item_tables(student, tables)
    np.testing.assert_allclose(student(histories).numpy(), expected, rtol=1e-5, atol=1e-5)
    assert not student.item_table()[0].any()


def test_official_projector_is_split_off_and_unknown_keys_are_refused():
    state = {"fc_4096_64.weight": torch.ones(2, 3), "fc_4096_64.bias": torch.ones(2)}
    student, projector = from_official(state)
    assert student == {} and {k: tuple(v.shape) for k, v in projector.items()} == {
        "weight": (2, 3),
        "bias": (2,),
    }
    with pytest.raises(KeyError, match="decoder.weight"):
        from_official({"decoder.weight": torch.ones(1)})


@pytest.mark.parametrize("name", ARCHITECTURES)
@given(data=st.data())
@settings(max_examples=15, deadline=None, derandomize=True)
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(name, data):
    student = STUDENTS[name]
    length = data.draw(st.integers(1, L))
    items = data.draw(st.lists(st.integers(1, N), min_size=length, max_size=length))
    bare = student(torch.tensor([items]))
    for padding in range(1, L - length + 1):
        padded = torch.tensor([[0] * padding + items, list(range(1, padding + length + 1))])
        assert (student(padded)[0] - bare[0]).abs().max() <= 1e-6 * max(1.0, float(bare.abs().max()))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("length", range(1, L + 1))
@torch.no_grad()
def test_every_item_of_a_history_of_any_length_counts(name, length):
    student = STUDENTS[name]
    history = torch.zeros(1, L, dtype=torch.long)
    history[0, L - length :] = torch.arange(1, length + 1)
    scores = student(history)
    for column in range(L - length, L):
        changed = history.clone()
        changed[0, column] = N
        assert (student(changed) - scores).abs().max() > 1e-4, f"column {column}"


@pytest.mark.parametrize("name", set(ARCHITECTURES) - {"gru4rec"})
@torch.no_grad()
def test_the_order_of_items_counts(name):
    one = STUDENTS[name](torch.tensor([[3, 9, 4, 7]]))
    other = STUDENTS[name](torch.tensor([[9, 3, 4, 7]]))
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_rows_of_a_batch_do_not_mix(name):
    histories = torch.randint(0, N + 1, (9, L), generator=torch.Generator().manual_seed(1))
    histories = histories.sort(dim=1).values.clone()  # zeros to the left
    histories[:, -1] = 5
    together = STUDENTS[name](histories)
    alone = torch.cat([STUDENTS[name](row[None]) for row in histories])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_scores_of_some_items_are_those_of_the_catalogue(name):
    student, history = STUDENTS[name], torch.tensor([[0, 1, 2], [4, 5, 4]])
    items = torch.tensor([[1, N, 7], [4, 4, 9]])
    for tables in (None, with_inputs(student, torch.randn(N + 1, 16))):
        hidden = student.encode(history, tables)
        assert hidden.shape == (2, student.output_width)
        expected = student(history, tables).gather(1, items - 1)
        torch.testing.assert_close(
            student.score_items(hidden, items, tables, history), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padding_row_gets_no_gradient(name):
    student = small_student(name).train()
    table = torch.randn(N + 1, 16, requires_grad=True)
    history = torch.tensor([[0, 0, 3, 4]])
    student(history).logsumexp(1).sum().backward()
    assert not student.items.weight.grad[0].any() and student.items.weight.grad[4].any()
    student(history, with_inputs(student, table)).logsumexp(1).sum().backward()
    assert not table.grad[0].any() and table.grad[4].any()


@torch.no_grad()
def test_learned_repeats_are_added_to_the_historys_own_items():
    student, history = small_student("sasrec"), torch.tensor([[0, 0, 3, 9, 3], [0, 0, 0, 0, 7]])
    learned, student.repeat = student.repeat.clone(), None
    plain = student(history)
    student.learn_repeats()
    assert torch.equal(student(history), plain)  # nothing learned yet
    student.repeat.copy_(learned)
    expected = plain.clone()
    expected[0, 2] += learned[-1] + learned[-3]
    expected[0, 8] += learned[-2]
    expected[1, 6] += learned[-1]
    torch.testing.assert_close(student(history), expected)
    with pytest.raises(ValueError, match="needs the history"):
        student.score(student.encode(history))


def test_a_history_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="8 columns; this student has 7"):
        STUDENTS["sasrec"](torch.ones(1, L + 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("sasrec", "heads=3", "heads"),
        ("sasrec_dllm2rec", "heads=2", "blocks, heads"),
        ("caser", "tie_output=true", "tie_output"),
        ("sasrec_dllm2rec", "label_smoothing=0.1", "label_smoothing"),
        ("sasrec", "loss=bce", "learn_repeats"),
        ("sasrec", "dropout=1.0", "dropout"),
        ("sasrec", "loss=mse", "loss"),
        ("sasrec", "lr=.nan", "lr"),
    ],
)
def test_contradicting_settings_are_named(name, override, message):
    with pytest.raises(ConfigError, match=message):
        make_student_config(name, override)
