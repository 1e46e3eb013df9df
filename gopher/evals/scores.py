"""Scores of a run's last checkpoint on named tasks, kept with the run: evals/<task>.json, and metric rows eval/<task>.<metric>."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.evals.items import tasks_named
from gopher.inference import Rung, open_rung
from gopher.record import RunFolder, write_atomic

BOOTSTRAPS = 100  # of the harness, for metrics whose standard error has no formula


def score_run(run_folder: Path, names: Sequence[str], tasks_path: str | None) -> None:
    """Score what `names` holds and the run's record does not. One task at a time: a kill loses one.

    A task that cannot be read is recorded with the reason. Raises `UsageError` when the run has no checkpoint.
    """
    folder = RunFolder(run_folder)
    rung = open_rung(run_folder)
    for name in folder.unscored(names):
        record = scored(rung, name, tasks_path)
        if metrics := record["metrics"]:
            folder.log(rung.step, {f"eval/{key}": value for key, value in metrics.items()})
        write_atomic(folder.scores_file(name), json.dumps(record, indent=1, sort_keys=True) + "\n")


def scored(rung: Rung, name: str, tasks_path: str | None) -> dict[str, Any]:
    """The record of one task, or group of tasks: `metrics` is task.metric -> value; empty, with the reason, when it has no data."""
    import lm_eval

    from gopher.lm_eval_adapter import GopherLM

    record: dict[str, Any] = {"task": name, "step": rung.step, "checkpoint_sha256": rung.sha256, "metrics": {}}
    record |= {"harness": lm_eval.__version__, "items": {}, "skipped": None}
    try:
        tasks = tasks_named([name], tasks_path, lambda message: None)
    except UsageError as missing:
        return record | {"skipped": str(missing)}
    found = lm_eval.simple_evaluate(GopherLM(rung=rung), tasks=list(tasks.found.values()), bootstrap_iters=BOOTSTRAPS)
    for task, values in found["results"].items():
        record["items"][task] = found["n-samples"].get(task, {}).get("effective")
        record["metrics"] |= {f"{task}.{key}": value for key, value in numbers(values).items()}
    return record


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The harness's `acc,none` and `acc_stderr,none` as acc and acc_stderr; what is no number is left out, not made 0."""
    kept = {key.partition(",")[0]: value for key, value in values.items() if "," in key}
    return {key: float(v) for key, v in kept.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
