"""Log lines and progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from src.core.errors import UserError, printable

T = TypeVar("T")
_SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "WANDB_API_KEY")
_LIBRARIES = {"py", "transformers", "peft", "accelerate", "huggingface_hub", "torch"}
_DETAILS = (
    *("src.core.datasets", "src.core.candidates", "src.core.leaks", "src.core.splits", "src.core.seed"),
    *(
        "src.teacher.quality",
        "src.teacher.title_states",
        "src.teacher.kept_states",
        "src.teacher.prompt_tokens",
    ),
    *("src.distill.data_bridge", "src.core.store_writer", "src.core.data_utils", "src.exp.choices"),
    *("src.teacher.export", "src.teacher.text", "src.teacher.tiny_llm", "src.teacher.encoder.kept"),
)
_LINE_EVERY_S = 60.0


def redact(text: str) -> str:
    """`text` with `***` for hub tokens: those of the environment, and whatever looks like one."""
    for name in _TOKEN_VARIABLES:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, "***")
    return _SECRET.sub("hf_***", text)


class _NoSecrets(logging.Filter):
    """Replaces hub tokens, which libraries put into their messages, and control characters, which titles hold."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(redact(record.getMessage())), ()
        return True


class _NotForTheTerminal(logging.Filter):
    """Warnings of libraries are for `run.log`."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.split(".")[0] not in _LIBRARIES


class _Brief(logging.Filter):
    """Details of the data and the teacher's parts are for `run.log`, unless they warn."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or not record.name.startswith(_DETAILS)


class _Redacted(logging.Formatter):
    """File format: tracebacks pass no filter of the message."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redact(super().format(record)))


class _OneLine(logging.Formatter):
    """Console format: the traceback goes to `run.log` only."""

    def format(self, record: logging.LogRecord) -> str:
        record = logging.makeLogRecord(
            {**record.__dict__, "exc_info": None, "exc_text": None, "stack_info": None}
        )
        return super().format(record)


def get_logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


class _RunLog(logging.FileHandler):
    """`run.log`: a disk that does not take it ends the run, once; by default a traceback is printed per line."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        if (error := sys.exc_info()[1]) is not None:  # of `emit`, which is being handled
            raise error


def setup_logging(log_file: Path | None = None, quiet: bool = False, brief: bool = False) -> None:
    """Send INFO and above to the terminal (without tracebacks) and everything to `log_file`.

    Args:
        log_file: the run's `run.log`; None writes no file.
        quiet: only warnings on the terminal (processes other than rank 0).
        brief: no details on the terminal.
    """
    close_logging()
    logging.getLogger().setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING if quiet else logging.INFO)
    console.setFormatter(_OneLine("%(asctime)s %(message)s", "%H:%M:%S"))
    console.addFilter(_NotForTheTerminal())
    if brief:
        console.addFilter(_Brief())
    logging.captureWarnings(True)
    _add(console)
    if log_file is not None:
        log_to_file(log_file)


def log_to_file(log_file: Path) -> None:
    """Send everything to a run's `run.log` as well, from now on."""
    file = _RunLog(log_file, encoding="utf-8")
    file.setFormatter(_Redacted("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _add(file)


def _add(handler: logging.Handler) -> None:
    handler.addFilter(_NoSecrets())
    logging.getLogger().addHandler(handler)


def close_logging() -> None:
    """Close what `setup_logging` opened (a process may run several stages)."""
    root = logging.getLogger()
    logging.captureWarnings(False)
    for handler in list(root.handlers):
        if any(isinstance(f, _NoSecrets) for f in handler.filters):
            root.removeHandler(handler)
            with suppress(OSError):  # what a full disk did not take is lost, and was told
                handler.close()


def command(act: Callable[[], object]) -> int:
    """Run a small command line; its exit code: 2 with one line on stderr for input that cannot be used."""
    setup_logging()
    try:
        act()
    except UserError as e:
        sys.stderr.write(f"error: {redact(str(e))}\n")
        return 2
    return 0


def progress(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    unit: str = "batch",
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Iterate with a bar on a terminal; elsewhere a line at most every minute, with rate and time left.

    Args:
        total: number of items; None: their length, where they have one.
        unit: what is counted.
        size: how many units an item counts for; only of a sequence.
    """
    if total is None and isinstance(items, Sequence):
        total = sum(map(size, items))
    if sys.stderr.isatty():
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        bar = tqdm(desc=description, total=total, unit=unit, leave=False, dynamic_ncols=True)
        with logging_redirect_tqdm(), bar:
            for item in items:
                yield item
                bar.update(size(item))
        return
    log, started = get_logger("progress"), time.monotonic()
    last, done = started, 0
    for item in items:
        yield item
        done += size(item)
        if (now := time.monotonic()) - last >= _LINE_EVERY_S:
            last, rate = now, done / (now - started)
            left = f", {(total - done) / rate:.0f} s left" if total else ""
            log.info("%s: %d/%s %s, %.1f/s%s", description, done, total or "?", unit, rate, left)
