"""`gopher plan`: every run of a sweep before anything starts."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from gopher.size import FLOPS_CONVENTION
from sweeps.screen import console, plan_table
from sweeps.settings import settings_of
from sweeps.status import plan_rows
from sweeps.study import ComposeFn, load_study

STATE = "parameters, gradients and moments that one worker holds, activations apart"


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    settings = settings_of(compose(overrides).tree)
    study = load_study(compose, overrides)
    rows = plan_rows(study, settings)
    totals = {
        "runs": len(rows),
        "tokens": sum(r.tokens for r in rows),
        "train_flops": sum(r.train_flops for r in rows),
        "finished": sum(r.state == "finished" for r in rows),
    }
    if settings.format == "json":
        runs = [{**asdict(r), "flops_convention": FLOPS_CONVENTION} for r in rows]
        print(json.dumps({"sweep": study.name, "runs": runs, "totals": totals}, indent=2))
    else:
        console().print(plan_table(study.name, rows, totals["train_flops"]))
        console().print(f"FLOPs: {FLOPS_CONVENTION}; 6 N D: N all parameters; GB each: {STATE}", style="dim")
    return 0
