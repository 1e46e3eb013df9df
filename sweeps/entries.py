"""What MLflow is told, as plain values: rows of the log, parameters, tags, notes. Nothing here talks to MLflow."""

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.identity import content_hash
from gopher.record import RunState
from gopher.size import FLOPS_CONVENTION, MFU_CONVENTION, params_non_embedding, params_total, train_flops
from gopher.spec import Placement, RunSpec
from sweeps.caps import usd
from sweeps.dashboard import rung_color
from sweeps.redact import hide_secrets
from sweeps.study import run_name

NOTE_CHARACTERS = 8000
ROUND = str.maketrans("[]", "()")
EVENTS_SHOWN = 20  # in a run's description
SCORES = "eval/"  # metrics that evaluations log, at any step and any time
TIMED = ("perf/", "final/train_seconds", "final/worker_hours")  # numbers of the clock: every repeat has others
MISSING_SHOWN = 20  # metrics named in the tag of missing numbers


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
            for k in ("kind", "lr", "warmup_steps", "beta1", "beta2", "clip_norm", "final_lr_fraction")
        },
        "precision.parameters": run.precision.parameters,
        "precision.compute": run.precision.compute,
        "train.tokens": run.train_tokens,
        "train.steps": run.steps,
        "train.batch_tokens": run.batch_tokens(0),
        "train.flops": f"{train_flops(run):.6e}",
        "train.log10_flops": round(math.log10(train_flops(run)), 6),
        "train.flops_convention": FLOPS_CONVENTION,
        "perf.mfu_convention": MFU_CONVENTION,
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
        "mlflow.runName": run_name(run),
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


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number for MLflow."""

    name: str
    step: int
    value: float
    revision: int = 0  # how often another value of this name and step was sent before

    @property
    def after_ms(self) -> int:
        """Its time after the run's start, by which MLflow knows a repeated row and the newest of several."""
        return self.step + self.revision


def cost_rows(
    seconds: float, step: int, place: Placement, usd_per_gpu_hour: float | None, usd_per_cpu_hour: float | None
) -> list[Row]:
    """final/gpu_hours of a run on GPUs, and final/usd where the prices that it needs are set.

    Seconds inside training, evaluation and checkpoints over all attempts, times GPUs and cores, as `sweeps.caps` counts.
    """
    hours = seconds / 3600 * place.workers
    gpu_hours, cpu_hours = hours * (place.device == "cuda"), hours * place.threads_per_worker
    rows = [Row(name="final/gpu_hours", step=step, value=gpu_hours)] if gpu_hours else []
    cost = usd(gpu_hours, cpu_hours, usd_per_gpu_hour, usd_per_cpu_hour)
    return rows if cost is None else [*rows, Row(name="final/usd", step=step, value=cost)]


def event_tags(events: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """`2 rewind, 1 warning` for the run list, and the newest sentences as the run's description."""
    counts = Counter(str(e["kind"]) for e in events)
    lines = [f"- step {e['step']}: {e['kind']}: {e['sentence']}" for e in events[-EVENTS_SHOWN:]]
    return {
        "events": ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())),
        "mlflow.note.content": note_of(hide_secrets("\n".join(lines)), []),
    }


Said = dict[tuple[str, int], tuple[float, int]]  # (name, step) -> last value and how often it has changed


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """What a stretch of log adds: rows to send, last step of each metric afterwards, first step of each missing number."""

    rows: tuple[Row, ...]
    steps: Mapping[str, int]
    missing: Mapping[str, int]


def fresh_rows(
    lines: bytes, steps: Mapping[str, int], missing: Mapping[str, int], before: Callable[[], bytes] = bytes
) -> Fresh:
    """Rows of whole log lines that MLflow has not been sent; null numbers are never sent, only named.

    A repeated step is sent again if its value has changed: after a rewind, or when a task is asked over more items.
    Numbers of the clock keep their first value. `before` reads the log up to here, and is called for repeats alone; a
    step up to `steps` that is nowhere in the log was sent from a log that is lost.
    """
    steps, missing, rows = dict(steps), dict(missing), []
    said: Said = {}
    earlier = cache(lambda: said_in(before()))
    for name, step, value in numbers_in(lines):
        if value is None:
            missing.setdefault(name, step)
            continue
        place, first = (name, step), step > steps.get(name, -1)
        last = said.get(place) or (None if first else earlier().get(place))
        said[place] = changed(last, value)
        revision = said[place][1]
        if last is None and (first or name.startswith(SCORES)):
            rows.append(Row(name=name, step=step, value=value))
        elif last is not None and revision > last[1] and not name.startswith(TIMED):
            rows.append(Row(name=name, step=step, value=value, revision=revision))
        steps[name] = max(step, steps.get(name, -1))
    return Fresh(rows=tuple(rows), steps=steps, missing=missing)


