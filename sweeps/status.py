"""Where every run of a sweep stands, read from the run folders alone."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from gopher.record import FINISHED, RUNNING, RunFolder, RunState
from gopher.size import params_non_embedding, params_total, train_bytes, train_flops, train_flops_6n
from gopher.spec import RunSpec
from sweeps.settings import Settings
from sweeps.study import Study

NEW, INTERRUPTED = "new", "interrupted"


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One line of `gopher status`. `val_loss` in nats per token; None until the first evaluation."""

    key: str
    rung: str
    seed: int
    lr: float
    state: str  # new | queued | running | interrupted | finished | failed | stopped
    step: int
    steps: int
    tokens: int
    val_loss: float | None
    train_loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None
    reason: str | None


def run_rows(specs: Iterable[RunSpec], settings: Settings) -> list[RunRow]:
    return [run_row(spec, RunFolder(settings.run_dir(spec.key))) for spec in specs]


def run_row(spec: RunSpec, folder: RunFolder) -> RunRow:
    state = folder.state() or RunState(state=NEW)
    name = INTERRUPTED if state.state == RUNNING and not folder.is_held() else state.state
    rate = state.tokens_per_second
    left = spec.train_tokens - spec.tokens_before(state.step)
    return RunRow(
        key=spec.key,
        rung=spec.rung,
        seed=spec.seed,
        lr=spec.optim.lr,
        state=name,
        step=state.step,
        steps=spec.steps,
        tokens=spec.tokens_before(state.step),
        val_loss=state.val_loss,
        train_loss=state.train_loss,
        tokens_per_second=rate,
        eta_seconds=left / rate if rate and name == RUNNING else None,
        reason=state.reason,
    )


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """One line of `gopher plan`; FLOPs under `gopher.size.FLOPS_CONVENTION`, and as 6 N D with all parameters."""

    key: str
    rung: str
    seed: int
    lr: float
    params_total: int
    params_non_embedding: int
    tokens: int
    steps: int
    batch_tokens: int
    train_flops: float
    train_flops_6n: float
    workers: int
    worker_bytes: dict[str, float]  # of one worker: parameters, gradients and moments, activations apart
    state: str


def plan_rows(study: Study, settings: Settings) -> list[PlanRow]:
    rows = []
    for run, row in zip(study.runs, run_rows(study.specs, settings), strict=True):
        spec, workers, together = run.spec, run.placement.workers, run.placement.tensor_parallel
        rows.append(
            PlanRow(
                key=spec.key,
                rung=spec.rung,
                seed=spec.seed,
                lr=spec.optim.lr,
                params_total=params_total(spec.model),
                params_non_embedding=params_non_embedding(spec.model),
                tokens=spec.train_tokens,
                steps=spec.steps,
                batch_tokens=spec.batch_tokens(0),
                train_flops=train_flops(spec),
                train_flops_6n=train_flops_6n(spec),
                workers=workers,
                worker_bytes=asdict(train_bytes(spec, workers, together)),
                state=row.state,
            )
        )
    return rows


def counts(rows: list[RunRow]) -> dict[str, int]:
    """state -> number of runs, finished first."""
    out: dict[str, int] = {FINISHED: 0}
    for row in rows:
        out[row.state] = out.get(row.state, 0) + 1
    return out
