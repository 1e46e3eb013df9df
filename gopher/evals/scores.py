"""From an exam to scores: requests compiled once, answers of every checkpoint kept, scores into the run's record.

Below the output root: evals/bundles (requests), evals/answers (what checkpoints answered), and in each run's folder
evals/<name>.json with metric rows eval/<task>.<metric> and eval/<task>.<metric>_stderr.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gopher.errors import GopherError, UsageError
from gopher.evals.answers import Answer, Scoring
from gopher.evals.bundle import Bundle
from gopher.evals.checkpoints import Checkpoint, checkpoints_of
from gopher.evals.compile import Compiled, Prompting, compile_tasks
from gopher.evals.exam import Exam
from gopher.evals.items import Say, Skipped
from gopher.evals.metrics import Scored, TaskScore, members_of, named, over_seeds, scored
from gopher.evals.store import Store
from gopher.evals.units import Scorer, Unit, units_of
from gopher.record import RunFolder, write_atomic


def compile_exam(exam: Exam, output_root: Path, say: Say = lambda message: None) -> list[Compiled]:
    """The exam's bundles, once per few-shot seed. Raises `UsageError` when no task can be read."""
    folder = output_root / "evals" / "bundles"
    asked = [Prompting(shots=exam.shots, seed=seed, limit=exam.limit) for seed in exam.seeds]
    return [compile_tasks(exam.tasks, exam.tasks_path, folder, how, say) for how in asked]


def store_of(exam: Exam, output_root: Path) -> Store:
    scoring = Scoring(stride=exam.stride, mode=exam.mode, chains=exam.chains)
    return Store(folder=output_root / "evals" / "answers", scoring=scoring)


def scored_seeds(compiled: Sequence[Compiled], store: Store, sha256: str) -> list[Scored]:
    """A checkpoint's scores per few-shot seed, from stored answers; a task that the seed does not change is in the first alone,
    and counts in the groups that the seed changes.

    Raises `GopherError` when answers are missing.
    """
    out: list[Scored] = []
    known: dict[str, list[Answer]] = {}  # by bundle
    for one in compiled:
        changed = {name for name, bundle in one.bundles.items() if bundle.key not in known}
        groups = {g: own for g, members in one.groups.items() if changed & (own := set(members_of(members)))}
        asked = changed.union(*groups.values()) & one.bundles.keys()
        for name in sorted(changed):
            own_answers = store.answers(sha256, one.bundles[name])
            if own_answers is None:
                raise GopherError(f"answers of {name} are gone from {store.folder}; run the same command again")
            known[one.bundles[name].key] = own_answers
        found = scored(one, {name: known[one.bundles[name].key] for name in one.bundles if name in asked})
        found = found.of({*changed, *groups})
        labels = labels_of(one, store.scoring)
        for label in sorted({*labels.values()} - {""}):
            found = named(found, label, {name for name, own in labels.items() if own != label})
        out.append(found)
    return out


def labels_of(compiled: Compiled, scoring: Scoring) -> dict[str, str]:
    """Task or group -> what its metrics are named after; a group of tasks that are asked in several ways has the whole name."""
    labels = {name: scoring.of(bundle.kinds).label for name, bundle in compiled.bundles.items()}
    for group, members in compiled.groups.items():
        own = {labels[name] for name in members_of(members) if name in labels}
        labels[group] = own.pop() if len(own) == 1 else scoring.label
    return labels


# ---- one run in this process


def score_run(run_folder: Path, exam: Exam) -> None:
    """Score what the exam holds and the run's record does not. Answers are kept shard by shard: a kill loses one shard.

    A task that cannot be read is recorded with the reason. Raises `UsageError` when the run has no checkpoint.
    """
    folder, root = RunFolder(run_folder), run_folder.absolute().parents[1]
    checkpoints = checkpoints_of(run_folder, exam.steps, exam.floor)
    last = checkpoints_of(run_folder, "last", False)
    checkpoints += [c for c in last if c.step != checkpoints[-1].step]
    store = store_of(exam, root)
    for name in folder.unscored(exam.tasks, exam.key):
        compiled, skipped = compiled_or_reason(exam, name, root)
        lines: list[TaskScore] = []
        answer_all(lacking(checkpoints, compiled, store), compiled, store)
        for checkpoint in checkpoints if compiled else []:
            found = scored_seeds(compiled, store, checkpoint.sha256)
            lines = over_seeds([s.scores for s in found])
            skipped += [s for s in found[0].skipped if checkpoint is checkpoints[-1]]
            log_scores(folder, checkpoint.step, lines)
        keys = sorted({bundle.key for one in compiled for bundle in one.bundles.values()})
        keep_record(folder, name, exam, checkpoints[-1], lines, keys, skipped)


