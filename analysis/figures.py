"""Every picture that a fit's data can fill, in reading order. Each kind is drawn in a module of its own:
`loss_figures` (a ladder), `joint_figures` (parameters and tokens), `fit_figures` (hold-outs, seeds, residuals),
`parameter_figures`, `isoflop_figures`, `run_figures` (subsets, learning rates), `task_figures`, `gain_figures`,
`forecast_figures`."""

from collections.abc import Sequence

from analysis import (
    fit_figures,
    forecast_figures,
    gain_figures,
    isoflop_figures,
    joint_figures,
    loss_figures,
    parameter_figures,
    run_figures,
    task_figures,
)
from analysis.curves import Curve
from analysis.drawing import (
    Figure,
)
from analysis.fit import FitResult
from analysis.forecast import Forecast
from analysis.tasks import TaskScore


def figures(
    result: FitResult,
    curves: Sequence[Curve] = (),
    tasks: Sequence[TaskScore] = (),
    forecasts: Sequence[Forecast] = (),
) -> list[Figure]:
    """All figures that these data support, in reading order; what cannot be drawn is left out, never drawn empty."""
    by_axis = {fit.x: fit for fit in (result, *result.also) if fit.x and fit.estimate}
    drawn: list[Figure | None] = []
    if by_axis:
        drawn += [loss_figures.ladder(fit, curves if axis == "flops" else ()) for axis, fit in by_axis.items()]
    else:
        drawn += [joint_figures.joint(result, axis) for axis in ("params", "tokens")]
        drawn += [joint_figures.compute(result)]
    drawn += [
        loss_figures.over_tokens(result, curves),
        fit_figures.holdouts(result),
        fit_figures.seeds(result),
        fit_figures.residuals(result),
        isoflop_figures.valleys(result),
        isoflop_figures.frontier(result),
        parameter_figures.profiles(result),
        parameter_figures.cloud(result),
        run_figures.subsets(result, curves),
        run_figures.learning_rates(result, curves),
        *task_figures.tasks(tasks),
        gain_figures.relative_gain(tasks),
        forecast_figures.calibration_figure(forecasts),
    ]
    return [figure for figure in drawn if figure is not None]
