"""A process that has imported everything and forks one child per run: a kill costs a second, not the imports.

Speaks JSON lines: {"entry", "argv", "env", "stderr"} in; the child's pid, then its exit code (minus the signal)
out. It computes nothing itself, so that the child is as good as a fresh process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib import import_module

from src.core.paths import ROOT

_ENTRIES = ("run_teacher", "run_student_baseline", "run_distill", "run_eval_all")


class Forker:
    """The other end: starts the process above and asks it for runs."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.exp.forking"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, entry: str, argv: list[str], env: dict[str, str], stderr: str) -> int:
        """Begin a run whose log goes to the named pipe `stderr`; returns its pid."""
        assert self.process.stdin is not None
        request = {"entry": entry, "argv": argv, "env": env, "stderr": stderr}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Exit code of the run, minus the signal that killed it."""
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


def _child(request: dict) -> int:
    os.environ.update(request["env"])
    log = os.open(request["stderr"], os.O_WRONLY)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)
    os.dup2(null, 1)
    os.close(log)
    sys.argv = [request["entry"], *request["argv"]]
    try:
        import_module(f"src.exp.{request['entry']}").main()
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def main() -> None:
    import accelerate
    import matplotlib.figure
    import peft
    import torch
    import transformers

    assert all((accelerate, matplotlib, peft, torch, transformers))
    from src.exp import cli, settings, stages
    from src.teacher import ilora_teacher, tiny_llm

    assert all((cli, settings, stages, ilora_teacher, tiny_llm))
    for name in _ENTRIES:
        import_module(f"src.exp.{name}")
    # The tests may run under nohup or in the background, where signals are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _child(json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(code)
        for answer in (lambda pid=pid: pid, lambda pid=pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])):
            sys.stdout.write(f"{answer()}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
