"""`gopher suggest`: candidate runs ranked by how much they narrow the target's prediction per unit of cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gopher.errors import UsageError
from sweeps.settings import settings_of
from sweeps.study import ComposeFn
from sweeps.verbs.fit import fit_request
from sweeps.verbs.forecast import target_of


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    from analysis.command import run_fit
    from analysis.design import suggest
    from sweeps.screen import console

    tree = compose(overrides).tree
    settings = settings_of(tree)
    request = fit_request(tree, settings)
    result = run_fit(request)
    target = target_of(compose, overrides, tree)
    sizes = {"params": getattr(target, result.parameters), "tokens": target.tokens, "flops": target.flops}
    goal = {name: size for name, size in sizes.items() if size is not None}
    if not goal:
        raise UsageError(
            f"the target has no size that the law reads; give target.{result.parameters}, target.tokens or target.flops"
        )
    advice = suggest(result, goal, budget=None if tree["budget"] is None else float(tree["budget"]))
    if settings.format == "json":
        print(json.dumps(asdict(advice), indent=2, sort_keys=True))
    else:
        for renderable in advice_tables(advice):
            console().print(renderable)
    return 0


def advice_tables(advice: Any) -> list[Any]:
    """The ranking of single runs, the best sequence, and what to keep in mind."""
    from sweeps.screen import human, table

    def row(s: Any) -> list[str]:
        after = "-" if s.sd_after is None else f"{s.sd_after:.3f} %"
        size = [human(s.option.params), human(s.option.tokens), f"{s.cost:.2e}", str(s.runs_there)]
        return [s.option.name, *size, f"{100 * s.drop:.1f} %", after, f"{s.drop_per_cost:.3f}"]

    columns = ["run", "params", "tokens", "cost", "runs there", "variance drop", "sd after", "drop per cost (best = 1)"]
    now = next((s.sd_now for s in advice.ranking if s.sd_now is not None), None)
    title = f"{advice.law}: standard deviation at the target now {'unknown' if now is None else f'{now:.3f} %'}"
    return [
        table(title, columns, [row(s) for s in advice.ranking[:12]]),
        table("one after another", columns, [row(s) for s in advice.sequence]),
        *advice.notes,
    ]
