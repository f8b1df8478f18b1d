"""All groups of the configuration together, checked at once, and the fingerprint of every stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig

from src.core.artifacts import fingerprint
from src.core.config import build, config_group, determining, did_you_mean, fields_of, setting, unread
from src.core.data_utils import DatasetConfig, dataset_fingerprint
from src.core.errors import ConfigError
from src.core.metrics import METRICS, EvalConfig, is_metric
from src.core.paths import resolve, teacher_output_dir
from src.core.runs import read_run
from src.core.tracking import LOGGERS, missing_loggers
from src.distill.config import ActiveConfig, DistillConfig
from src.distill.selection import selection_fingerprint
from src.distill.selection_policy import POLICIES
from src.distill.strategies import active_problems
from src.exp.overrides import compose_values, resolved, set_values
from src.student.config import StudentConfig
from src.teacher.config import IloraConfig, TeacherConfig, encoder_fingerprint, teacher_fingerprint
from src.teacher.factory import build_teacher_config


@config_group
class CompareConfig:
    """`compare` in `conf/config.yaml`: what `run_eval_all` puts side by side."""

    runs: dict | None = setting("{row name: result folder}; null: runs of this configuration")
    teachers: tuple[str, ...] = setting("further teachers whose rows are shown where they were run")
    variants: dict = setting("{row name: overrides} of further distilled students, shown where they were run")
    seeds: tuple[int, ...] | None = setting("seeds to average over; null: only `seed`", ge=0)
    metrics: tuple[str, ...] = setting("metrics compared pairwise")
    draws: int = setting("bootstrap draws over users", ge=100)
    users: tuple[str | int, ...] = setting(
        "raw ids of users whose lists report.html shows, beside drawn ones"
    )

    def problems(self) -> list[str]:
        twice = sorted({s for s in self.seeds or () if (self.seeds or ()).count(s) > 1})
        out = [
            f"seeds: found {s} more than once, expected different seeds (a run of its own each)"
            for s in twice
        ]
        return out + [
            f"variants.{name}: found {overrides!r}, expected a list of overrides"
            for name, overrides in self.variants.items()
            if not isinstance(overrides, list) or not all(isinstance(o, str) for o in overrides)
        ]


@config_group
class _Root:
    seed: int = setting("every random stream is derived from it", ge=0)
    skip_if_done: bool = setting("stop early where a completed run of the same fingerprint exists")
    dry_run: bool = setting("check, print the plan, and stop")
    logger: tuple[str, ...] = setting("where curves go; wandb stays offline", choices=LOGGERS)

    def problems(self) -> list[str]:
        return [
            f"logger: found {name}, which is not installed; expected `poetry install --with loggers`"
            for name in missing_loggers(self.logger)
        ]


@config_group
class PlanConfig:
    """`plan`: what a dry run plans for."""

    device: str = setting("where the LLM would run", choices=("here", "a100", "h100", "l4"))


GROUPS: dict[str, type] = {
    "dataset": DatasetConfig,
    "student": StudentConfig,
    "distill": DistillConfig,
    "active": ActiveConfig,
    "eval": EvalConfig,
    "compare": CompareConfig,
    "plan": PlanConfig,
}


@dataclass(frozen=True)
class Settings:
    """The whole configuration of one run. Fingerprints follow from it and the raw files alone."""

    root: _Root
    dataset: DatasetConfig
    teacher: TeacherConfig
    student: StudentConfig
    distill: DistillConfig
    active: ActiveConfig
    eval: EvalConfig
    compare: CompareConfig
    plan: PlanConfig
    overrides: tuple[str, ...] = ()

    @classmethod
    def compose(cls, overrides: Sequence[str] = (), strict: bool = True) -> Settings:
        """The settings of a command line, without a running Hydra; cheap for thousands of value overrides.

        Args:
            strict: refuse overrides of keys that the chosen kinds do not read; else they are in `unread`.

        Raises:
            ConfigError: an override that fits nothing, or settings that are wrong; all problems at once.
        """
        return cls.load(compose_values(overrides), overrides, strict)

    @classmethod
    def load(
        cls, cfg: DictConfig | dict[str, Any], overrides: Sequence[str] = (), strict: bool = True
    ) -> Settings:
        """Build every group; ConfigError lists all that is wrong, in and across groups.

        Args:
            overrides: what `cfg` was composed with; `variant` adds to them.
        """
        problems: list[str] = []
        values = dict(cfg) if isinstance(cfg, dict) else resolved(cfg)
        root = {name: values.pop(name) for name in fields_of(_Root) if name in values}
        known = [*fields_of(_Root), *GROUPS, "teacher"]
        for key in values.keys() - set(known):
            close = did_you_mean(key, known)
            problems.append(f"{key}: unknown key, expected one of {', '.join(known)}{close}")
        made = {name: _built(name, values.get(name), problems) for name in (*GROUPS, "teacher")}
        made["root"] = build(_Root, root, "config", problems)
        if made["active"] is not None:
            problems += active_problems(made["active"])
        if problems:
            raise ConfigError(problems)
        settings = cls(**made, overrides=tuple(overrides))
        problems = settings._contradictions() + (settings.unread if strict else [])
        if problems:
            raise ConfigError(problems)
        return settings

    @cached_property
    def unread(self) -> list[str]:
        """One line per override of a key that nothing reads with the other values."""
        return self._unread(self.overrides)

    def _unread(self, overrides: Sequence[str]) -> list[str]:
        out = []
        for key, value in set_values(overrides):
            group, *path = key.split(".")
            if path and group in (*GROUPS, "teacher") and (why := unread(getattr(self, group), path)):
                out.append(f"{key}: found {value!r}, {why}")
        return out

    def _contradictions(self) -> list[str]:
        """What is right in every group alone and wrong together."""
        out = [
            f"compare.metrics: found {name}, expected one of {', '.join(METRICS)} @ one of eval.ks {self.eval.ks}"
            for name in self.compare.metrics
            if not is_metric(name, self.eval.ks)
        ]
        export, k = self.teacher.export, self.teacher.export.top_k
        if "train" in export.splits and self.distill.ranks and self.distill.top_k > k:
            out.append(f"distill.top_k: found {self.distill.top_k}, expected <= teacher.export.top_k={k}")
        return out + self._selection_contradictions() + self._candidate_contradictions()

    def _selection_contradictions(self) -> list[str]:
        out = []
        if self.selects("teacher_train") and not isinstance(self.teacher, IloraConfig):
            out.append(
                f"active.use: found teacher_train with teacher.kind={self.teacher.kind}, expected teacher.kind=ilora, "
                "which is trained on chosen samples"
            )
        if self.selects("export") and (share := self.teacher.export.train_share) < 1:
            out.append(
                f"teacher.export.train_share: found {share} with export in active.use, expected 1.0: active chooses"
            )
        return out

    def _candidate_contradictions(self) -> list[str]:
        """An LLM that writes is asked about candidates as it was trained."""
        candidates, teacher = self.eval.candidates, self.teacher
        if candidates is None or not isinstance(teacher, IloraConfig) or teacher.objective.lm == 0:
            return []
        out = []
        if (listed := teacher.prompt.candidates) and listed != candidates.count:
            out.append(
                f"eval.candidates.count: found {candidates.count}, expected teacher.prompt.candidates={listed} "
                "(the teacher's prompts list so many), or eval.candidates=null"
            )
        if teacher.llm.attention not in ("sdpa", "eager"):
            out.append(
                f"teacher.llm.attention: found {teacher.llm.attention} with eval.candidates and objective.lm > 0, "
                "expected sdpa or eager (titles are read as a tree), or eval.candidates=null"
            )
        return out

    @property
    def seed(self) -> int:
        return self.root.seed

    def run_name(self, stage: str) -> str:
        """How loggers name a run of `stage`: dataset, teacher, student, seed (what of them it has)."""
        teacher, student = self.teacher.name, self.student.name
        models = {"student_baseline": [student], "distill": [teacher, student]}.get(stage, [teacher])
        seed = self.seed if stage in ("student_baseline", "distill") else self.teacher.seed
        return "_".join([self.dataset.name, *models, f"seed{seed}"])

    @cached_property
    def dataset_fp(self) -> str:
        return dataset_fingerprint(self.dataset)

    @cached_property
    def teacher_fp(self) -> str:
        places = [place for place in ("teacher_train", "export") if self.selects(place)]
        selected = dict.fromkeys(places, self.selection_fp)
        return teacher_fingerprint(self.teacher, self.dataset_fp, selected)

    def selects(self, place: str) -> bool:
        """Whether `active` chooses the samples of teacher_train, export or distill."""
        return self.active.policy != "all" and place in self.active.use

    @property
    def selects_while_training(self) -> bool:
        """Whether the distillation asks the strategy itself, every few epochs."""
        return self.active.refresh_every is not None

    @property
    def selection_seed(self) -> int:
        """Students of different seeds share what the teacher learns from and exports; what is distilled alone is
        drawn anew for each."""
        return self.seed if self.active.use == ("distill",) else self.teacher.seed

    @cached_property
    def selection_sources(self) -> dict[str, str]:
        """Fingerprints of what a selection before training looks at."""
        needs, out = POLICIES[self.active.policy].needs, {}
        if "teacher" in needs:
            out["teacher"] = teacher_fingerprint(self.teacher, self.dataset_fp)
        if "student" in needs:
            if self.active.student is not None:
                out["student"] = read_run(resolve(self.active.student)).fingerprint
            elif self.teacher.encoder is not None:
                out["encoder"] = encoder_fingerprint(self.teacher.encoder, self.teacher.seed, self.dataset_fp)
            else:
                out["student"] = self.baseline_fp
        return out

    @cached_property
    def selection_fp(self) -> str:
        """Identity of the selection made before training."""
        return selection_fingerprint(
            self.active, self.dataset_fp, self.selection_seed, self.selection_sources
        )

    @cached_property
    def baseline_fp(self) -> str:
        return fingerprint(self._student_part())

    @cached_property
    def distill_fp(self) -> str:
        kd = {
            "distill": determining(self.distill),
            "active": determining(self.active),
            "teacher": self.teacher_fp,
        }
        return fingerprint({**self._student_part(), **kd, "selected_by": self.selection_sources})

    def _student_part(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset_fp,
            "student": determining(self.student),
            "eval": determining(self.eval),
            "seed": self.seed,
        }

    @property
    def teacher_dir(self) -> Any:
        return teacher_output_dir(self.dataset.name, self.teacher.name, self.teacher_fp)

    def with_seed(self, seed: int) -> Settings:
        """The same configuration for another student seed (the teacher keeps its own)."""
        return replace(self, root=replace(self.root, seed=seed), overrides=(*self.overrides, f"seed={seed}"))

    def variant(self, overrides: list[str]) -> Settings:
        """This configuration with further overrides; another teacher comes with that file's own values."""
        if any(o.startswith("teacher=") for o in overrides):
            # Every teacher has a seed; other settings of one teacher, a profile's too, do not fit another.
            theirs = [o for o in overrides if o.lstrip("+~").startswith("teacher")]
            seed = [o for o in self.overrides if o.startswith("teacher.seed=")]
            teacher = Settings.compose([*seed, *theirs], strict=False).teacher
            others = [o for o in overrides if o not in theirs]
            base = Settings.compose([*self.overrides, *others], strict=False) if others else self
            made = replace(base, teacher=teacher, overrides=(*self.overrides, *overrides))
            if problems := made._contradictions():
                raise ConfigError(problems)
        else:
            made = Settings.compose([*self.overrides, *overrides], strict=False)
        if problems := made._unread(overrides):  # what the command line set may be another variant's
            raise ConfigError(problems)
        return made


_kept: dict[tuple[str, str], Any] = {}  # groups are frozen, and thousands of settings share most of theirs


def _built(name: str, values: Any, problems: list[str]) -> Any:
    key = (name, json.dumps(values, default=str))
    if key in _kept:
        return _kept[key]
    if name == "teacher":
        made: Any = build_teacher_config(values, name, problems)
    else:
        made = build(GROUPS[name], values, name, problems)
    if made is not None and len(_kept) < 10_000:
        _kept[key] = made
    return made
