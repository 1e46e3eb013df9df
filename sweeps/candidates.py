"""The runs that a plan still offers, as options for `gopher suggest`: every rung at every token count, with its next seed and its price."""

from collections.abc import Sequence
from dataclasses import replace

from analysis.design import Option
from analysis.options import price
from analysis.rows import Points
from analysis.sizes import TRAINED_TOLERANCE
from gopher.record import FINISHED, RunFolder
from gopher.size import params_non_embedding, params_total, train_flops
from gopher.spec import RunSpec
from sweeps.entries import cost_rows
from sweeps.screen import human
from sweeps.settings import Settings
from sweeps.study import PlannedRun, Study

COUNTS = {"params_total": params_total, "params_non_embedding": params_non_embedding}


def plan_options(study: Study, points: Points, parameters: str) -> list[Option]:
    """One option for each rung and token count of the plan. `parameters` names the count that the fitted law reads."""
    groups: dict[tuple[str, int], list[RunSpec]] = {}
    for spec in study.specs:
        groups.setdefault((spec.rung, spec.train_tokens), []).append(spec)
    options = []
    for (rung, tokens), specs in groups.items():
        done = [p for p in points if p.rung == rung and p.tokens and abs(p.tokens / tokens - 1) < TRAINED_TOLERANCE]
        seed = next_seed([s.seed for s in specs], [p.seed for p in done if p.seed is not None])
        at = f" at {human(tokens)} tokens" if sum(r == rung for r, _ in groups) > 1 else ""
        size = float(COUNTS[parameters](specs[0].model))
        options.append(
            Option(name=f"{rung}{at}, seed {seed}", params=size, tokens=float(tokens), flops=train_flops(specs[0]))
        )
    return options


def next_seed(planned: Sequence[int], done: Sequence[int]) -> int:
    """The first planned seed that was not run, else the next number."""
    return next((s for s in sorted(set(planned)) if s not in done), max([*planned, *done]) + 1)


def in_dollars(options: Sequence[Option], done: Sequence[tuple[float, float]]) -> list[Option]:
    """The options at what the runs done of their FLOPs cost; `done` are (FLOPs, dollars)."""
    return [replace(o, cost=price(o.flops, done)) for o in options if o.flops is not None]


def dollars_spent(runs: Sequence[PlannedRun], settings: Settings) -> list[tuple[float, float]]:
    """(FLOPs, dollars) of every finished run, by its measured seconds and the prices of the cluster; empty without prices."""
    out = []
    for run in runs:
        folder = RunFolder(settings.run_dir(run.spec.key))
        state = folder.state()
        if state is None or state.state != FINISHED or not state.train_seconds:
            continue
        prices = settings.cluster.usd_per_gpu_hour, settings.cluster.usd_per_cpu_hour
        rows = cost_rows(state.train_seconds, state.step, folder.placement(), *prices)
        out += [(train_flops(run.spec), row.value) for row in rows if row.name == "final/usd" and row.value > 0]
    return out
