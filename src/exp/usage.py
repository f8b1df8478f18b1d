"""What `--help` shows: the stage, how it is called, examples. No Hydra here: help takes no time."""

from __future__ import annotations

import sys

from src.core.paths import CONF

_STAGES = {
    "teacher": (
        "Stage 1: train the teacher and fill the teacher-output store (data/teacher_outputs).",
        (
            ("", "the generated dataset, the built-in LLM: minutes on two CPU cores"),
            ("dataset=movielens teacher/prompt=movie", "MovieLens-100K"),
            ("teacher/llm=local teacher.llm.path=/models/my-llm", "your LLM in Hugging Face layout"),
            ("teacher=knn", "a teacher without an LLM: transitions between items"),
            ("teacher.overfit=8", "debug: can it learn eight rows by heart?"),
        ),
        "teacher, dataset; seed of the teacher: teacher.seed",
    ),
    "student_baseline": (
        "Stage 2: train the student without a teacher.",
        (
            ("", "SASRec on the generated dataset"),
            ("student=gru4rec dataset=movielens", "another student, MovieLens-100K"),
            ("--multirun seed=1,2,3", "three seeds"),
            ("student=gru4rec student.loss=gbce student.negatives=256", "another loss"),
        ),
        "student, dataset, eval, seed",
    ),
    "distill": (
        "Stage 3: train the student with the teacher's outputs; run_teacher comes first, with the same overrides.",
        (
            ("", "rankings and embeddings of the default teacher"),
            ("--multirun seed=1,2,3", "three students of one teacher"),
            ("distill.lam=0", "embeddings alone"),
            ("active=diversity active.share=0.3", "a third of the samples, chosen to differ"),
            (
                "distill=dllm2rec_official student=sasrec_dllm2rec student.loss=dros student.dros_alpha=1.0",
                "as the official code",
            ),
        ),
        "distill, active, student, teacher, dataset, eval, seed",
    ),
    "eval_all": (
        "Stage 4: compare baseline, teacher and distilled students that were run with these overrides.",
        (
            ("", "the rows of the default configuration"),
            ("compare.seeds=[1,2,3]", "means over three seeds"),
            ("compare=study", "a study's variants and controls"),
            ("'compare.runs={mine: result/result_20260101_120000}'", "named result folders"),
        ),
        "compare, eval, and what chose the runs",
    ),
}


def show_help(stage: str) -> bool:
    """Print the stage's usage where the command line asks for help; whether it did."""
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return False
    what, examples, reads = _STAGES[stage]
    command = f"python -m src.exp.run_{stage}"
    lines = [what, "", f"usage: {command} [group=name] [group.key=value] ... [--multirun key=a,b]", ""]
    lines += ["examples:"]
    lines += [f"  {command} {overrides}".rstrip() + f"\n      {meaning}" for overrides, meaning in examples]
    lines += ["", f"reads: {reads}", "", "groups:"]
    folders = sorted(p for p in CONF.glob("**/") if p != CONF and p.name != "hydra")
    for folder in folders:
        names = sorted(p.stem for p in folder.glob("[!_]*.yaml"))
        lines.append(f"  {folder.relative_to(CONF)}: {', '.join(names)}")
    lines += [
        "",
        "dry_run=true      check everything and print the plan: inputs, time, memory, disk",
        "skip_if_done=true stop where a completed run of these settings exists",
        "--cfg job         print the whole configuration; --hydra-help: Hydra's own flags",
        "python -m src.exp.explain teacher.train   meaning, default and allowed values of every key",
        "exit codes: 0 completed; 1 unexpected error; 2 input that cannot be used; 130, 143 stopped",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return True
