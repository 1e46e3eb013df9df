"""`gopher suggest`: candidate runs ranked by how much they narrow the target's prediction per unit of cost."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gopher.errors import UsageError
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, load_study
from sweeps.verbs.fit import fit_request
from sweeps.verbs.forecast import target_of


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    from analysis.command import run_fit
    from analysis.design import suggest
    from analysis.target import completed
    from sweeps.screen import console

    tree = compose(overrides).tree
    settings = settings_of(tree)
    budget = budget_of(tree["budget"])
    target = target_of(compose, overrides, tree)
    result = run_fit(fit_request(tree, settings))
    target = completed(target, result.points)
    sizes = {"params": getattr(target, result.parameters), "tokens": target.tokens, "flops": target.flops}
    sizes["unique_tokens"] = target.tokens
    goal = {name: size for name, size in sizes.items() if size is not None}
    options, unit = options_of(compose, overrides, tree, settings, result, goal)
    advice = suggest(result, goal, options, budget=budget, unit=unit)
    if settings.format == "json":
        print(json.dumps(asdict(advice), indent=2, sort_keys=True))
    else:
        for renderable in advice_tables(advice):
            console().print(renderable)
        if tree["points"] is not None and tree["options"] is None:
            console().print(
                "these are seeds and sizes around the runs done; options=FILE.csv ranks runs of your own", style="dim"
            )
    return 0


def budget_of(value: Any) -> float | None:
    try:
        budget = None if value is None else float(value)
    except (TypeError, ValueError):
        budget = math.nan
    if budget is not None and not budget > 0:
        raise UsageError(f"budget is {value!r}; give what may be spent, a number above 0 in the unit of the costs")
    return budget


def options_of(
    compose: ComposeFn,
    overrides: Sequence[str],
    tree: dict[str, Any],
    settings: Settings,
    result: Any,
    goal: dict[str, float],
) -> tuple[list[Any], str | None]:
    """(the runs to rank, the unit of their costs): those of a file, of the plan, or around the runs of a table."""
    from analysis.options import default_options, options_from_file, priced

    if tree["options"] is not None:
        return options_from_file(str(tree["options"]), result, tree["columns"]), None
    if tree["points"] is not None:
        return default_options(result, goal), None
    from sweeps.candidates import dollars_spent, in_dollars, plan_options

    study = load_study(compose, overrides)
    options = plan_options(study, result.points, result.parameters)
    if done := dollars_spent(study.runs, settings):
        return in_dollars(options, done), "USD"
    options = priced(options, result)  # what the runs' own records in MLflow say they cost
    return options, "USD" if options[0].cost is not None else "FLOPs"


def advice_tables(advice: Any) -> list[Any]:
    """The ranking of single runs, the best sequence, and what to keep in mind."""
    from sweeps.screen import Table, human

    def row(s: Any) -> list[str]:
        after = "-" if s.sd_after is None else f"{s.sd_after:.3f} %"
        cost = f"{s.cost:.2e}" if advice.unit == "FLOPs" else f"{s.cost:.3g}"
        size = [human(s.option.params), human(s.option.tokens), cost, str(s.runs_there)]
        return [s.option.name, *size, f"{100 * s.drop:.1f} %", after, f"{s.drop_per_cost:.3f}"]

    cost = advice.unit if advice.unit == "cost" else f"cost, {advice.unit}"
    columns = ["run", "params", "tokens", cost, "runs there", "variance drop", "sd after", "drop per cost (best = 1)"]
    now = next((s.sd_now for s in advice.ranking if s.sd_now is not None), None)
    title = f"{advice.law}: standard deviation at the target now {'unknown' if now is None else f'{now:.3f} %'}"
    return [
        Table(title, columns, [row(s) for s in advice.ranking[:12]]),
        Table("one after another", columns, [row(s) for s in advice.sequence]),
        *advice.notes,
    ]
