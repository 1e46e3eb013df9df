"""The record of past forecasts in one picture."""

from collections.abc import Sequence

from analysis.drawing import LAW, MUTED, PREDICTED, Figure, Table, finish, label, padded, sheet, value_axis
from analysis.forecast import LEVELS, Forecast, calibration
from analysis.numbers import MISSING, fixed, listed, number, percent, plural, rung_name, with_interval

THICKNESS = {"50": 7.0, "80": 4.5, "95": 2.0}
MOST = 24  # forecasts in the picture, newest; the table has all


def calibration_figure(forecasts: Sequence[Forecast]) -> Figure | None:
    """Intervals of every forecast around its mean, and what came out."""
    if not forecasts:
        return None
    shown = list(forecasts)[-MOST:]
    title = "Forecasts and what came out"
    relative = [
        100 * (end / f.mean - 1)
        for f in shown
        for end in (*f.intervals["95"], f.outcome.actual if f.outcome else f.mean)
    ]
    with sheet(title, height=105 + 30 * len(shown)) as (page, ax):
        value_axis(ax.xaxis, *padded([*relative, 0.0], 0.08, log=False), "against the forecast, %", most=6)
        ax.axvline(0, color=MUTED, lw=1)
        for i, f in enumerate(shown):
            for level in ("95", "80", "50"):
                ends = [100 * (end / f.mean - 1) for end in f.intervals[level]]
                ax.plot(ends, [i, i], color=PREDICTED, lw=THICKNESS[level], alpha=0.55, solid_capstyle="butt", zorder=2)
            if f.outcome:
                ax.plot(
                    [100 * (f.outcome.actual / f.mean - 1)], [i], "o", color=LAW, ms=6.5, mec="white", mew=0.8, zorder=4
                )
            else:
                label(ax, 0, i, "not run yet", dy=10, ha="center", color=MUTED, fontsize=11.5)
        ax.set(ylim=(len(shown) - 0.4, -0.7))
        ax.set_yticks(range(len(shown)), [name(f) for f in shown])
        ax.grid(False, axis="y")
    rows = tuple(row(f) for f in forecasts)
    header = ("target", "frozen", "forecast [95 %]", "measured", "error", "inside 50 / 80 / 95 %")
    caption = "Bars: 50, 80 and 95 % intervals, thick to thin; dots: measured. " + record(forecasts)
    alt = f"{plural(len(forecasts), 'forecast')}. {record(forecasts)} " + "; ".join(
        f"{r[0]}: forecast {r[2]}, measured {r[3]}" for r in rows[:8]
    )
    return finish(page, "forecasts", title, alt + ".", caption, Table(header=header, rows=rows))


def name(f: Forecast) -> str:
    return (rung_name(f.target.rung) if f.target.rung else f.id[:6]) + (" (backtest)" if f.is_backtest else "")


def row(f: Forecast) -> tuple[str, ...]:
    o = f.outcome
    held = " / ".join("yes" if o.inside[str(level)] else "NO" for level in LEVELS) if o else MISSING
    measured = number(o.actual) if o else "not run yet"
    return (
        name(f),
        f.created_at[:16].replace("T", " "),
        with_interval(f.mean, *f.intervals["95"]),
        measured,
        percent(o.error_percent, True) if o else MISSING,
        held,
    )


def record(forecasts: Sequence[Forecast]) -> str:
    """Coverage so far in a sentence."""
    c = calibration(forecasts)
    if not c.scored:
        return f"No forecast that is known to have come before its run has been scored yet ({plural(c.pending, 'forecast')} open, {plural(c.backtests, 'backtest')})."
    parts = listed([f"{c.inside[str(level)]} inside {level} %" for level in LEVELS])
    low, high = (fixed(100 * share, 0) for share in c.coverage95["95"])
    return (
        f"Of {plural(c.scored, 'scored forecast')}: {parts}. So far the 95 % interval may hold anything from {low} % to {high} % of outcomes; "
        f"mean error {percent(c.mean_error_percent, True)}, mean size of the error {percent(c.mean_abs_error_percent)}."
    )
