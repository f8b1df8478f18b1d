"""What iLoRA's parts are worth under its own protocol: HitRatio@1 among 20 candidates, on fixed test rows.

    python -m benchmarks.candidate_effect --out effect.json dataset=movielens \
        dataset.raw_dir=../shared/data/ml-100k teacher/prompt=movie

Arms: `ilora`, `lora` (uniform gate: plain LoRA), `text` (no SASRec vectors in the prompt), all trained with the
papers' objective (`lm`, prompts that list candidates) on the same rows, and the frozen SASRec they share. Every
teacher is asked by generation and by likelihood. Further overrides hold for all arms. Nothing is exported.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.core.candidates import CandidateConfig, Choices, load_candidates
from src.core.config import build_or_raise
from src.core.data_utils import DatasetConfig, InteractionData, load_dataset
from src.core.logging import get_logger, setup_logging
from src.core.metrics import paired_difference
from src.core.paths import CONF
from src.core.seed import numpy_stream
from src.teacher.config import build_teacher_config
from src.teacher.ilora_teacher import IloraTeacher

# The papers' objective with this project's gate and optimizer, sized for the embedded LLM.
COMMON = [
    "teacher.objective={item:0.0,lm:1.0,prior:none}",
    "teacher.prompt.candidates=20",
    "teacher.export={ranking:rerank,pool:20,top_k:20,embedding:{source:text},batch_size:128}",
    "teacher.train={samples:4000,epochs:4,evals_per_epoch:1,eval_samples:500}",
]
ARMS = {"ilora": [], "lora": ["teacher.gate.kind=uniform"], "text": ["teacher.prompt.mode=text"]}
log = get_logger("benchmark")


def composed(*overrides: str) -> dict:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def one(arm: str, seed: int, overrides: list[str]) -> tuple[dict, InteractionData, np.ndarray, dict]:
    """Train one arm and ask it; returns its figures, and what paired differences need."""
    groups = composed(*COMMON, *ARMS[arm], *overrides, f"teacher.seed={seed}")
    problems: list[str] = []
    config = build_teacher_config(groups["teacher"], "teacher", problems)
    if problems:
        raise SystemExit(" | ".join(problems))
    data = load_dataset(build_or_raise(DatasetConfig, groups["dataset"], "dataset"))
    candidates = load_candidates(build_or_raise(CandidateConfig, groups["eval"]["candidates"], "eval"), data)
    assert candidates is not None
    teacher = IloraTeacher(config, data)
    report = teacher.prepare(None)
    started = time.monotonic()
    choices = teacher.choose(candidates)
    line = {"arm": arm, "seed": seed, "overrides": overrides, "n": len(candidates.sample_ids), **report}
    line["ask_seconds"] = round(time.monotonic() - started, 1)
    line["ways"] = {way: c.figures() for way, c in choices.items()}
    for way, c in choices.items():
        log.info("%s seed %d %s: %s", arm, seed, way, _shown(c))
    return line, data, candidates.sample_ids, {w: c.hits.mean(axis=0) for w, c in choices.items()}


def _shown(choices: Choices) -> str:
    return ", ".join(
        f"{name} {f['mean']:.4f} ± {f.get('sd', 0):.4f}" for name, f in choices.figures().items()
    )


def table(lines: list[dict], hits: dict[tuple[str, str], list[np.ndarray]], users: np.ndarray) -> str:
    """Means and sd over seeds; differences to the frozen SASRec, interval over users, seeds averaged."""
    out = ["| arm | way | HitRatio@1 | ValidRatio | minus frozen SASRec (95 %) |", "|---|---|---|---|---|"]
    base = np.mean([h for (a, w), hs in hits.items() if w == "frozen_sasrec" for h in hs], axis=0)
    for (arm, way), own_hits in hits.items():
        if way == "frozen_sasrec" and arm != lines[0]["arm"]:
            continue  # the arms of a seed share it
        own = [line["ways"][way] for line in lines if line["arm"] == arm]
        cells = [_over_seeds([w[name]["mean"] for w in own]) for name in ("HitRatio@1", "ValidRatio")]
        d = paired_difference(base, np.mean(own_hits, axis=0), users, numpy_stream(0, "effect", arm, way))
        difference = "–" if way == "frozen_sasrec" else f"{d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f})"
        name = "frozen SASRec" if way == "frozen_sasrec" else arm
        out.append(f"| {name} | {way} | {cells[0]} | {cells[1]} | {difference} |")
    return "\n".join(out)


def _over_seeds(values: list[float]) -> str:
    sd = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{sd}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per arm and seed")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all arms")
    args = parser.parse_args()
    setup_logging(None)
    lines: list[dict] = []
    hits: dict[tuple[str, str], list[np.ndarray]] = {}
    users = np.empty(0)
    for seed in args.seeds:
        for arm in args.arms:
            line, data, ids, own = one(arm, seed, args.overrides)
            users = data.users_of(ids)
            lines.append(line)
            for way, values in own.items():
                hits.setdefault((arm, way), []).append(values)
            with open(args.out, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
    print(table(lines, hits, users))


if __name__ == "__main__":
    main()
