"""GPU-hours and money of a sweep, counted from its run folders, and the caps that end its launching."""

from collections.abc import Iterable
from dataclasses import dataclass

from gopher.record import RunFolder
from sweeps.settings import Settings
from sweeps.study import PlannedRun


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Over all attempts of all runs. `usd` is None where a price that it needs is not set."""

    gpu_hours: float
    cpu_hours: float
    usd: float | None


NOTHING = Spent(gpu_hours=0.0, cpu_hours=0.0, usd=None)


def spent(runs: Iterable[PlannedRun], settings: Settings, earlier: Spent = NOTHING) -> Spent:
    """What the runs have used so far, beside what was used `earlier`: seconds inside training, evaluation and checkpoints,
    times GPUs and cores."""
    gpu_hours, cpu_hours = earlier.gpu_hours, earlier.cpu_hours
    for run in runs:
        state = RunFolder(settings.run_dir(run.spec.key)).state()
        hours = state.train_seconds / 3600 if state else 0.0
        place = run.placement
        gpu_hours += hours * place.workers * (place.device == "cuda")
        cpu_hours += hours * place.workers * place.threads_per_worker
    cost = usd(gpu_hours, cpu_hours, settings.cluster.usd_per_gpu_hour, settings.cluster.usd_per_cpu_hour)
    return Spent(gpu_hours=gpu_hours, cpu_hours=cpu_hours, usd=cost)


def usd(gpu_hours: float, cpu_hours: float, per_gpu_hour: float | None, per_cpu_hour: float | None) -> float | None:
    """What the hours cost; None where a price that they need is not set."""
    if per_gpu_hour is None and (per_cpu_hour is None or gpu_hours > 0):
        return None
    return gpu_hours * (per_gpu_hour or 0.0) + cpu_hours * (per_cpu_hour or 0.0)


def reached(used: Spent, settings: Settings) -> str | None:
    """Why nothing more may start, or None."""
    caps = settings.launch
    if caps.max_gpu_hours is not None and used.gpu_hours >= caps.max_gpu_hours:
        return (
            f"{used.gpu_hours:.3g} GPU-hours are spent and launch.max_gpu_hours is {caps.max_gpu_hours:g}; "
            "raise it and launch again"
        )
    if caps.max_usd is not None and used.usd is not None and used.usd >= caps.max_usd:
        return f"${used.usd:.2f} are spent and launch.max_usd is {caps.max_usd:g}; raise it and launch again"
    return None
