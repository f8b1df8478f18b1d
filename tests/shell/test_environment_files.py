"""Agreements between the environment files: matching versions, no index addresses, no machine's paths."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.shell.conftest import REPOSITORY


def text(path: str) -> str:
    return (REPOSITORY / path).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lock() -> dict[str, list[str]]:
    versions: dict[str, list[str]] = {}
    for package in tomllib.loads(text("poetry.lock"))["package"]:
        versions.setdefault(package["name"], []).append(package["version"])
    return versions


@pytest.fixture(scope="module")
def files() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [name for name in listing if (REPOSITORY / name).is_file()]


def test_base_image_has_the_locked_torch(lock):
    tag = re.search(r"^FROM pytorch/pytorch:([\d.]+)-", text("Dockerfile"), re.M)
    assert tag and lock["torch"] == [tag[1]]


def test_image_and_set_up_use_the_same_poetry():
    script = text("env_shell/setup.sh")
    for package, variable in (
        ("poetry", "POETRY_VERSION"),
        ("poetry-plugin-pypi-mirror", "MIRROR_PLUGIN_VERSION"),
    ):
        pinned = re.search(rf"{variable}=([\d.]+)", script)
        assert pinned and f" {package}=={pinned[1]}" in text("Dockerfile")


def test_every_package_is_locked_once(lock):
    assert {name: v for name, v in lock.items() if len(v) > 1} == {}


def test_lock_holds_no_address():
    assert not re.search(
        r'^(url|reference) = "|\[package\.source\]', text("poetry.lock"), re.M
    )  # an extra is a list


@pytest.fixture(scope="module")
def environment_files(files) -> list[str]:
    mine = [
        f
        for f in files
        if f.startswith(("env_shell/", "cmd/", ".ci/")) or f in ("Dockerfile", "pyproject.toml")
    ]
    assert len(mine) > 10
    return mine


def test_environment_files_name_no_index_and_no_machine(environment_files):
    pattern = re.compile(r"https?://|pypi\.org|/(home|root|Users|mnt)/")
    assert [(f, m[0]) for f in environment_files if (m := pattern.search(text(f)))] == []


def test_environment_files_are_in_english(environment_files):
    dotfiles = [".dockerignore", ".editorconfig", ".gitignore"]
    assert [f for f in environment_files + dotfiles if not text(f).isascii()] == []


def test_root_holds_only_what_the_layout_names(files):
    at_root = {f for f in files if "/" not in f and not f.startswith(".")}
    assert at_root <= {"Dockerfile", "README.md", "README.ja.md", "pyproject.toml", "poetry.lock"}
    folders = {f.split("/")[0] for f in files if "/" in f}
    assert folders <= {
        *("src", "conf", "cmd", "env_shell", "data", "result", "ref_repositories", "docs"),
        *("tests", "benchmarks", ".ci"),
    }


def test_data_and_result_are_kept_but_empty(files):
    assert [f for f in files if f.startswith(("data/", "result/"))] == ["data/.gitkeep", "result/.gitkeep"]
