"""What the sources must not do, and where a secret must not appear."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.core.logging import redact
from src.core.paths import ROOT
from tests.exp.conftest import TINY, Stage

SOURCES = sorted((ROOT / "src").rglob("*.py"))
TOKEN = "hf_" + "Abc123def456" * 2


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted names of everything that is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def imports(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_source(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for name, call in calls(tree):
        last = name.rsplit(".", 1)[-1]
        where = f"{path}:{call.lineno}: {name}"
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), where
        assert name not in ("yaml.load", "tempfile.mktemp", "ssl._create_unverified_context"), where
        assert not name.startswith(("os.exec", "os.spawn")), where
        if name == "torch.load":
            assert is_true(argument(call, "weights_only")), where
        if name in ("np.load", "numpy.load", "np.save", "numpy.save"):
            allow = argument(call, "allow_pickle")
            assert allow is not None and not is_true(allow), where
        if last in ("Popen", "run", "check_output", "check_call") and name.startswith("subprocess"):
            assert argument(call, "shell") is None, where
            assert isinstance(call.args[0], ast.List), f"{where}: no list of arguments"
        assert not is_true(argument(call, "trust_remote_code")), where
        assert last not in ("extractall", "to_pickle", "read_pickle"), where
        for weak in ("verify", "check_hostname"):
            value = argument(call, weak)
            assert not (isinstance(value, ast.Constant) and value.value is False), where
    banned = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & imports(tree)
    # The converter of iLoRA's own pickles has an unpickler that finds only the parts of a table.
    assert not banned or path.name == "convert_ilora.py", f"{path}: {banned}"


def test_remote_code_is_off_in_every_shipped_configuration() -> None:
    files = [p for p in (ROOT / "conf").rglob("*.yaml") if "trust_remote_code" in p.read_text()]
    assert files
    for file in files:
        assert "trust_remote_code: true" not in file.read_text(), file


def test_the_one_unpickler_names_what_it_allows() -> None:
    from src.core.datasets.convert_ilora import _ALLOWED

    modules = {module.split(".")[0] for module, _ in _ALLOWED}
    assert modules == {"builtins", "numpy", "pandas"}
    assert {name for module, name in _ALLOWED if module == "builtins"} == {"slice"}


def test_redaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-token-without-the-usual-form")
    text = redact(f"401 for a-token-without-the-usual-form and {TOKEN}")
    assert text == "401 for *** and hf_***"
    assert redact("hf_home is no token") == "hf_home is no token"


def test_no_secret_in_anything_a_run_writes(
    stage: Stage, roots: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of the environment, met in a message and in a traceback, appears in no file and on no terminal."""
    from src.exp import stages

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    good = stage("run_student_baseline", *TINY)
    assert good.code == 0

    def leaks(*args, **kwargs):
        try:
            raise ConnectionError(f"https://user:{TOKEN}@huggingface.co/model")
        except ConnectionError as e:
            raise RuntimeError(f"Authorization: Bearer {TOKEN}") from e

    monkeypatch.setattr(stages, "train_student", leaks)
    bad = stage("run_student_baseline", *TINY)
    assert bad.code == 1
    written = [p for p in roots.rglob("*") if p.is_file()]
    assert any(p.name == "git_info.json" for p in written) and any(p.name == "run.log" for p in written)
    for path in written:
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in good.err + good.out + bad.err + bad.out
    assert "Bearer" in bad.err and bad.folder and "Traceback" in (bad.folder / "run.log").read_text()


def test_git_info_has_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remote addresses can hold credentials."""
    from src.core.git_info import git_info

    assert set(git_info()) == {"commit", "branch", "dirty", "changed"}
