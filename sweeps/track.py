"""The one writer of MLflow: mirrors run folders, never the other way round.

Workers append to `metrics.jsonl`; the driver reads on from where it was and sends batches. How far it got is kept in
`<run>/mlflow.json`, so a restarted driver goes on. No step is ever counted twice:

- timestamps are the MLflow run's start plus the step (plus one for every earlier value of that step that was another),
  and MLflow stores an equal (metric, step, timestamp, value) once, so a batch whose answer was lost can be sent again;
- when mlflow.json was lost, the MLflow run is found by its tag `trial.id` and goes on after the last step it has;
- a step that training repeats after a restart is the same to the last bit on as many workers and to 1e-5 on another
  number of them, and is not sent again. What differs, after a rewind or in a task asked over more items, is sent with
  a later time: MLflow shows the newest, and readers take it.

Nothing here stops a training: an unreachable server means a backlog, delivered later.
"""

import json
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gopher.errors import GopherError, SetupError, UsageError
from gopher.identity import content_hash
from gopher.record import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, RunFolder, RunState
from gopher.spec import RunSpec
from sweeps.dashboard import view_tags
from sweeps.entries import (
    check_uri,
    cost_rows,
    data_params,
    event_tags,
    fresh_rows,
    missing_text,
    note_of,
    run_params,
    run_tags,
    standing,
    told,
    unread,
)
from sweeps.mlflow_client import Logged, import_mlflow, logged_runs, no_answer
from sweeps.notes import Note, Notes
from sweeps.redact import hide_secrets
from sweeps.settings import Settings

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
BACK_OFF_SECONDS = 10.0  # how long a server that did not answer is left alone
CONFIG_FILE = "config/sweep.yaml"
FLUSH_SECONDS = 2.0  # between two attempts at the end of a launch
LIVE = {QUEUED: "SCHEDULED", RUNNING: "RUNNING"}
ENDED = {FINISHED: "FINISHED", FAILED: "FAILED", STOPPED: "KILLED"}


