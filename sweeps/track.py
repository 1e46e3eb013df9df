"""The one writer of MLflow: mirrors run folders, never the other way round.

Workers append to `metrics.jsonl`; the driver reads on from where it was and sends batches. How far it got is kept in
`<run>/mlflow.json`, so a restarted driver goes on, and timestamps derive from the step, so a batch that is sent twice
is stored once. Nothing here stops a training: an unreachable server means a backlog, delivered later.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gopher.errors import SetupError, UsageError
from gopher.identity import content_hash
from gopher.record import FAILED, FINISHED, STOPPED, RunFolder, RunState, write_atomic
from gopher.size import FLOPS_CONVENTION, params_non_embedding, params_total, train_flops
from gopher.spec import RunSpec
from sweeps.dashboard import rung_color, view_tags

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", STOPPED: "KILLED"}


def import_mlflow() -> Any:
    """mlflow with telemetry off unless the user says otherwise, and without its chatter."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    return mlflow


def check_uri(uri: str) -> str:
    """A tracking URI that MLflow can use. File stores are refused: MLflow has ended their support."""
    if uri.startswith("file:") or "://" not in uri:
        raise UsageError(
            f"tracking.uri is {uri}, a file store, which MLflow no longer supports; leave it unset for sqlite, or name a server"
        )
    return uri


# ---- what is written, as plain values


def run_params(run: RunSpec) -> dict[str, Any]:
    """Parameters of one training run under the naming contract."""
    m = run.model
    return {
        "rung": run.rung,
        "seed": run.seed,
        "model.name": run.rung,
        "model.n_params": params_total(m),
        "model.n_params_nonemb": params_non_embedding(m),
        "model.log10_n_params_nonemb": round(math.log10(params_non_embedding(m)), 6),
        **{
            f"model.{k}": getattr(m, k)
            for k in ("n_layers", "n_heads", "d_head", "d_model", "d_ff", "vocab_size", "context")
        },
        **{
            f"optim.{k}": getattr(run.optim, k)
            for k in ("lr", "warmup_steps", "beta1", "beta2", "clip_norm", "final_lr_fraction")
        },
        "precision.parameters": run.precision.parameters,
        "precision.compute": run.precision.compute,
        "train.tokens": run.train_tokens,
        "train.steps": run.steps,
        "train.batch_tokens": run.batch_tokens(0),
        "train.flops": f"{train_flops(run):.6e}",
        "train.log10_flops": round(math.log10(train_flops(run)), 6),
        "train.flops_convention": FLOPS_CONVENTION,
        "data.kind": run.data.kind,
        **{f"data.weight.{name}": round(weight, 6) for name, weight in run.data.weights.items()},
        "tokenizer.preset": run.tokenizer.preset,
    }


def data_params(run: RunSpec, manifest: dict[str, Any]) -> dict[str, Any]:
    """Parameters known once the shards exist: how much distinct text there is and how often it is seen."""
    unique = {n: e["train"]["tokens"] for n, e in manifest["subsets"].items()}
    seen = {n: run.train_tokens * w / unique[n] for n, w in run.data.weights.items()}
    return {"data.unique_tokens": sum(unique.values()), "data.max_epochs_seen": round(max(seen.values()), 6)}


def run_tags(run: RunSpec, sweep: str, parent: str, rungs: Sequence[str], provenance: dict[str, Any]) -> dict[str, str]:
    git = provenance.get("git", {})
    return {
        "mlflow.runName": f"{run.rung}-lr{run.optim.lr:g}-s{run.seed}",
        "mlflow.parentRunId": parent,
        "mlflow.runColor": rung_color(run.rung, rungs),
        "kind": "train",
        "sweep.id": sweep,
        "trial.id": run.key,
        "rung": run.rung,
        "seed": str(run.seed),
        "git.commit": str(git.get("commit")),
        "git.dirty": str(git.get("dirty")),
        "config.hash": str(provenance.get("config_hash")),
        "tokenizer.key": run.tokenizer_key,
        "data.key": run.data_key,
        "eval.version": content_hash(
            {"data": run.data_key, "evaluation": run.evaluation, "context": run.model.context}
        )[:12],
    }


# ---- the writer


