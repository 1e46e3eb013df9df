"""Where points come from: an MLflow experiment (read here and nowhere else), a CSV or Parquet file, a pandas frame.

Three sources, one table. `analysis.rows` has the objects, `analysis.table` reads files and frames,
`analysis.selection` says which runs of a sweep count.
"""

import math
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from analysis.rows import Array, Excluded, Point, Points
from analysis.selection import RunFacts, keep_sound_runs, untuned
from analysis.table import in_order, points_from_file, points_from_frame, select_points
from gopher.errors import SetupError, UsageError, did_you_mean, first_line

__all__ = [
    "Array", "Excluded", "Point", "Points", "curves_from_mlflow", "points_from_file", "points_from_frame", "points_from_mlflow",
]  # fmt: skip


def points_from_mlflow(
    tracking_uri: str, experiment: str, metric: str = "final/val_loss", where: str = "", *, best: bool = True
) -> Points:
    """Training runs (tag kind=train) of an MLflow experiment as points; every run left out is listed with its reason.

    `metric` is any `final/*`, `val/*` or `eval/*` key of the runs (its last value). Works with sqlite files and servers.
    Without `best` the runs of a search over settings all stay.
    """
    runs = training_runs(tracking_uri, experiment)
    candidates = [(point_of(run, metric, experiment), run_facts(run, metric)) for run in runs]
    points, excluded, notes = keep_sound_runs(candidates, metric, best=best)
    points, filtered = select_points(points, where, experiment)
    if len(points) < 2:
        gone = "; ".join(f"{e.run_id}: {e.reason}" for e in (*excluded, *filtered)[:3])
        raise UsageError(
            f"experiment '{experiment}' has {len(points)} usable run(s) with {metric} of {len(runs)} training runs"
            f"{f' ({gone})' if gone else ''}; a law needs at least 2, so launch the sweep to its end or choose another metric"
        )
    return Points(
        rows=in_order(points),
        excluded=(*excluded, *filtered),
        source=experiment,
        notes=(*notes, *untuned(points)),
        source_rows=pd.DataFrame([vars(p) for p, _ in candidates]),
    )


def newest(client: Any, run_id: str | None, name: str) -> dict[int, float]:
    """step -> the newest value logged there: a rewound run and a score that was asked for again have several."""
    history = sorted(client.get_metric_history(run_id, name), key=lambda m: (m.step, m.timestamp))
    return {m.step: m.value for m in history}


def curves_from_mlflow(tracking_uri: str, experiment: str, metric: str = "val/loss", where: str = "") -> Points:
    """Every evaluation of every usable run as a point, with its own tokens and FLOPs (`val/tokens`, `val/flops`)."""
    finals = points_from_mlflow(tracking_uri, experiment, where=where)
    client = client_of(tracking_uri)
    out = []
    for p in finals:
        series = {name: newest(client, p.mlflow_run, name) for name in (metric, "val/tokens", "val/flops")}
        for step in sorted(set.intersection(*map(set, series.values()))):
            values = [positive(series[name][step]) for name in (metric, "val/tokens", "val/flops")]
            if all(v is not None for v in values):
                loss, tokens, flops = map(float, values)  # type: ignore[arg-type]
                out.append(replace(p, loss=loss, loss_name=metric, tokens=tokens, flops=flops, step=step))
    if len(out) < 2:
        raise UsageError(
            f"experiment '{experiment}' logged {len(out)} evaluation(s) of {metric} with val/tokens and val/flops; training curves need at least 2, so choose another law"
        )
    return replace(finals, rows=in_order(tuple(out)))


def client_of(tracking_uri: str) -> Any:
    """An MLflow client that sends nothing anywhere else."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import
    from mlflow import MlflowClient

    reach(tracking_uri)
    return MlflowClient(tracking_uri=tracking_uri)


def reach(tracking_uri: str) -> None:
    """Raises `SetupError` within seconds when a database server does not let us in; MLflow would try for two minutes."""
    if not tracking_uri.startswith("postgresql"):
        return
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(tracking_uri, connect_args={"connect_timeout": 10})
        with engine.connect():
            pass
        engine.dispose()
    except ImportError as error:
        raise SetupError(
            f"the database driver of tracking.uri is missing ({error}); write postgresql+psycopg:// and pip install 'psycopg[binary]'"
        ) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise SetupError(
            f"the tracking database could not be reached ({first_line(error)}); start it or mend tracking.uri"
        ) from None


def training_runs(tracking_uri: str, experiment: str) -> list[Any]:
    """All runs tagged kind=train of the experiment, oldest first."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import
    from mlflow.exceptions import MlflowException

    try:
        client = client_of(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = [e.name for e in client.search_experiments(max_results=50) if e.name != "Default"]
            raise UsageError(
                f"MLflow has no experiment '{experiment}'{did_you_mean(experiment, known)}; launch the sweep first "
                f"(it has {', '.join(known) or 'none'})"
            )
        runs: list[Any] = []
        page: str | None = None
        while True:
            batch = client.search_runs([found.experiment_id], "tags.kind = 'train'", max_results=1000, page_token=page)
            runs += batch
            page = batch.token
            if not page:
                return sorted(runs, key=lambda run: (run.info.start_time or 0, run.info.run_id))
    except MlflowException as error:
        raise SetupError(
            f"MLflow at {tracking_uri} cannot be read ({first_line(error)}); start the server or mend tracking.uri"
        ) from None


def point_of(run: Any, metric: str, experiment: str) -> Point:
    """One MLflow run as a point; what it did not log stays None."""
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    return Point(
        run_id=tags.get("trial.id", run.info.run_id),
        rung=tags.get("rung") or params.get("rung") or "",
        loss=metrics.get(metric, math.nan),
        loss_name=metric,
        seed=integer(params.get("seed", tags.get("seed"))),
        family=experiment,
        step=integer(params.get("train.steps")),
        params_total=positive(params.get("model.n_params")),
        params_non_embedding=positive(params.get("model.n_params_nonemb")),
        tokens=positive(metrics.get("final/tokens", params.get("train.tokens"))),
        unique_tokens=positive(params.get("data.unique_tokens")),
        flops=positive(metrics.get("final/flops", params.get("train.flops"))),
        flops_convention=params.get("train.flops_convention"),
        loss_stderr=positive(metrics.get(f"{metric}_stderr")),
        learning_rate=positive(params.get("optim.lr")),
        batch_tokens=positive(params.get("train.batch_tokens")),
        cost=positive(metrics.get("final/usd")),
        mlflow_run=run.info.run_id,
        config_hash=tags.get("config.hash"),
        data_hash=tags.get("data.sha256"),
        checkpoint=tags.get("checkpoint"),
        started_at=time_of(run.info.start_time),
        finished_at=time_of(run.info.end_time),
    )


def run_facts(run: Any, metric: str) -> RunFacts:
    """Scores of tasks are told apart by their requests, all else by the text that is held out."""
    state = run.data.tags.get("status.state") or run.info.status
    return RunFacts(
        state=str(state).lower(),
        reason=run.data.tags.get("status.reason", ""),
        evaluation=run.data.tags.get("eval.scores" if metric.startswith("eval/") else "eval.version", ""),
        started=run.info.start_time or 0,
    )


def time_of(milliseconds: int | None) -> str | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


def positive(value: Any) -> float | None:
    """A logged number, or None when it is absent, unreadable or not above 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def integer(value: Any) -> int | None:
    try:
        return int(float(value))
    except (TypeError, ValueError):
        return None