def compiled_or_reason(exam: Exam, name: str, root: Path) -> tuple[list[Compiled], list[Skipped]]:
    """The bundles of one name, and what of it could not be read."""
    try:
        compiled = compile_exam(replace(exam, tasks=(name,)), root)
    except UsageError as missing:
        return [], [Skipped(task=name, reason=str(missing))]
    return (compiled if compiled[0].bundles else []), list(compiled[0].skipped)


def answer_all(units: Sequence[Unit], compiled: Sequence[Compiled], store: Store) -> int:
    """Requests that had to be scored in this process for the store to have the units' answers."""
    scorer = Scorer(store.folder, store, {bundle.key: bundle for bundle in bundles_of(compiled)})
    return sum(scorer.score(unit, wait=True) for unit in units)


def lacking(checkpoints: Sequence[Checkpoint], compiled: Sequence[Compiled], store: Store) -> list[Unit]:
    """What is still to be scored; every shard is read once, and damaged ones are found here."""
    bundles = bundles_of(compiled)
    for sha256 in {c.sha256 for c in checkpoints}:
        for bundle in bundles:
            store.holds(sha256, bundle)
    return units_of(checkpoints, bundles, store)


def bundles_of(compiled: Sequence[Compiled]) -> list[Bundle]:
    """Those of all few-shot seeds, each once."""
    return list({bundle.key: bundle for one in compiled for bundle in one.bundles.values()}.values())


# ---- into the record


def log_scores(folder: RunFolder, step: int, lines: Sequence[TaskScore], *, fewer: bool = True) -> dict[str, int]:
    """Metric rows of one checkpoint, unless the log has just these.

    Without `fewer`, what the log has of a task over more items, asked in the same way, stays: it is returned with their
    number.
    """
    known, items = folder.metrics(), items_of(lines)
    logged = {way: int(known.get(items_name(*way), {}).get(step) or 0) for way in items}
    kept = {} if fewer else {way: n for way, n in logged.items() if n > items[way]}
    values: dict[str, float | None] = {}
    for line in (line for line in lines if (line.task, way_of(line.metric)) not in kept):
        values[f"eval/{line.task}.{line.metric}"] = line.value
        if line.stderr is not None:
            values[f"eval/{line.task}.{line.metric}_stderr"] = line.stderr
    measured = {(line.task, way_of(line.metric)) for line in lines if line.metric not in ("chance", "members")}
    values |= {items_name(*way): float(items[way]) for way in measured & items.keys() if way not in kept}
    if any(known.get(name, {}).get(step) != value for name, value in values.items()):
        folder.log(step, values)
    return {f"{task} ({way})" if way else task: n for (task, way), n in kept.items() if (task, way) in measured}


def way_of(metric: str) -> str:
    """How a metric's answers were asked for and read, which stands behind its name: acc-think and its spread are "think"."""
    return metric.removesuffix("_seed_sd").partition("-")[2]


def items_name(task: str, way: str) -> str:
    return f"eval/{task}.items-{way}" if way else f"eval/{task}.items"


def items_of(lines: Sequence[TaskScore]) -> dict[tuple[str, str], int]:
    """(task, way of asking) -> its number of items; some metrics are of fewer."""
    out: dict[tuple[str, str], int] = {}
    for line in (line for line in lines if not line.metric.endswith("_seed_sd")):
        key = line.task, way_of(line.metric)
        out[key] = max(out.get(key, 0), line.n)
    return out


def keep_record(
    folder: RunFolder,
    name: str,
    exam: Exam,
    checkpoint: Checkpoint,
    lines: Sequence[TaskScore],
    bundles: Sequence[str],
    skipped: Sequence[Skipped],
) -> None:
    """evals/<name>.json: what the run's last checkpoint scored on one task or group as the exam asks, or why it did not."""
    import lm_eval

    metrics = {f"{line.task}.{line.metric}": line.value for line in lines}
    metrics |= {f"{line.task}.{line.metric}_stderr": line.stderr for line in lines if line.stderr is not None}
    record: dict[str, Any] = {"task": name, "step": checkpoint.step, "checkpoint_sha256": checkpoint.sha256}
    left_out = "; ".join(f"{s.task}: {s.reason}" for s in skipped)
    record |= {"harness": lm_eval.__version__, "exam": exam.key, "metrics": metrics, "skipped": left_out or None}
    items = {task: max(n for (own, _), n in items_of(lines).items() if own == task) for task, _ in items_of(lines)}
    record |= {"items": items, "bundles": bundles, "results": [asdict(line) for line in lines]}
    write_atomic(folder.scores_file(name), json.dumps(record, indent=1, sort_keys=True) + "\n")
