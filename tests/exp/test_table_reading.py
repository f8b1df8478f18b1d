"""Tables as files: what a cell means, where rows come from, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.exp.overrides import compose_values
from src.exp.table.reading import Table, hydra_text, read_table


def read(folder: Path, text: str | bytes, name: str = "t.csv", **options) -> Table:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(folder / name, **options)


def test_a_row_is_its_overrides(tmp_path):
    text = "# lambda -> distill.lam\n# s -> seed, teacher.seed\n\nname,s,lambda,active\nfirst,3,0.5,random\n,4,,\n"
    table = read(tmp_path, text, common=["dataset=demo"])
    first, second = table.rows
    assert first.overrides == ("seed=3", "teacher.seed=3", "distill.lam=0.5", "active=random")
    assert first.common == second.common == ("dataset=demo",)
    assert (first.name, first.stage, first.where) == ("first", "distill", "line 5")
    assert second.overrides == ("seed=4", "teacher.seed=4")  # an empty cell is the default
    assert second.name == "2_s4" and second.where == "line 6"


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_separator_line_ends_and_byte_order_mark_change_nothing(tmp_path, separator, ending, mark):
    lines = [separator.join(("seed", "eval.ks")), separator.join(("1", '"[1,10]"'))]
    (row,) = read(tmp_path, mark + ending.join([*lines, ""]).encode()).rows
    assert row.overrides == ("seed=1", "eval.ks=[1,10]")


def test_a_product_stands_for_its_rows(tmp_path):
    table = read(tmp_path, 'seed,teacher.train.samples,active\n"+range(0,2)","0,16",all\n5,1,random\n')
    assert [r.overrides for r in table.rows[:4]] == [
        (f"seed={s}", f"teacher.train.samples={n}", "active=all") for s in (0, 1) for n in (0, 16)
    ]
    assert len(table.rows) == 5 and len({r.name for r in table.rows}) == 5


def test_yaml_has_products_rows_variables_and_common_values(tmp_path):
    text = """
names: {lambda: distill.lam, s: [seed, teacher.seed]}
vars: {seeds: [1, 2]}
common: {dataset: demo}
products:
  - {stage: student_baseline, s: "${vars.seeds}", student: [sasrec, gru4rec]}
rows:
  - {name: all, stage: eval_all, compare.seeds: "${vars.seeds}", lambda: 1.0e-3}
"""
    table = read(tmp_path, text, "t.yaml", variables=["vars.seeds=[7]"])
    assert [r.overrides for r in table.rows] == [
        ("seed=7", "teacher.seed=7", "student=sasrec"),
        ("seed=7", "teacher.seed=7", "student=gru4rec"),
        ("compare.seeds=[7]", "distill.lam=0.001"),
    ]
    assert all(r.common == ("dataset=demo",) for r in table.rows)
    assert table.rows[2].name == "all" and table.rows[2].where == "line 8"


@pytest.mark.parametrize(
    "text", ["日本語 の題", "a b", "it's", "back\\", "~x", "1: {", 'say "no"', "x'", "null"]
)
def test_a_text_reaches_the_configuration_as_it_is(tmp_path, text):
    value = compose_values([f"teacher.prompt.end={hydra_text(text)}"])["teacher"]["prompt"]["end"]
    assert value == text
    if text != "null":  # in a CSV it is the value that a command line would give
        (row,) = read(tmp_path, 'teacher.prompt.end\n"{}"\n'.format(text.replace('"', '""'))).rows
        assert compose_values(row.overrides)["teacher"]["prompt"]["end"] == text


BAD = {
    "a column twice": ("seed,seed\n1,2\n", ["line 1: column seed stands twice"]),
    "a key by two names": ("# s -> seed\ns,seed\n1,2\n", ["seed is set by two columns"]),
    "a column without a name": ("seed,\n1,2\n", ["line 1: column 2 has no name"]),
    "two separators in the header": ("seed,student\tactive\n1,a\tb\n", ["found ',' and '\\t'"]),
    "a tab among commas": ("seed,student\n1,sas\trec\n", ["line 2: found a tab"]),
    "too few and too many cells": (
        "seed,student\n1\n1,2,3\n",
        ["line 2: found 1 cells", "line 3: found 3 cells"],
    ),
    "a broken list": ('seed,eval.ks\n1,"[1,2"\n', ["line 2: eval.ks: found [1,2"]),
    "several values in a plain row": ('seed\n"1,2"\n', ["line 2: seed: found several values"]),
    "an open quote": ('seed\n"1\n2\n', ["line 3: unexpected end of data"]),
    "not UTF-8": ("seed,\u8868\n1,2\n".encode("cp932"), ["expected UTF-8"]),
    "UTF-16": ("seed\n1\n".encode("utf-16"), ["expected UTF-8"]),
    "the same row twice": ("seed,student\n1,\n2,\n1,\n", ["line 4: the same row as line 2"]),
    "the same row by names": ("# s -> seed\ns,name\n1,a\n1,b\n", ["line 4: the same row as line 3"]),
    "a name twice": ("name,seed\na,1\na,2\n", ["a names two rows"]),
    "a name that is a path": ("name,seed\n../x,1\n", ["line 2: name: found '../x'"]),
    "an unknown stage": ("stage,seed\ntrain,1\n", ["line 2: stage: found train"]),
    "a line of empty cells": ("seed,student\n1,\n,\n", ["line 3: all cells are empty"]),
    "no header": ("# nothing\n", ["found no header"]),
    "no rows": ("seed\n", ["found no rows"]),
    "a short name for nothing": ("# s -> seed\nstudent\nsasrec\n", ["s names no column"]),
    "all at once": ("seed,seed,\n1,2,3\n4\n", ["twice", "no name", "line 3: found 1 cells"]),
}
BAD_YAML = {
    "a key twice": ("rows:\n  - {seed: 1, seed: 2}\n", ["duplicate key"]),
    "an unknown key": ("row:\n  - {seed: 1}\n", ["row: unknown key"]),
    "not YAML": ("rows: [", ["expected"]),
    "a list": ("- 1\n", ["found a list"]),
    "rows that are no list": (
        "rows: {seed: 1}\nnames: 3\n",
        ["rows: expected a list", "names: expected a dict"],
    ),
    "nothing": ("", ["found no rows"]),
    "a row that is no mapping": ("rows:\n  - 1\n", ["line 2: found 1"]),
    "a variable without a value": ("rows:\n  - {seed: '${vars.n}'}\n", ["vars"]),
    "unequal trials": (
        "equal_trials: true\nproducts:\n  - {stage: student_baseline, seed: [1, 2]}\nrows:\n  - {seed: 1}\n",
        ["equal_trials: found {'student_baseline': 2, 'distill': 1}"],
    ),
}


@pytest.mark.parametrize("case", [*BAD, *BAD_YAML])
def test_what_is_refused(tmp_path, case):
    text, expected = {**BAD, **BAD_YAML}[case]
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, "t.yaml" if case in BAD_YAML else "t.csv")
    for part in expected:
        assert any(part in problem for problem in error.value.problems), error.value.problems


def test_a_variable_that_the_table_lacks_and_a_missing_file(tmp_path):
    for call in (
        lambda: read(tmp_path, "vars: {a: 1}\nrows:\n  - {seed: 1}\n", "t.yaml", variables=["vars.b=2"]),
        lambda: read(tmp_path, "seed\n1\n", variables=["vars.b=2"]),
        lambda: read_table(tmp_path / "absent.csv"),
    ):
        with pytest.raises(ConfigError):
            call()