def numbers_in(lines: bytes) -> Iterator[tuple[str, int, float | None]]:
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a power cut can leave one; `RunFolder.metrics` passes it over, too
            continue
        yield from ((name, entry["step"], value) for name, value in entry["metrics"].items())


def said_in(lines: bytes) -> Said:
    said: Said = {}
    for name, step, value in numbers_in(lines):
        if value is not None:
            said[name, step] = changed(said.get((name, step)), value)
    return said


def changed(last: tuple[float, int] | None, value: float) -> tuple[float, int]:
    """Another value is one that another number of workers does not explain: they agree to 1e-5."""
    if last is None:
        return value, 0
    return last if math.isclose(value, last[0], rel_tol=1e-5) else (value, last[1] + 1)


def missing_text(missing: Mapping[str, int]) -> str:
    """`train/loss from step 40, ...` for the tag that says which numbers a run could not give."""
    named = [f"{name} from step {step}" for name, step in sorted(missing.items())]
    more = f" and {len(named) - MISSING_SHOWN} more" if len(named) > MISSING_SHOWN else ""
    return ", ".join(named[:MISSING_SHOWN]) + more


def results_table(points: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of a fit's points for people: one row a rung and learning rate, seeds averaged, smallest first."""
    from analysis.numbers import MISSING, count, power_of_ten

    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for p in sorted(points, key=lambda p: (p.get("params_non_embedding") or 0, p.get("learning_rate") or 0)):
        groups.setdefault((p.get("rung"), p.get("learning_rate")), []).append(p)
    lines = [
        "| rung | params (non-embedding) | tokens | FLOPs | learning rate | seeds | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for (rung, rate), same in groups.items():
        losses = [p["loss"] for p in same]
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        size = [
            count(same[0].get("params_non_embedding")),
            count(same[0].get("tokens")),
            power_of_ten(same[0].get("flops")),
        ]
        told_rate = MISSING if rate is None else f"{rate:g}"
        cells = [rung or MISSING, *size, told_rate, str(len(same)), f"{statistics.fmean(losses):.4f}{spread}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def note_of(text: str, points: Sequence[Mapping[str, Any]]) -> str:
    """The note with its results table, whole lines only: MLflow cuts a run's note without a word at 8,000 characters.

    A picture's text gets round brackets: the page ends it at the first square one and shows no picture.
    """
    text = re.sub(r"!\[(.*)\]\(", lambda m: f"![{m[1].translate(ROUND)}](", text)
    whole = f"{text}\n\n{results_table(points)}" if points else text
    if len(whole) <= NOTE_CHARACTERS:
        return whole
    return whole[: whole.rfind("\n", 0, NOTE_CHARACTERS - 2)] + "\n…"


def standing(state: RunState) -> list[Any]:
    """What of a run's state MLflow shows: sent again when one of them changes."""
    return [state.state, state.attempt, state.reason]


def unread(log: Path, offset: int) -> tuple[int, bytes]:
    """Whole lines of the log after `offset`, and where they begin; a line that is half written belongs to next time.

    A log that has no line ending at `offset` lost its tail with the machine and was written anew: all of it is unread.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                offset = 0
            file.seek(offset)
            rest = file.read()
    except FileNotFoundError:
        return offset, b""
    return offset, rest[: rest.rfind(b"\n") + 1]


# ---- addresses and errors, as people may see them


def check_uri(uri: str) -> str:
    """A tracking URI that MLflow can use. File stores are refused: MLflow has ended their support."""
    if uri.startswith("file:") or "://" not in uri:
        raise UsageError(
            f"tracking.uri is {uri}, a file store, which MLflow no longer supports; leave it unset for sqlite, or name a server"
        )
    return uri


def told(error: BaseException) -> str:
    """The first line of an error for people, cut, without secrets."""
    text = hide_secrets(str(error).strip().split("\n")[0])
    return text[:200] if text else type(error).__name__
