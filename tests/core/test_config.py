"""Typed settings: every kind of mistake found, all at once, each with its full key."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.core.artifacts import fingerprint
from src.core.config import build, build_or_raise, config_group, determining, setting
from src.core.errors import ConfigError, Interrupted, UserError
from src.core.paths import ROOT


@config_group
class Inner:
    width: int = setting("width", ge=1, le=64)
    rate: float = setting("rate", gt=0.0, lt=1.0)

    def problems(self) -> list[str]:
        return [f"rate: found {self.rate} with width=1"] if self.width == 1 and self.rate > 0.5 else []


@config_group
class Outer:
    name: str = setting("a name")
    kind: str = setting("what it is", choices=("a", "b"))
    ks: tuple[int, ...] = setting("lengths", ge=1)
    path: str | None = setting("where", in_fingerprint=False)
    limit: int | None = setting("limit", ge=5)
    flag: bool = setting("on or off")
    inner: Inner = setting("nested")
    other: Inner | None = setting("nested or not")


GOOD = {
    "name": "x",
    "kind": "a",
    "ks": [1, 5],
    "path": None,
    "limit": None,
    "flag": True,
    "inner": {"width": 8, "rate": 0.25},
    "other": None,
}


def problems_of(**changes: object) -> list[str]:
    problems: list[str] = []
    made = build(Outer, {**GOOD, **changes}, "group", problems)
    assert (made is None) == bool(problems)
    return problems


def test_a_good_group_is_built_with_its_types():
    made = build_or_raise(Outer, {**GOOD, "limit": 5, "other": {"width": 1, "rate": 0.5}}, "group")
    assert made == Outer("x", "a", (1, 5), None, 5, True, Inner(8, 0.25), Inner(1, 0.5))
    assert isinstance(made.ks, tuple)


def test_whole_numbers_are_fine_where_a_float_is_meant():
    @config_group
    class One:
        lr: float = setting("rate")

    value = build_or_raise(One, {"lr": 2}, "g").lr
    assert value == 2.0 and isinstance(value, float)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"name": 3}, "group.name: found 3, expected str"),
        ({"name": None}, "group.name: found None, expected str"),
        ({"kind": "c"}, "group.kind: found 'c', expected one of a, b"),
        ({"ks": 3}, "group.ks: found 3, expected a list"),
        ({"ks": "135"}, "group.ks: found '135', expected a list"),
        ({"ks": [1, "2"]}, "group.ks: found '2', expected int"),
        ({"ks": [1, 0]}, "group.ks: found 0, expected >= 1"),
        ({"ks": [1, True]}, "group.ks: found True, expected int"),
        ({"limit": 4}, "group.limit: found 4, expected >= 5"),
        ({"limit": 5.0}, "group.limit: found 5.0, expected int"),
        ({"flag": 1}, "group.flag: found 1, expected bool"),
        ({"flag": "true"}, "group.flag: found 'true', expected bool"),
        ({"inner": None}, "group.inner: found None, expected a group of settings"),
        ({"inner": {"width": 8}}, "group.inner.rate: missing (rate)"),
        ({"inner": {"width": 65, "rate": 0.1}}, "group.inner.width: found 65, expected <= 64"),
        ({"inner": {"width": 8, "rate": 0.0}}, "group.inner.rate: found 0.0, expected > 0.0"),
        ({"inner": {"width": 8, "rate": 1}}, "group.inner.rate: found 1.0, expected < 1.0"),
        (
            {"inner": {"width": 8, "rate": float("nan")}},
            "group.inner.rate: found nan, expected a finite number",
        ),
        (
            {"inner": {"width": 8, "rate": 10**400}},
            "group.inner.rate: found a number of 1329 bits, expected a finite number",
        ),
        ({"inner": {"width": 1, "rate": 0.75}}, "group.inner: rate: found 0.75 with width=1"),
        (
            {"other": {"width": 8, "rate": 0.1, "depth": 2}},
            "group.other.depth: unknown key, expected one of width, rate",
        ),
        ({"colour": "red"}, "group.colour: unknown key, expected one of name, kind,"),
    ],
)
def test_one_mistake_one_line(changes: dict, expected: str):
    problems = problems_of(**changes)
    assert len(problems) == 1 and problems[0].startswith(expected)


def test_all_mistakes_at_once():
    wrong = {**GOOD, "kind": "c", "ks": [0], "inner": {"width": 0, "rate": 2.0}, "typo": 1}
    del wrong["name"]
    with pytest.raises(ConfigError) as caught:
        build_or_raise(Outer, wrong, "group")
    keys = ["typo", "name", "kind", "ks", "inner.width", "inner.rate"]
    assert [p.split(":")[0] for p in caught.value.problems] == [f"group.{k}" for k in keys]
    assert "\n" not in str(caught.value) and all(f"group.{k}" in str(caught.value) for k in keys)


def test_cross_checks_see_only_a_group_that_is_otherwise_right():
    assert problems_of(inner={"width": 1, "rate": "high"}) == [
        "group.inner.rate: found 'high', expected float"
    ]


@pytest.mark.parametrize("values", [None, [], "x", 3])
def test_not_a_group(values):
    problems: list[str] = []
    assert build(Outer, values, "group", problems) is None
    assert problems == [f"group: found {values!r}, expected a group of settings"]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from([*GOOD, "typo"]), _ANY, max_size=4), inner=_ANY)
def test_any_values_are_built_or_listed(changes, inner):
    problems: list[str] = []
    made = build(Outer, {**GOOD, "inner": inner, **changes}, "group", problems)
    assert (made is None) == bool(problems)
    assert all(p.startswith("group.") for p in problems)


def test_the_fingerprint_part():
    made = build_or_raise(Outer, {**GOOD, "path": "/a"}, "group")
    plain = determining(made)
    assert "path" not in plain
    assert plain["ks"] == [1, 5] and plain["inner"] == {"width": 8, "rate": 0.25} and plain["other"] is None
    elsewhere = build_or_raise(Outer, {**GOOD, "path": "/b"}, "group")
    other = build_or_raise(Outer, {**GOOD, "inner": {"width": 9, "rate": 0.25}}, "group")
    assert fingerprint(determining(elsewhere)) == fingerprint(plain) != fingerprint(determining(other))


def test_errors_are_one_line():
    error = UserError("found\nthis", "that\n\tother", "the key")
    assert str(error) == "found this; expected that other; change the key"
    assert str(UserError("alone")) == "alone"
    assert isinstance(ConfigError(["a: x", "b: y"]), UserError)
    assert str(ConfigError(["a: x", "b: y"])) == "configuration: a: x | b: y"
    assert Interrupted(15).signum == 15


def test_settings_modules_import_nothing_heavy():
    """`--help` composes all groups; torch alone would cost seconds."""
    modules = sorted(
        p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in ROOT.glob("src/*/config.py")
    )
    assert {"src.core.config", "src.teacher.config", "src.student.config", "src.distill.config"} <= set(
        modules
    )
    script = (
        f"import sys, {', '.join(modules)}, src.core.metrics, src.core.data_utils\n"
        "print(*{'torch', 'transformers', 'peft', 'accelerate', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
