"""From rows to jobs: settings, fingerprints of every stage, each job once, and only those that are not done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.core.artifacts import fingerprint, is_complete, load_manifest
from src.core.config import determining
from src.core.errors import ConfigError, UserError
from src.core.paths import model_dir, processed_dir
from src.core.runs import RunRecord, find_runs
from src.exp.identity import identity_of
from src.exp.overrides import compose_values, has_key
from src.exp.run_part import PARTS
from src.exp.settings import Settings
from src.exp.table.reading import Row
from src.teacher.config import (
    IloraConfig,
    encoder_fingerprint,
    llm_fingerprint,
    members_of,
    model_fingerprint,
)


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        stage: one of PARTS (`python -m src.exp.run_part`), or an entry point (`python -m src.exp.run_<stage>`).
        fingerprint: of what it makes.
        overrides: of the first row that needs it.
        needs: ids of the jobs that must have completed.
        after: ids of the jobs that must have ended, however they did.
        rows: names of all rows that need it.
    """

    stage: str
    fingerprint: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.stage}-{self.fingerprint}"


@dataclass(frozen=True)
class Node:
    """A job that the table asks for, done or not; `folder` is the artifact's of a part, else None."""

    job: Job
    settings: Settings
    folder: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What a table asks for.

    Attributes:
        nodes: everything, by id; a node stands after those that it needs.
        jobs: still to be run, in an order that works. A part that one job alone needs is made by that job.
        done: result folder (of a part: of the artifact) by the ids of jobs that are done.
        targets: by row name the ids of its stages, the one that it asks for last.
        notes: what a reader should know.
    """

    nodes: Mapping[str, Node]
    jobs: tuple[Job, ...]
    done: Mapping[str, Path]
    targets: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def make_plan(rows: Sequence[Row]) -> Plan:
    """The jobs of all rows.

    Raises:
        ConfigError: unknown keys and contradictions of every row, each with its line.
    """
    nodes, users, targets = dict[str, Node](), dict[str, list[str]](), dict[str, tuple[str, ...]]()
    shared: dict[tuple[int, ...], list[Node]] = {}
    for row, settings in _composed(rows):
        found = [*_nodes(settings, row.stage, shared)]
        for node in found:
            nodes.setdefault(node.job.id, node)
            users.setdefault(node.job.id, []).append(row.name)
        targets[row.name] = tuple(dict.fromkeys(n.job.id for n in found if n.folder is None))
    todo, done = _pending(nodes)
    jobs = _folded({i: replace(n.job, rows=tuple(users[i])) for i, n in nodes.items() if i in todo})
    trained = [job for job in jobs if job.stage != "eval_all"]
    after = tuple(job.id for job in trained)  # a comparison shows all that there is
    compared = [replace(job, after=after) for job in jobs if job.stage == "eval_all"]
    return Plan(nodes, (*trained, *compared), done, targets, tuple(_notes(rows, targets)))


def _composed(rows: Sequence[Row]) -> list[tuple[Row, Settings]]:
    """Settings of every row. Raises ConfigError with the problems of all rows; equal ones stand once."""
    out, problems, datasets = [], dict[str, list[str]](), dict[int, str]()
    unused = {o for row in rows for o in row.common}
    for row in rows:
        try:
            overrides = _overrides(row)
            unused -= {*overrides}
            settings = Settings.compose(overrides)
            if getattr(settings.teacher, "overfit", None) is not None:
                raise ConfigError(["teacher.overfit: found a debug run, expected null in a table"])
            if id(settings.dataset) not in datasets:  # groups are shared; raw files are hashed once
                datasets[id(settings.dataset)] = settings.dataset_fp
            settings.__dict__["dataset_fp"] = datasets[id(settings.dataset)]
            out.append((row, settings))
        except ConfigError as e:
            for problem in e.problems:
                problems.setdefault(problem, []).append(row.where)
        except UserError as e:  # raw files
            problems.setdefault(str(e), []).append(row.where)
    for override in unused if not problems else ():
        problems[f"found {override}, expected a key that some row leaves open and its teacher has"] = [
            "every row"
        ]
    if problems:
        more = {p: f" and {len(w) - 1} more" if w[1:] else "" for p, w in problems.items()}
        raise ConfigError([f"{w[0]}{more[p]}: {p}" for p, w in problems.items()])
    return out


def _overrides(row: Row) -> tuple[str, ...]:
    """The table's overrides and then the row's, the last of a key alone.

    Of the table's teacher settings a row that chooses its teacher takes those that this teacher has.
    """
    chosen = [o for o in row.overrides if o.startswith(("teacher=", "+experiment="))]
    values = compose_values(chosen) if chosen else {}
    last: dict[str, str] = {}
    for override in (*row.common, *row.overrides):
        key = override.partition("=")[0]
        name = key.rpartition("@")[2].replace("/", ".")
        foreign = override in row.common and chosen and name.startswith("teacher.")
        if not foreign or has_key(values, name):
            last.pop(key, None)
            last[key] = override
    return tuple(last.values())


def _nodes(settings: Settings, stage: str, shared: dict[tuple[int, ...], list[Node]]) -> Iterator[Node]:
    """Everything that a row needs, each after what it needs itself; the stage that it asks for last."""
    if stage == "eval_all":
        before: list[Node] = []
        for seed in settings.compare.seeds or (settings.seed,):
            before += _nodes(settings.with_seed(seed), "distill", shared)
        yield from before
        ends = [*dict.fromkeys(n.job.id for n in before if n.folder is None)]
        compared = fingerprint([ends, determining(settings.compare), determining(settings.eval)])
        yield _node(settings, stage, compared, ends)
        return
    dataset_fp = settings.dataset_fp
    data = _node(settings, "dataset", dataset_fp, (), processed_dir(settings.dataset.name, dataset_fp))
    needs = [data.job.id]
    yield data
    if stage != "student_baseline":
        # Rows share most teachers: `teacher_fp` and the nodes are made once for all of them.
        groups = (id(settings.dataset), id(settings.teacher), id(settings.active))
        if groups not in shared:
            shared[groups] = [*_teacher_nodes(settings, data.job.id)]
        yield from shared[groups]
        settings.__dict__["teacher_fp"] = shared[groups][-1].job.fingerprint
        needs.append(shared[groups][-1].job.id)
    if stage != "teacher":
        yield _node(settings, "student_baseline", settings.baseline_fp, needs[:1])
    if stage == "distill":
        if settings.selects("distill") and "student" in settings.selection_sources:  # asks the baseline
            needs.append(f"student_baseline-{settings.baseline_fp}")
        yield _node(settings, "distill", settings.distill_fp, needs)


def _teacher_nodes(settings: Settings, data: str) -> Iterator[Node]:
    """Encoder, embedded LLM and training of each member; the store last, whose job also trains folds."""
    ready: list[str] = []
    selected = settings.selects("teacher_train")  # the teacher's own job selects, then trains

    def part(stage: str, fp: str, needs: Sequence[str], folder: str) -> Node:
        return _node(settings, stage, fp, needs, model_dir(settings.dataset.name, folder, fp))

    for member in members_of(settings.teacher):
        made = []
        encoder = getattr(member, "encoder", None)
        if encoder is not None and getattr(member, "encoder_run", None) is None:
            fp = encoder_fingerprint(encoder, member.seed, settings.dataset_fp)
            made.append(part("encoder", fp, [data], "sasrec_encoder"))
        if isinstance(member, IloraConfig) and member.llm.tiny is not None:
            fp = llm_fingerprint(member.llm.tiny, member.prompt, member.seed, settings.dataset_fp)
            made.append(part("llm", fp, [data], "tiny_llm"))
        yield from made
        needs = [node.job.id for node in made] or [data]
        if isinstance(member, IloraConfig) and member.train.samples != 0 and not selected:
            fp = model_fingerprint(member, settings.dataset_fp)
            yield part("training", fp, needs, "teacher")
            needs = [f"training-{fp}"]
        ready += needs
    yield _node(settings, "teacher", settings.teacher_fp, [*dict.fromkeys(ready)])


def _node(settings: Settings, stage: str, fp: str, needs: Sequence[str], folder: Path | None = None) -> Node:
    return Node(Job(stage, fp, settings.overrides, tuple(needs)), settings, folder)


def _pending(nodes: Mapping[str, Node]) -> tuple[set[str], dict[str, Path]]:
    """Ids to be run, and folders of those done; parts that only finished stages need are not looked at."""
    runs = {
        (r.stage, r.fingerprint): r for r in reversed(find_runs(state="completed"))
    }  # the first of equals
    todo, done = set[str](), dict[str, Path]()
    waiting = [i for i, n in nodes.items() if n.folder is None and n.job.stage != "eval_all"]
    while waiting:
        if (name := waiting.pop()) in todo or name in done:
            continue
        if folder := _finished(nodes[name], runs.get((nodes[name].job.stage, nodes[name].job.fingerprint))):
            done[name] = folder
        else:
            todo.add(name)
            waiting += nodes[name].job.needs
    for name, node in nodes.items():
        if node.job.stage == "eval_all":
            values = compose_values(node.settings.overrides)
            fp = identity_of("eval_all", node.settings, values)[0]  # changes with the runs that it reads
            folder = _finished(node, runs.get(("eval_all", fp))) if todo.isdisjoint(node.job.needs) else None
            done |= {name: folder} if folder else {}
            todo |= set() if folder else {name}
    return todo, done


def _finished(node: Node, run: RunRecord | None) -> Path | None:
    """Where the result of a job lies; None where it is missing, or damaged, so that the job says so itself."""
    try:
        if node.folder is not None:
            return node.folder if is_complete(node.folder) and load_manifest(node.folder, {}, "") else None
        if node.job.stage == "teacher" and not is_complete(node.settings.teacher_dir):
            return None
        return run.folder if run is not None and run.manifest else None
    except UserError:
        return None


def _folded(jobs: dict[str, Job]) -> list[Job]:
    """Without the parts that a single job needs: it makes them itself, in one process."""
    users: dict[str, set[str]] = {name: set() for name in jobs}
    for job in jobs.values():
        for need in users.keys() & job.needs:
            users[need].add(job.id)
    for part in [j for stage in reversed(PARTS) for j in jobs.values() if j.stage == stage]:
        if len(users[part.id]) == 1:
            (user,) = users[part.id]
            needs = (n for need in jobs[user].needs for n in (part.needs if need == part.id else (need,)))
            jobs[user] = replace(jobs[user], needs=tuple(dict.fromkeys(needs)))
            del jobs[part.id]
            for need in users.keys() & part.needs:
                users[need] = users[need] - {part.id} | {user}
    return [replace(job, needs=tuple(n for n in job.needs if n in jobs)) for job in jobs.values()]


def _notes(rows: Sequence[Row], targets: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Rows that differ in nothing that matters."""
    first: dict[str, Row] = {}
    for row in rows:
        same = first.setdefault(targets[row.name][-1], row)
        if same is not row:
            yield f"{row.where} ({row.name}) computes what {same.where} ({same.name}) does: run once"