class Tracker:
    """Writes one sweep: its experiment, its parent run, one nested run per training run, its fits."""

    def __init__(
        self,
        uri: str,
        sweep: str,
        artifact_root: Path,
        rungs: Sequence[str],
        usd_per_gpu_hour: float | None = None,
        usd_per_cpu_hour: float | None = None,
    ) -> None:
        self.uri, self.sweep, self.rungs = check_uri(uri), sweep, tuple(rungs)
        self._artifact_root = artifact_root
        self._prices = usd_per_gpu_hour, usd_per_cpu_hour
        self._notes = Notes(uri, sweep)
        self._client: Any = None
        self._experiment = self._parent = ""
        self._error: str | None = None
        self._known: dict[str, Logged] = {}  # run key -> what MLflow had of it when it was last asked
        self._asked_for: set[str] = set()  # keys of runs that were to be made
        self._quiet_until = 0.0
        self._turn = threading.Lock()  # the mirror's thread and the end of a launch never write at once

    def delivered(self, folders: Iterable[RunFolder]) -> bool:
        """Whether every run's log and end are in MLflow already, by the folders' own notes (MLflow is not asked)."""
        database = self.uri.removeprefix("sqlite:///") if self.uri.startswith("sqlite:///") else None
        return (database is None or Path(database).is_file()) and all(self._is_delivered(f) for f in folders)

    def _is_delivered(self, folder: RunFolder) -> bool:
        note, state = self._note(folder), folder.state()
        if not note or state is None or note.get("state") != standing(state):
            return False
        told_all = note.get("events", 0) == len(folder.events())
        return told_all and not unread(folder.path / "metrics.jsonl", note["offset"])[1]

    def open_sweep(self, config: str = "") -> None:
        """Experiment and parent run, made if missing; `config` is that of a launch. Raises `SetupError` when MLflow can't be reached."""
        from analysis.points import reach  # brings pandas, which a launch loads while Ray and the text are on their way

        mlflow = import_mlflow()
        own_files = not self.uri.startswith(("http://", "https://"))  # a database has no place for artifacts
        with self._telling("start it, mend tracking.uri, or leave tracking.uri unset for sqlite"):
            reach(self.uri)
            self._client = mlflow.MlflowClient(self.uri)
            found = self._client.get_experiment_by_name(self.sweep)
            if found is not None and found.lifecycle_stage == "deleted":
                raise UsageError(
                    f"the MLflow experiment '{self.sweep}' is in the trash; restore it, or give the sweep another name with name=..."
                )
            location = self._artifact_root.as_uri() if own_files else None
            self._experiment = (
                found.experiment_id if found else self._client.create_experiment(self.sweep, artifact_location=location)
            )
            self._parent = self._find_parent() or self._make_parent()
            if config:
                self._client.update_run(self._parent, status="RUNNING")
                self._keep_config(config)
            # whatever the folders' notes say: notes get lost, databases are started anew
            self._known = logged_runs(self._client, self._experiment)
            for key, value in {"mlflow.experimentKind": "custom_model_development", "sweep.id": self.sweep}.items():
                self._client.set_experiment_tag(self._experiment, key, value)

    @contextmanager
    def _telling(self, cure: str) -> Iterator[None]:
        """Whatever MLflow throws, said in one sentence with the cure."""
        try:
            yield
        except GopherError:
            raise
        except ImportError as error:
            raise SetupError(
                f"tracking.uri is {hide_secrets(self.uri)} but its database driver is missing ({error}); "
                "for Postgres write postgresql+psycopg:// and pip install 'psycopg[binary]'"
            ) from None
        except Exception as error:
            raise SetupError(
                f"MLflow at {hide_secrets(self.uri)} could not be reached ({told(error)}); {cure}"
            ) from None

    def _find_parent(self) -> str | None:
        found = self._client.search_runs([self._experiment], "tags.kind = 'sweep'", max_results=1)
        return found[0].info.run_id if found else None

    def _make_parent(self) -> str:
        tags = {"kind": "sweep", "sweep.id": self.sweep, "mlflow.runName": self.sweep}
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        return run_id

    def _keep_config(self, config: str) -> None:
        """The config of the sweep's first launch as an artifact; the launch that made the parent may have ended before."""
        if not self._client.list_artifacts(self._parent, "config"):
            self._client.log_text(self._parent, config, CONFIG_FILE)

    def write_views(self, subsets: Sequence[str]) -> None:
        """The saved dashboards; a failure here is never a failure of the sweep."""
        try:
            for key, value in view_tags(subsets, int(time.time() * 1000)).items():
                self._client.set_experiment_tag(self._experiment, key, value)
        except Exception as error:
            self._error = told(error)

    def mirror(self, folder: RunFolder) -> bool:
        """Send what is new in a run folder. False, with the backlog kept, when MLflow does not take it."""
        with self._turn:
            if time.monotonic() < self._quiet_until:
                return False
            try:
                self._mirror(folder)
            except Exception as error:  # whatever the store or the network throws, training must go on
                self._error = told(error)
                if no_answer(error):  # else every run would wait for the same silent server
                    self._quiet_until = time.monotonic() + BACK_OFF_SECONDS
                return False
            return True

    def _mirror(self, folder: RunFolder) -> None:
        state = folder.state()
        if state is None or self._is_delivered(folder):
            return
        note = self._note(folder) or self._begin(folder)
        if "data" not in note:
            self._log_data_params(folder, note)
        self._send_metrics(folder, note)
        self._send_events(folder, note)
        if note.get("state") != standing(state):
            self._send_state(folder, note, state)

    def _note(self, folder: RunFolder) -> Note:
        """The folder's note, empty where it speaks of a run that MLflow no longer has: deleted, or in an earlier database."""
        note, logged = self._notes.read(folder), self._known.get(folder.path.name)
        return {} if self._client and (logged is None or logged.run_id != note.get("run_id")) else note

    def _begin(self, folder: RunFolder) -> Note:
        """The note of a run of which nothing was sent, its MLflow run made if missing, with params, config and code."""
        spec, provenance = folder.spec(), folder.provenance()
        if spec.key in self._asked_for:  # it may have been made although the answer was lost
            self._known |= logged_runs(self._client, self._experiment)
        self._asked_for.add(spec.key)
        logged = self._known.get(spec.key) or self._make_run(spec, provenance)
        self._known[spec.key] = logged
        self._log_params(logged.run_id, {k: v for k, v in run_params(spec).items() if k not in logged.params})
        self._client.log_text(logged.run_id, json.dumps(provenance.get("config"), indent=2), "config/resolved.json")
        if (diff := folder.path / "code.diff").exists():
            self._client.log_text(logged.run_id, diff.read_text("utf-8"), "config/uncommitted.diff")
        note: Note = {"run_id": logged.run_id, "start_ms": logged.start_ms, "offset": 0}
        note |= {"steps": dict(logged.steps), "missing": {}}
        self._notes.write(folder, note)
        return note

    def _make_run(self, spec: RunSpec, provenance: dict[str, Any]) -> Logged:
        tags = run_tags(spec, self.sweep, self._parent, self.rungs, provenance)
        info = self._client.create_run(self._experiment, start_time=int(time.time() * 1000), tags=tags).info
        return Logged(run_id=info.run_id, start_ms=info.start_time, params=frozenset(), steps={})

    def _log_params(self, run_id: str, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(k, str(v)) for k, v in params.items()]
        for i in range(0, len(rows), PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=rows[i : i + PARAMS_PER_BATCH])

    def _log_data_params(self, folder: RunFolder, note: Note) -> None:
        """Hashes and sizes of the text, once the shards exist."""
        manifest_file = Path(folder.placement().data_dir) / "manifest.json"
        if not manifest_file.is_file():
            return
        manifest = json.loads(manifest_file.read_text("utf-8"))
        self._log_params(note["run_id"], data_params(folder.spec(), manifest))
        hashes = {"data.sha256": manifest["sha256"], "tokenizer.sha256": manifest["tokenizer"]["sha256"]}
        self._set_tags(note["run_id"], hashes)
        note["data"] = manifest["sha256"]
        self._notes.write(folder, note)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])

    def _send_metrics(self, folder: RunFolder, note: Note) -> None:
        """New whole lines of the log, in batches. The note moves on only when all of them were taken."""
        from mlflow.entities import Metric

        log = folder.path / "metrics.jsonl"
        offset, lines = unread(log, note["offset"])
        if not lines:
            return
        fresh = fresh_rows(lines, note["steps"], note["missing"], lambda: log.read_bytes()[:offset])
        rows = [Metric(r.name, r.value, note["start_ms"] + r.after_ms, r.step) for r in fresh.rows]
        for i in range(0, len(rows), METRICS_PER_BATCH):
            self._client.log_batch(note["run_id"], metrics=rows[i : i + METRICS_PER_BATCH])
        if fresh.missing != note["missing"]:
            self._set_tags(note["run_id"], {"metrics.missing": missing_text(fresh.missing)})
        note |= {"offset": offset + len(lines), "steps": fresh.steps, "missing": fresh.missing}
        self._notes.write(folder, note)

    def _send_events(self, folder: RunFolder, note: Note) -> None:
        """Rewinds, skipped batches and warnings: a tag and the run's description."""
        events = folder.events()
        if len(events) != note.get("events", 0):
            self._set_tags(note["run_id"], event_tags(events))
            note["events"] = len(events)
            self._notes.write(folder, note)

    def _send_cost(self, folder: RunFolder, note: Note, state: RunState) -> None:
        """What a finished run used, priced: after its end only, so that the numbers never change."""
        from mlflow.entities import Metric

        rows = cost_rows(state.train_seconds, state.step, folder.placement(), *self._prices)
        metrics = [
            Metric(r.name, r.value, note["start_ms"] + r.step, r.step) for r in rows if r.name not in note["steps"]
        ]
        if metrics:
            self._client.log_batch(note["run_id"], metrics=metrics)

    def _send_state(self, folder: RunFolder, note: Note, state: RunState) -> None:
        tags = {"status.state": state.state, "status.reason": state.reason or "", "attempt": str(state.attempt)}
        self._set_tags(note["run_id"], tags)
        if state.state == FINISHED:
            self._send_cost(folder, note, state)
        if state.state in ENDED:  # a backlog may come long after the end, or the end before MLflow knew of the run
            end_ms = max(note["start_ms"], int(state.updated_at * 1000))
            self._client.set_terminated(note["run_id"], ENDED[state.state], end_ms)
        else:
            self._client.update_run(note["run_id"], LIVE[state.state])
        note["state"] = standing(state)
        self._notes.write(folder, note)

    def flush(self, folders: Sequence[RunFolder], patience_seconds: float) -> str | None:
        """Deliver everything, trying again until `patience_seconds` are over; a sentence about what is left, or None."""
        deadline = time.monotonic() + patience_seconds
        while True:
            self._quiet_until = 0.0
            left = [f for f in folders if f.state() is not None and not (self.mirror(f) and self._is_delivered(f))]
            if not left:
                return self._end_sweep(folders)
            if time.monotonic() > deadline:
                return (
                    f"MLflow at {hide_secrets(self.uri)} did not take the logs of {len(left)} runs ({self._error}); "
                    "they are safe in the run folders, the same command delivers them"
                )
            time.sleep(FLUSH_SECONDS)

    def _end_sweep(self, folders: Sequence[RunFolder]) -> str | None:
        states = [s.state for f in folders if (s := f.state())]
        ended = "FINISHED" if all(s == FINISHED for s in states) else "FAILED"
        try:
            self._client.set_terminated(self._parent, ended)
        except Exception as error:
            return f"MLflow at {hide_secrets(self.uri)} did not answer ({told(error)}); the same command tries again"
        return None

    # ---- scores, fits, reports, forecasts

    def log_scores(self, folder: RunFolder, table: Mapping[str, Any]) -> None:
        """A run's table of task scores as an artifact, once its metrics have been delivered."""
        run_id = (self._note(folder) or self._begin(folder))["run_id"]
        with self._telling("the scores are in the run's folder, the same command logs them"):
            self._client.log_dict(run_id, dict(table), f"eval/scores-{table['version']}.json")
            families = {
                f"eval.family.{line['task']}": line["family"] for line in table["results"] if line.get("family")
            }
            self._set_tags(run_id, {"eval.scores": str(table["version"])} | families)

    def log_recorded(self, folder: RunFolder, tasks: Iterable[str]) -> None:
        """The table of the scores that a launch left in the run's record."""
        records = [record for task in tasks if (record := folder.scores(task))]
        if records:
            spec = folder.spec()
            who = {"run": spec.key, "rung": spec.rung, "seed": spec.seed}
            lines = [{**who, "step": r["step"], **line} for r in records for line in r["results"]]
            version = version_of(key for r in records for key in r["bundles"])
            self.log_scores(folder, {"version": version, "results": lines})

    def log_folder(self, folder: Path, place: str) -> None:
        """A folder's files onto the sweep's parent run, under the artifact folder `place`."""
        if folder.is_dir():
            with self._telling(f"the files are in {folder}, the same command logs them"):
                self._client.log_artifacts(self._parent, str(folder), place)

    def log_report(self, fit: dict[str, Any], folder: Path, note: str, metrics: dict[str, float]) -> str:
        """A nested run of kind=fit with the report's files; the parent gets them too, with `note` as its description.

        In `note`, {parent} and {experiment} stand for their ids, so that it can embed the curve; a results table is added.
        """
        text = note.replace("{parent}", self._parent).replace("{experiment}", self._experiment)
        text = note_of(text, fit.get("points", []))
        with self._telling(f"the report is in {folder}, the same command logs it"):
            run_id = self._make_fit_run(f"fit-{fit.get('law')}", metrics)
            for target in (run_id, self._parent):
                self._client.log_artifacts(target, str(folder), "report")
            self._client.set_terminated(run_id, "FINISHED")
            self._client.set_tag(self._parent, "mlflow.note.content", text)
            self._client.set_experiment_tag(self._experiment, "mlflow.note.content", text)
        return run_id

    def _make_fit_run(self, name: str, metrics: Mapping[str, float]) -> str:
        from mlflow.entities import Metric

        tags = {"kind": "fit", "sweep.id": self.sweep, "mlflow.parentRunId": self._parent, "mlflow.runName": name}
        run_id: str = self._client.create_run(self._experiment, tags=tags).info.run_id
        now = int(time.time() * 1000)
        self._client.log_batch(run_id, metrics=[Metric(k, v, now, 0) for k, v in metrics.items() if math.isfinite(v)])
        return run_id


def tracker_of(settings: Settings, rungs: Sequence[str]) -> Tracker:
    """The writer of the sweep that `settings` name."""
    prices = settings.cluster.usd_per_gpu_hour, settings.cluster.usd_per_cpu_hour
    return Tracker(settings.tracking_uri, settings.name, settings.root / "mlartifacts", rungs, *prices)


def opened_tracker(settings: Settings, rungs: Sequence[str]) -> Tracker:
    """The same for a verb that adds to a sweep which was launched."""
    tracker = tracker_of(settings, rungs)
    tracker.open_sweep()
    return tracker


def version_of(bundles: Iterable[str]) -> str:
    """Which prompts and documents a table of scores is about, by the keys of their bundles."""
    return content_hash(sorted(set(bundles)))[:12]
