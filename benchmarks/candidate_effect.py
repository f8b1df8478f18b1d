"""What iLoRA's parts are worth under its own protocol: HitRatio@1 among 20 candidates, on fixed test rows.

    python -m benchmarks.candidate_effect --out effect.jsonl dataset=movielens \
        dataset.raw_dir=../shared/data/ml-100k teacher/prompt=movie

Arms: `ilora`, `lora` (uniform gate: plain LoRA), `text` (no SASRec vectors in the prompt), all trained with the
papers' objective (`lm`, prompts that list candidates) on the same rows; `item` and `item_prior` are this project's
own objective on them, alone and on top of SASRec's scores; and the frozen SASRec that they share. A seed decides encoder, adapter, rows and wordings; the
embedded LLM is made once (first seed), as a pre-trained one would be there once. Teachers are asked in every way
they can be; nothing is exported. Further overrides hold for all arms. What `--out` holds already is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.comparison_level import paired_difference
from src.core.candidates import CandidateSet, load_candidates
from src.core.data_utils import InteractionData, load_dataset
from src.core.logging import get_logger, setup_logging
from src.core.seed import numpy_stream
from src.exp.settings import Settings
from src.teacher.config import IloraConfig
from src.teacher.ilora_teacher import IloraTeacher
from src.teacher.tiny_llm import tiny_llm_folder

# The papers' objective with this project's gate and optimizer, sized for the embedded LLM.
COMMON = [
    "teacher.objective={item:0.0,lm:1.0,prior:none}",
    "teacher.prompt.candidates=20",
    "teacher.export={ranking:rerank,pool:20,top_k:20,embedding:{source:text},batch_size:128}",
    "teacher.train={samples:3000,epochs:3,evals_per_epoch:1,eval_samples:500}",
]
ARMS = {
    "ilora": [],
    "lora": ["teacher.gate.kind=uniform"],
    "text": ["teacher.prompt.mode=text"],
    "item": ["teacher.objective={item:1.0,lm:0.0,prior:none}", "teacher.export.ranking=hidden"],
    "item_prior": ["teacher.objective={item:1.0,lm:0.0,prior:sasrec}", "teacher.export.ranking=hidden"],
}
log = get_logger("benchmark")


def configured(*overrides: str) -> tuple[IloraConfig, InteractionData, CandidateSet]:
    settings = Settings.compose([*COMMON, *overrides])
    data = load_dataset(settings.dataset)
    return settings.teacher, data, load_candidates(settings.eval.candidates, data)


def base_llm(seed: int, overrides: list[str]) -> list[str]:
    """The overrides with the one base LLM of all arms and seeds, made now where it is not there."""
    config, data, _ = configured(*overrides, f"teacher.seed={seed}")
    if config.llm.tiny is None:
        return overrides
    folder = tiny_llm_folder(config.llm.tiny, config.prompt, data, seed, torch.device("cpu"))
    others = [o for o in overrides if not o.startswith(("teacher.llm.", "teacher/llm="))]
    return [*others, "teacher/llm=local", f"teacher.llm.path={folder}"]


def one(arm: str, seed: int, overrides: list[str]) -> dict:
    """Train one arm and ask it; returns its figures, and per-sample hits (means over draws)."""
    config, data, candidates = configured(*ARMS[arm], *overrides, f"teacher.seed={seed}")
    teacher = IloraTeacher(config, data)
    report = teacher.prepare(None)
    started = time.monotonic()
    choices = teacher.choose(candidates)
    for way, c in choices.items():
        figures = [f"{name} {f['mean']:.4f} ± {f.get('sd', 0):.4f}" for name, f in c.figures().items()]
        log.info("%s seed %d %s: %s", arm, seed, way, ", ".join(figures))
    return {
        "arm": arm,
        "seed": seed,
        **report,
        "ask_seconds": round(time.monotonic() - started, 1),
        "ways": {way: c.figures() for way, c in choices.items()},
        "hits": {way: c.hits.mean(axis=0).tolist() for way, c in choices.items()},
        "written": [[w.text, w.verdict, w.target] for c in choices.values() for w in c.written],
        "users": data.users_of(candidates.sample_ids).tolist(),
    }


def table(lines: list[dict]) -> str:
    """Means and sd over seeds; differences to the frozen SASRec, interval over users, seeds averaged."""
    out = [
        "| arm | asked by | seeds | HitRatio@1 | ValidRatio | minus frozen SASRec (95 % over users) |",
        "|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        own = [line for line in lines if line["arm"] == arm]
        for way in own[0]["ways"]:
            hits, base = (np.mean([line["hits"][w] for line in own], axis=0) for w in (way, "frozen_sasrec"))
            rng = numpy_stream(0, "effect", arm, way)
            d = paired_difference(base, hits, np.array(own[0]["users"]), rng)
            shown = [
                _over_seeds([x["ways"][way][m]["mean"] for x in own]) for m in ("HitRatio@1", "ValidRatio")
            ]
            interval = "–" if way == "frozen_sasrec" else f"{d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f})"
            out.append(f"| {arm} | {way} | {len(own)} | {shown[0]} | {shown[1]} | {interval} |")
    return "\n".join(out)


def _over_seeds(values: list[float]) -> str:
    sd = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{sd}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=["ilora", "lora", "text"], choices=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per arm and seed")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides for all arms")
    args = parser.parse_args()
    setup_logging(None)
    lines = [json.loads(x) for x in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(line["arm"], line["seed"]) for line in lines}
    todo = [(arm, seed) for seed in args.seeds for arm in args.arms if (arm, seed) not in done]
    overrides = base_llm(args.seeds[0], args.overrides) if todo else []
    for arm, seed in todo:
        lines.append(one(arm, seed, overrides))
        with open(args.out, "a", encoding="utf-8") as f:
            f.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