class Tracker:
    """Writes one sweep: its experiment, its parent run, one nested run per training run, its fits."""

    def __init__(self, uri: str, sweep: str, artifact_root: Path, rungs: Sequence[str]) -> None:
        self.uri, self.sweep, self.rungs = check_uri(uri), sweep, tuple(rungs)
        self._artifact_root = artifact_root
        self._place = content_hash([uri, sweep])[:16]  # a password inside the URI stays out of files
        self._client: Any = None
        self._experiment = self._parent = ""
        self._error: str | None = None

    def delivered(self, folders: Iterable[RunFolder]) -> bool:
        """Whether every run's log and end are in MLflow already, by the folders' own notes."""
        return all(self._is_delivered(f) for f in folders)

    def _is_delivered(self, folder: RunFolder) -> bool:
        note, state, log = self._note(folder), folder.state(), folder.path / "metrics.jsonl"
        size = log.stat().st_size if log.exists() else 0
        return bool(note) and state is not None and note.get("state") == state.state and note.get("offset") == size

    def open_sweep(self, config: str) -> str:
        """Experiment and parent run, made if missing; the parent's id. Raises `SetupError` when MLflow can't be reached."""
        mlflow = import_mlflow()
        local = self.uri.startswith("sqlite")
        try:
            self._client = mlflow.MlflowClient(self.uri)
            found = self._client.get_experiment_by_name(self.sweep)
            if found is not None and found.lifecycle_stage == "deleted":
                raise UsageError(
                    f"the MLflow experiment '{self.sweep}' is in the trash; restore it, or give the sweep another name with name=..."
                )
            location = self._artifact_root.as_uri() if local else None
            self._experiment = (
                found.experiment_id if found else self._client.create_experiment(self.sweep, artifact_location=location)
            )
            self._parent = self._find("tags.kind = 'sweep'") or self._make_parent(config)
            for key, value in {"mlflow.experimentKind": "custom_model_development", "sweep.id": self.sweep}.items():
                self._client.set_experiment_tag(self._experiment, key, value)
        except UsageError:
            raise
        except Exception as error:
            raise SetupError(
                f"MLflow at {without_password(self.uri)} could not be reached ({first_line(error)}); start it, mend tracking.uri, or leave tracking.uri unset for sqlite"
            ) from None
        return self._parent

    def _find(self, filter_string: str) -> str | None:
        found = self._client.search_runs([self._experiment], filter_string, max_results=1)
        return found[0].info.run_id if found else None

    def _make_parent(self, config: str) -> str:
        tags = {"kind": "sweep", "sweep.id": self.sweep, "mlflow.runName": self.sweep}
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        self._client.log_text(run_id, config, "config/sweep.yaml")
        return run_id

    def write_views(self, subsets: Sequence[str]) -> None:
        """The saved dashboards; a failure here is never a failure of the sweep."""
        try:
            for key, value in view_tags(subsets, int(time.time() * 1000)).items():
                self._client.set_experiment_tag(self._experiment, key, value)
        except Exception as error:
            self._error = first_line(error)

    def mirror(self, folder: RunFolder) -> bool:
        """Send what is new in a run folder. False, with the backlog kept, when MLflow does not answer."""
        try:
            self._mirror(folder)
        except Exception as error:  # whatever the store or the network throws, training must go on
            self._error = first_line(error)
            return False
        return True

    def _mirror(self, folder: RunFolder) -> None:
        state = folder.state()
        if state is None or self._is_delivered(folder):
            return
        note = self._note(folder)
        if not note:
            note = {"run_id": self._make_run(folder), "start_ms": int(time.time() * 1000), "offset": 0, "steps": {}}
            self._write_note(folder, note)
        if "data" not in note:
            self._log_data_params(folder, note)
        self._send_metrics(folder, note)
        self._send_state(folder, note, state)

    def _make_run(self, folder: RunFolder) -> str:
        spec, provenance = folder.spec(), folder.provenance()
        known = self._find(f"tags.`trial.id` = '{spec.key}' and tags.kind = 'train'")
        if known:
            return known
        tags = run_tags(spec, self.sweep, self._parent, self.rungs, provenance)
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        self._log_params(run_id, run_params(spec))
        self._client.log_text(run_id, json.dumps(provenance.get("config"), indent=2), "config/resolved.json")
        if diff := provenance.get("git", {}).get("diff"):
            self._client.log_text(run_id, diff, "config/uncommitted.diff")
        return run_id

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(k, str(v)) for k, v in params.items()]
        for i in range(0, len(rows), PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=rows[i : i + PARAMS_PER_BATCH])

    def _log_data_params(self, folder: RunFolder, note: dict[str, Any]) -> None:
        """Hashes and sizes of the text, once the shards exist."""
        manifest_file = Path(folder.placement().data_dir) / "manifest.json"
        if not manifest_file.is_file():
            return
        manifest = json.loads(manifest_file.read_text("utf-8"))
        self._log_params(note["run_id"], data_params(folder.spec(), manifest))
        self._client.set_tag(note["run_id"], "data.sha256", manifest["sha256"])
        self._client.set_tag(note["run_id"], "tokenizer.sha256", manifest["tokenizer"]["sha256"])
        self._write_note(folder, note | {"data": manifest["sha256"]})
        note["data"] = manifest["sha256"]

    def _send_metrics(self, folder: RunFolder, note: dict[str, Any]) -> None:
        """New whole lines of the log. A metric at a step it already has (a replay after a restart) is not sent again."""
        from mlflow.entities import Metric

        path = folder.path / "metrics.jsonl"
        if not path.exists():
            return
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(note["offset"] if note["offset"] <= size else 0)  # a torn tail may have been cut since
            fresh = file.read()
        fresh = fresh[: fresh.rfind(b"\n") + 1]
        start, steps, rows = min(note["offset"], size), dict(note["steps"]), []
        for line in fresh.split(b"\n")[:-1]:
            row = json.loads(line)
            for name, value in row["metrics"].items():
                if value is not None and row["step"] > steps.get(name, -1):
                    rows.append(Metric(name, value, note["start_ms"] + row["step"], row["step"]))
                    steps[name] = row["step"]
        for i in range(0, len(rows), METRICS_PER_BATCH):
            self._client.log_batch(note["run_id"], metrics=rows[i : i + METRICS_PER_BATCH])
        note |= {"offset": start + len(fresh), "steps": steps}
        self._write_note(folder, note)

    def _send_state(self, folder: RunFolder, note: dict[str, Any], state: RunState) -> None:
        if note.get("state") == state.state:
            return
        for key, value in {
            "status.state": state.state,
            "status.reason": state.reason or "",
            "attempt": str(state.attempt),
        }.items():
            self._client.set_tag(note["run_id"], key, value)
        if state.state in STATUS:
            self._client.set_terminated(note["run_id"], STATUS[state.state])
        elif note.get("state") in STATUS:
            self._client.update_run(note["run_id"], "RUNNING")
        self._write_note(folder, note | {"state": state.state})

    def flush(self, folders: Sequence[RunFolder], patience_seconds: float) -> str | None:
        """Deliver everything, trying again until `patience_seconds` are over; a sentence about what is left, or None."""
        deadline = time.monotonic() + patience_seconds
        while True:
            left = [f for f in folders if f.state() is not None and not (self.mirror(f) and self._is_delivered(f))]
            if not left:
                return self._end_sweep(folders)
            if time.monotonic() > deadline:
                return (
                    f"MLflow at {without_password(self.uri)} did not take the logs of {len(left)} runs ({self._error}); "
                    "they are safe in the run folders, the same command delivers them"
                )
            time.sleep(2)

    def _end_sweep(self, folders: Sequence[RunFolder]) -> str | None:
        states = [s.state for f in folders if (s := f.state())]
        ended = "FINISHED" if all(s == FINISHED for s in states) else "FAILED"
        try:
            self._client.set_terminated(self._parent, ended)
        except Exception as error:
            return f"MLflow at {without_password(self.uri)} did not answer ({first_line(error)}); the same command tries again"
        return None

    # ---- fits, reports, forecasts

    def log_folder(self, folder: Path, place: str) -> None:
        """A folder's files onto the sweep's parent run, under the artifact folder `place`."""
        self._client.log_artifacts(self._parent, str(folder), place)

    def log_report(self, fit: dict[str, Any], folder: Path, note: str, metrics: dict[str, float]) -> str:
        """A nested run of kind=fit with the report's files; the parent gets them too, with `note` as its description.

        In `note`, {parent} stands for the parent's run id, so that it can embed the curve.
        """
        from mlflow.entities import Metric

        tags = {
            "kind": "fit",
            "sweep.id": self.sweep,
            "mlflow.parentRunId": self._parent,
            "mlflow.runName": f"fit-{fit.get('law')}",
        }
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        now = int(time.time() * 1000)
        self._client.log_batch(run_id, metrics=[Metric(k, v, now, 0) for k, v in metrics.items() if math.isfinite(v)])
        for target in (run_id, self._parent):
            self._client.log_artifacts(target, str(folder), "report")
        self._client.set_terminated(run_id, "FINISHED")
        text = note.replace("{parent}", self._parent).replace("{experiment}", self._experiment)
        self._client.set_tag(self._parent, "mlflow.note.content", text[:8000])
        self._client.set_experiment_tag(self._experiment, "mlflow.note.content", text[:8000])
        return run_id

    # ---- notes in the run folders

    def _note(self, folder: RunFolder) -> dict[str, Any]:
        try:
            notes = json.loads((folder.path / "mlflow.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        note = notes.get(self._place, {})
        return note if isinstance(note, dict) else {}

    def _write_note(self, folder: RunFolder, note: dict[str, Any]) -> None:
        path = folder.path / "mlflow.json"
        try:
            notes = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            notes = {}
        write_atomic(path, json.dumps(notes | {self._place: note}, sort_keys=True) + "\n")


def without_password(uri: str) -> str:
    """The URI for people: user:password@ becomes user@."""
    scheme, _, rest = uri.partition("://")
    head, at, host = rest.rpartition("@")
    return f"{scheme}://{head.split(':')[0]}{at}{host}" if at else uri


def first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return text[:200] if text else type(error).__name__
