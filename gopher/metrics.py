"""What a run logs beside its losses: what was spent, and how well the devices were used."""

import math

import torch

from gopher.size import mfu, mfu_palm, params_non_embedding, peak_flops, train_flops
from gopher.spec import Placement, RunSpec


def budget(run: RunSpec, step: int, prefix: str) -> dict[str, float | None]:
    """Tokens and FLOPs spent after `step` steps, the abscissas of every curve."""
    tokens, flops = run.tokens_before(step), train_flops(run, step)
    spent: dict[str, float | None] = {f"{prefix}/tokens": float(tokens)}
    if prefix != "train":
        spent[f"{prefix}/flops"] = flops
    return spent | ({f"{prefix}/log10_flops": math.log10(flops)} if step else {})


def final_metrics(
    run: RunSpec, metrics: dict[str, float | None], train_seconds: float, world: int
) -> dict[str, float | None]:
    """final/*: the last evaluation and what the run cost."""
    last = {name.replace("val/", "final/val_"): value for name, value in metrics.items()}
    cost = {"final/train_seconds": train_seconds, "final/worker_hours": train_seconds * world / 3600}
    cost["final/log10_params_nonemb"] = math.log10(params_non_embedding(run.model))
    return last | budget(run, run.steps, "final") | cost


def utilised(run: RunSpec, placement: Placement, world: int, speed: dict[str, float | None]) -> dict[str, float | None]:
    """`speed` with perf/mfu and perf/mfu_palm beside it, on devices whose peak is known."""
    peak = peak_flops(torch.cuda.get_device_name()) if placement.device == "cuda" else None
    tokens_per_second = speed["perf/tokens_per_s"]
    if peak is None or tokens_per_second is None:
        return speed
    of_peak = {"perf/mfu": mfu, "perf/mfu_palm": mfu_palm}
    return speed | {name: f(run.model, tokens_per_second, peak * world) for name, f in of_peak.items()}
