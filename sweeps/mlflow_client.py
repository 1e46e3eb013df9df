"""MLflow as this package uses it: imported without its chatter, and asked what it has of a sweep's training runs."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a request repeated behind our back could make a run twice; we try again ourselves
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}


def import_mlflow() -> Any:
    """mlflow with telemetry off unless the user says otherwise, and without its chatter."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("DO_NOT_TRACK", "").lower() not in ("", "0", "false"):
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # MLflow itself does not honour DO_NOT_TRACK=1
    import mlflow

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def no_answer(error: BaseException) -> bool:
    """Whether the store was silent or busy, rather than refusing this one request."""
    from mlflow.exceptions import MlflowException, RestException

    silent = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # also MLflow's code for a refused connection
    return isinstance(error, MlflowException) and not isinstance(error, RestException) and error.error_code in silent


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A training run as MLflow has it."""

    run_id: str
    start_ms: int
    params: frozenset[str]
    steps: Mapping[str, int]  # last step of each metric


def logged_runs(client: Any, experiment: str) -> dict[str, Logged]:
    """Run key -> the oldest training run that MLflow has of it."""
    known: dict[str, Logged] = {}
    page: str | None = None
    while True:
        found = client.search_runs(
            [experiment], "tags.kind = 'train'", max_results=1000, order_by=["start_time ASC"], page_token=page
        )
        for run in found:
            known.setdefault(run.data.tags.get("trial.id", run.info.run_id), logged_run(run))
        page = found.token
        if not page:
            return known


def logged_run(run: Any) -> Logged:
    """An MLflow run as what is known of it."""
    steps = {sys.intern(m.key): m.step for m in run.data.to_proto().metrics}
    params = frozenset(sys.intern(k) for k in run.data.params)
    return Logged(run_id=run.info.run_id, start_ms=run.info.start_time, params=params, steps=steps)
