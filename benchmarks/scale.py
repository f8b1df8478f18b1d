"""How each stage grows: CPU time and peak memory against interactions, items, samples and LLM parameters.

    python -m benchmarks.scale run [--only prepare step_ce ...] [--largest 3e6]   # appends to benchmarks/scale.csv
    python -m benchmarks.scale show [--plot docs/specification/08_scale]          # table, growth laws, plot

Every axis is a process of its own on one thread; CPU time does not count other work on the machine, and the points come
in rising order, so that peak resident memory is the point's own (about .3 GiB of it are the imports). What is in the CSV is not measured again. A law is
y ~ x ** p, fitted on logarithms to the points of the last decade: below it, fixed costs hide the growth.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.measuring import ROOT, answer, lines_of_own_process, peak_gib, table

CSV = ROOT / "benchmarks" / "scale.csv"
BATCH, HISTORY = 256, 10


def _prepare(interactions: int) -> float:
    from benchmarks.prepare_scale import generate, measure

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["ANYO_DATA_ROOT"] = scratch
        generate(Path(scratch) / "raw", interactions, False)
        return measure(Path(scratch) / "raw", False)["prepare_cpu_s"]


def _steps(loss: str, n_items: int, n_samples: int, steps: int) -> float:
    """CPU seconds of SASRec training steps after one that warms up."""
    from benchmarks.measuring import made_data
    from benchmarks.student_speed import student_config, training
    from src.core.memory import keep_freed_memory

    keep_freed_memory()  # as the trainer does
    repeats = f"learn_repeats={str(loss == 'ce').lower()}"
    work = training(
        student_config("sasrec", f"loss={loss}", repeats, "device=cpu"), made_data(n_items, n_samples)
    )
    next(work)
    started = time.process_time()
    for _ in range(steps):
        next(work)
    return time.process_time() - started


def _evaluation(n_items: int) -> float:
    import torch

    from benchmarks.measuring import made_data
    from benchmarks.student_speed import student_config
    from src.student.evaluator import rank_samples
    from src.student.models import build_student

    data = made_data(n_items, BATCH)
    student = build_student(student_config("sasrec", "device=cpu"), n_items, HISTORY).eval()
    batch = max(1, min(BATCH, 2**26 // n_items))
    started = time.process_time()
    rank_samples(student, data, data.splits["train"], batch, torch.device("cpu"))
    return time.process_time() - started


def _serving(search: str, n_items: int) -> float:
    import torch

    from benchmarks.serving import clustered_student
    from src.student.serving import StudentRecommender

    names = [str(i) for i in range(1, n_items + 1)]
    recommender = StudentRecommender(clustered_student(n_items), names, names, search)
    histories = torch.randint(1, n_items + 1, (11, HISTORY)).tolist()
    seconds = []
    for history in histories:
        started = time.process_time()
        recommender.recommend(history, 10)
        seconds.append(time.process_time() - started)
    return float(np.median(seconds[1:]))


def _store(samples: int) -> float:
    from benchmarks.teacher_export import memory

    started = time.process_time()
    memory(samples, 100)
    return time.process_time() - started


def _llm(training: bool, size: int) -> tuple[float, float]:
    """Parameters of a random Llama, and CPU seconds for 512 tokens: a step of gated LoRA, or a forward pass."""
    import torch

    from benchmarks.teacher_cost import Trained, llama

    hidden, layers = {1: (64, 2), 2: (128, 4), 3: (256, 6), 4: (512, 8), 5: (768, 12)}[size]
    model = llama(hidden, layers)
    weights = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    side, ids = Trained(model, gated=True), torch.randint(3, 4096, (4, 128))
    h_seq = torch.randn(4, 64)

    @torch.no_grad()
    def forward() -> None:
        with side.control.use(torch.softmax(side.router(h_seq), dim=-1)):
            side.model(input_ids=ids, use_cache=False)

    call: Callable[[], None] = (lambda: side.step(ids, ids, h_seq)) if training else forward
    call()
    started = time.process_time()
    call()
    return float(weights), time.process_time() - started


@dataclass(frozen=True)
class Axis:
    """One thing that is measured: what it is, along which size, where, and how; CPU seconds of a unit."""

    what: str
    size: str
    points: tuple[int, ...]
    measure: Callable[[int], float | tuple[float, float]]


AXES = {
    "prepare": Axis("preparing a log", "interactions", (10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7), _prepare),
    "epoch": Axis(
        "student epoch (ce, 3,000 items)", "samples", (10**4, 3 * 10**4, 10**5, 3 * 10**5),
        lambda n: _steps("ce", 3000, n, n // BATCH),
    ),
    "step_ce": Axis(
        "student step, full softmax, batch 256", "items", (10**3, 10**4, 10**5, 3 * 10**5),
        lambda n: _steps("ce", n, 2 * BATCH, 2) / 2,
    ),
    "step_bce": Axis(
        "student step, one negative, batch 256", "items", (10**3, 10**4, 10**5, 10**6),
        lambda n: _steps("bce", n, 2 * BATCH, 4) / 4,
    ),
    "evaluation": Axis("full ranking of 256 rows", "items", (10**3, 10**4, 10**5, 10**6), _evaluation),
    "float32": Axis("one user's top 10, float32", "items", (10**4, 10**5, 10**6), lambda n: _serving("float32", n)),
    "int8": Axis("one user's top 10, int8", "items", (10**4, 10**5, 10**6), lambda n: _serving("int8", n)),
    "ann": Axis("one user's top 10, index", "items", (10**4, 10**5, 10**6), lambda n: _serving("ann", n)),
    "store": Axis("writing a store, K=100", "samples", (10**4, 10**5, 10**6), _store),
    "llm_step": Axis("teacher step, 512 tokens", "LLM weights", (1, 2, 3, 4, 5), lambda n: _llm(True, n)),
    "llm_rows": Axis("export pass, 512 tokens", "LLM weights", (1, 2, 3, 4, 5), lambda n: _llm(False, n)),
}  # fmt: skip


def measured(name: str, todo: list[int]) -> Iterator[dict[str, float]]:
    """The points of an axis in this process, small ones first: each peak is its own or that of a smaller one."""
    import torch

    torch.set_num_threads(1)
    for point in todo:
        found = AXES[name].measure(point)
        size, seconds = found if isinstance(found, tuple) else (float(point), found)
        yield {"point": point, "size": size, "cpu_s": seconds, "peak_gib": peak_gib()}


def read() -> list[dict[str, str]]:
    if not CSV.is_file():
        return []
    with CSV.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(names: list[str], largest: float) -> None:
    """Measure the points that the CSV lacks, small ones first."""
    done = {(row["axis"], int(row["point"])) for row in read()}
    if not CSV.exists():
        CSV.write_text("axis,point,size,cpu_s,peak_gib,date\n")
    for name in names:
        todo = [p for p in AXES[name].points if (name, p) not in done and p <= largest]
        if not todo:
            continue
        for found in lines_of_own_process("benchmarks.scale", name, todo, OMP_NUM_THREADS="1"):
            values = (f"{found['size']:.0f}", f"{found['cpu_s']:.4g}", f"{found['peak_gib']:.2f}")
            line = ",".join([name, str(found["point"]), *values, time.strftime("%Y-%m-%d")])
            with CSV.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            sys.stderr.write(line + "\n")


def exponent(sizes: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(p, c) of values ~ c * sizes ** p, least squares on logarithms over the last decade of sizes."""
    last = sizes * 10.01 >= sizes.max()
    p, log_c = np.polyfit(np.log(sizes[last]), np.log(values[last]), 1)
    return float(p), float(np.exp(log_c))


