"""From an exam to scores: requests compiled once, answers of every checkpoint kept, scores into the run's record.

Below the output root: evals/bundles (requests), evals/answers (what checkpoints answered), and in each run's folder
evals/<name>.json with metric rows eval/<task>.<metric> and eval/<task>.<metric>_stderr.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.evals.answers import Scoring
from gopher.evals.checkpoints import Checkpoint, checkpoints_of
from gopher.evals.compile import Compiled, Prompting, compile_tasks
from gopher.evals.exam import Exam
from gopher.evals.items import Say
from gopher.evals.metrics import Scored, TaskScore, over_seeds, scored
from gopher.evals.store import Store, score_missing
from gopher.record import RunFolder, write_atomic


def compile_exam(exam: Exam, output_root: Path, say: Say = lambda message: None) -> list[Compiled]:
    """The exam's bundles, once per few-shot seed. Raises `UsageError` when no task can be read."""
    folder = output_root / "evals" / "bundles"
    asked = [Prompting(shots=exam.shots, seed=seed, limit=exam.limit) for seed in exam.seeds]
    return [compile_tasks(exam.tasks, exam.tasks_path, folder, how, say) for how in asked]


def store_of(exam: Exam, output_root: Path) -> Store:
    return Store(folder=output_root / "evals" / "answers", scoring=Scoring(stride=exam.stride))


def scored_seeds(compiled: Sequence[Compiled], store: Store, sha256: str) -> list[Scored]:
    """A checkpoint's scores per few-shot seed, from stored answers; tasks without all of them are left out."""
    out = []
    for one in compiled:
        found = {name: store.answers(sha256, bundle) for name, bundle in one.bundles.items()}
        out.append(scored(one, {name: answers for name, answers in found.items() if answers is not None}))
    return out


# ---- one run in this process


def score_run(run_folder: Path, exam: Exam) -> None:
    """Score what the exam holds and the run's record does not. Answers are kept shard by shard: a kill loses one shard.

    A task that cannot be read is recorded with the reason. Raises `UsageError` when the run has no checkpoint.
    """
    folder, root = RunFolder(run_folder), run_folder.absolute().parents[1]
    checkpoints = checkpoints_of(run_folder, "last", exam.floor)
    store = store_of(exam, root)
    for name in folder.unscored(exam.tasks):
        compiled, skipped = compiled_or_reason(exam, name, root)
        lines: dict[Checkpoint, list[TaskScore]] = {}
        for checkpoint in checkpoints if compiled else []:
            answer_all(checkpoint, compiled, store)
            lines[checkpoint] = over_seeds([s.scores for s in scored_seeds(compiled, store, checkpoint.sha256)])
            log_scores(folder, checkpoint.step, lines[checkpoint])
        keep_record(folder, name, checkpoints[-1], lines.get(checkpoints[-1], []), skipped)


def compiled_or_reason(exam: Exam, name: str, root: Path) -> tuple[list[Compiled], str | None]:
    """The bundles of one name, or why there are none."""
    try:
        compiled = compile_exam(Exam(**{**asdict(exam), "tasks": (name,)}), root)
    except UsageError as missing:
        return [], str(missing)
    left_out = "; ".join(f"{s.task}: {s.reason}" for s in compiled[0].skipped)
    return ([], left_out) if not compiled[0].bundles else (compiled, left_out or None)


def answer_all(checkpoint: Checkpoint, compiled: Sequence[Compiled], store: Store) -> int:
    """Requests that had to be scored for the store to have all answers; damaged shards are found here, and scored again."""
    bundles = [bundle for one in compiled for bundle in one.bundles.values()]
    if not any(store.answers(checkpoint.sha256, bundle) is None for bundle in bundles):
        return 0
    rung = checkpoint.open()
    return sum(score_missing([rung], bundle, store) for bundle in bundles)


# ---- into the record


def log_scores(folder: RunFolder, step: int, lines: Sequence[TaskScore]) -> None:
    """Metric rows of one checkpoint, unless the log has just these."""
    values: dict[str, float | None] = {}
    for line in lines:
        values[f"eval/{line.task}.{line.metric}"] = line.value
        if line.stderr is not None:
            values[f"eval/{line.task}.{line.metric}_stderr"] = line.stderr
    known = folder.metrics()
    if any(known.get(name, {}).get(step) != value for name, value in values.items()):
        folder.log(step, values)


def keep_record(
    folder: RunFolder, name: str, checkpoint: Checkpoint, lines: Sequence[TaskScore], skipped: str | None
) -> None:
    """evals/<name>.json: what the run's last checkpoint scored on one task or group, or why it did not."""
    import lm_eval

    metrics = {f"{line.task}.{line.metric}": line.value for line in lines}
    metrics |= {f"{line.task}.{line.metric}_stderr": line.stderr for line in lines if line.stderr is not None}
    record: dict[str, Any] = {"task": name, "step": checkpoint.step, "checkpoint_sha256": checkpoint.sha256}
    record |= {"harness": lm_eval.__version__, "metrics": metrics, "skipped": skipped}
    record["items"] = {line.task: line.n for line in lines if not line.metric.endswith("_seed_sd")}
    write_atomic(folder.scores_file(name), json.dumps(record, indent=1, sort_keys=True) + "\n")