def points(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, CPU seconds and peak GiB that the CSV holds, by size."""
    rows = [r for r in read() if r["axis"] == name]
    columns = [np.array([float(r[key]) for r in rows]) for key in ("size", "cpu_s", "peak_gib")]
    order = np.argsort(columns[0])
    return columns[0][order], columns[1][order], columns[2][order]


def show(plot: Path | None) -> None:
    rows, drawn = [], []
    for name, axis in AXES.items():
        sizes, seconds, peaks = points(name)
        if len(sizes) < 2:
            continue
        p, _ = exponent(sizes, seconds)
        drawn.append((name, axis, sizes, seconds, peaks))
        cells = [f"{s:.0e}: {t:.3g}" for s, t in zip(sizes, seconds, strict=True)]
        rows.append([axis.what, axis.size, "; ".join(cells), f"{p:.2f}", f"{peaks[0]:.2f} → {peaks[-1]:.2f}"])
    sys.stdout.write(table(["what", "against", "CPU s", "exponent", "peak GiB"], rows))
    if plot is None:
        return
    from src.core.plotting import mark, picture

    with picture(plot, 11, 4.5, 1, 2) as (_, axes):
        for number, (name, _axis, sizes, seconds, peaks) in enumerate(drawn):
            for side, values in zip(axes[0], (seconds, peaks), strict=True):
                side.loglog(sizes, values, label=name, markersize=4, **mark(number))
        for side, title in zip(axes[0], ("CPU seconds", "peak GiB of the process"), strict=True):
            side.set(xlabel="interactions, items, samples or weights", ylabel=title)
        axes[0][0].legend(fontsize=7, ncol=2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"), nargs="?", default="show")
    parser.add_argument("--only", nargs="+", choices=tuple(AXES), default=list(AXES))
    parser.add_argument("--largest", type=float, default=float("inf"), help="leave out larger points")
    parser.add_argument("--plot", type=Path, help="without a suffix")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        for found in measured(*json.loads(options.one)):
            answer(found)
    elif options.action == "run":
        run(options.only, options.largest)
    else:
        show(options.plot)


if __name__ == "__main__":
    main()
