"""The sections of a report as HTML: findings, the fit, what else could have been chosen, runs, provenance."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.drawing import Figure, Table
from analysis.findings import Finding, sentence
from analysis.numbers import MISSING, count, decimals_for, interval, number, percent, power_of_ten, rung_name
from analysis.page import escape, figure, folded, table
from analysis.result import FitResult, versions
from analysis.rows import Points
from analysis.words import MEANINGS, axis_words, convention, equation, html_power, law_words, plain_power, symbol

SIGNS = {"warning": ("▲", "Warning"), "good": ("✓", "Good"), "note": ("•", "Note")}


def typeset(result: FitResult, text: str) -> str:
    """The text as HTML with the law's formula set with real superscripts."""
    plain, rich = (equation(result.law, result.params, result.x, power) for power in (plain_power, html_power))
    shown = escape(text)
    return shown.replace(escape(plain), rich, 1) if plain and rich else shown


def finding_list(found: Sequence[Finding]) -> str:
    items = []
    for f in found:
        sign, word = SIGNS[f.level]
        more = "<ul>" + "".join(f"<li>{escape(d)}</li>" for d in f.details) + "</ul>" if f.details else ""
        items.append(f'<li class="{f.level}"><b aria-label="{word}">{sign}</b>{escape(f.text)}{more}</li>')
    return '<ul class="findings">\n' + "\n".join(items) + "\n</ul>"


def figure_list(drawn: Sequence[Figure]) -> str:
    return "\n".join(figure(item, i, stands_open=i <= 2) for i, item in enumerate(drawn, 1))


# ------------------------------------------------------------------------------------------------ the fit


def fit_part(fit: FitResult) -> str:
    """Formula, parameters with intervals, and the evidence that the minimum is the minimum."""
    against = f" against {axis_words(fit.x, fit.parameters)}" if fit.x else ""
    formula = equation(fit.law, fit.params, fit.x, html_power)
    words = law_words(fit.law)
    return "\n".join(
        (
            f"<h3>{escape(words[:1].upper() + words[1:] + against)}</h3>",
            f"<p><b>{formula}</b></p>" if formula else "",
            f"<p>{escape(method_sentence(fit))}</p>",
            table(parameter_table(fit)),
            evidence(fit),
        )
    )


def method_sentence(fit: FitResult) -> str:
    n = len(fit.points)
    how = {
        "pairs": "runs drawn with replacement",
        "parametric": "losses redrawn about the law, since so few rungs cannot be drawn with replacement",
        "residuals": "losses redrawn about each budget's parabola with its own residuals",
        "none": "none",
    }.get(fit.resampling, fit.resampling)
    text = f"{n} runs, {convention(fit.parameters)}; objective: {fit.objective_name}, {number(fit.objective)} at the minimum."
    resamples = len(fit.samples)
    return text + (
        f" Intervals: {resamples:,} resamples ({how})." if resamples else " No resamples, so no parameter intervals."
    )


def parameter_table(fit: FitResult) -> Table:
    rows = []
    for name, value in (fit.params | fit.derived).items():
        ends = fit.ci.get(name, {})
        error = fit.standard_errors.get(name)
        pinned = name in fit.settings.pinned
        rows.append(
            (
                symbol(name) + (f" ({MEANINGS[name]})" if name in MEANINGS else ""),
                number(value) + (" (held fixed)" if pinned else ""),
                error_text(value, error),
                *(interval_text(ends.get(level)) for level in ("80", "95")),
            )
        )
    return Table(header=("parameter", "estimate", "standard error", "80 % interval", "95 % interval"), rows=tuple(rows))


def error_text(value: float, error: float | None) -> str:
    """The standard error; one far above its estimate comes from a few runaway resamples and says only that."""
    if error is None:
        return MISSING
    return number(error, 2) if error < 10 * abs(value) else "far above the estimate"


def interval_text(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return MISSING
    low, high = ends
    if high > low:
        return interval(low, high, decimals_for(high - low) + 1)
    return interval(low, high)


def evidence(fit: FitResult) -> str:
    o = fit.optimum
    if o is None:
        return ""
    runner = (
        "none: every start agrees"
        if o.runner_up is None
        else f"{number(o.runner_up)} ({percent(100 * (o.runner_up / o.objective - 1), True)})"
        if o.objective > 0
        else number(o.runner_up)
    )
    rows = (
        (
            "starts that reached the minimum",
            f"{percent(100 * o.start_share)} of {o.starts:,}" if o.starts else o.search,
        ),
        ("objective of the next distinct minimum", runner),
        ("gradient, scale-free", power_of_ten(o.grad_norm)),
        ("condition number", number(o.condition, 2)),
    )
    return folded(
        "Evidence that this is the minimum", table(Table(header=("what", "value"), rows=rows)), stands_open=False
    )


def choice_part(result: FitResult) -> str:
    """Laws that were tried and what decided between them."""
    if not result.candidates:
        return ""
    rows = tuple(
        (
            law_words(c.law),
            equation(c.law, c.params, c.x) or MISSING,
            percent(100 * c.holdout_rmse_log) if c.holdout_rmse_log is not None else MISSING,
            "yes" if c.identified else "no",
            "chosen" if c.chosen else "",
            sentence(c.reason),
        )
        for c in result.candidates
    )
    header = ("law", "fitted", "hold-out error", "determined by the data", "", "why")
    return (
        "<p>The law is chosen by its error on held-out rungs, never by how closely it follows the points it was fitted to.</p>"
        + table(Table(header=header, rows=rows), words=(5,))
    )


def sensitivity_part(result: FitResult) -> str:
    """What other reasonable choices would have given."""
    rows = result.sensitivity
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in (*row["params"], *row["derived"])))
    predicted = any("prediction" in row for row in rows)
    header = ("changed", "to", "runs", *(symbol(n) for n in names), *(("prediction",) if predicted else ()))
    cells = []
    for row in rows:
        values = row["params"] | row["derived"]
        numbers = tuple(number(values.get(n)) for n in names)
        cells.append(
            (
                row["what"],
                row["setting"] or MISSING,
                str(row["n_points"]),
                *numbers,
                *((number(row.get("prediction")),) if predicted else ()),
            )
        )
    return "<h3>Sensitivity</h3>" + table(Table(header=header, rows=tuple(cells)))


def tables_part(result: FitResult) -> str:
    """Rows that only some laws have: isoFLOP minima, targets of a two-step chain."""
    parts = []
    for name, rows in result.tables.items():
        header = tuple(dict.fromkeys(key for row in rows for key in row))
        cells = tuple(tuple(plain_cell(key, row.get(key)) for key in header) for row in rows)
        shown = table(Table(header=tuple(key.replace("_", " ") for key in header), rows=cells))
        parts.append(folded(f"{name.replace('_', ' ')} ({len(rows)})", shown, stands_open=len(rows) <= 30))
    return "<h3>Tables of this law</h3>" + "\n".join(parts) if parts else ""


def plain_cell(key: str, value: Any) -> str:
    """A table cell as people read it: counts for sizes, percent for relative errors."""
    if value is None or isinstance(value, (str, bool)):
        return {None: MISSING, True: "yes", False: "no"}.get(value, str(value)) if not isinstance(value, str) else value
    if "relative" in key:
        return percent(100 * float(value), signed=True)
    if isinstance(value, int):
        return f"{value:,}"
    if key == "flops":
        return power_of_ten(float(value), 3)
    return count(float(value)) if key in ("n_opt", "d_opt") else number(float(value))


# ------------------------------------------------------------------------------------------------ runs and provenance


def excluded_part(points: Points) -> str:
    """Every run that is not in the fit, by name, with its reason."""
    if not points.excluded:
        return "<p>None: every run read is a point of the fit.</p>"
    rows = tuple(
        (
            e.run_id,
            rung_name(e.rung) if e.rung else MISSING,
            str(e.seed) if e.seed is not None else MISSING,
            sentence(e.reason),
        )
        for e in points.excluded
    )
    inner = table(Table(header=("run", "rung", "seed", "reason"), rows=rows), words=(3,), code=(0,))
    return inner if len(rows) <= 30 else folded(f"{len(rows)} runs", inner, stands_open=False)


def runs_part(result: FitResult) -> str:
    """The points with what a reader needs to find each run again."""
    has = {
        name: any(getattr(p, name) is not None for p in result.points)
        for name in ("seed", "tokens", "flops", "learning_rate", "mlflow_run")
    }
    size = result.parameters
    rows = []
    for i, p in enumerate(result.points):
        fitted = result.fitted[i] if len(result.fitted) == len(result.points) else None
        row = [p.run_id, rung_name(p.rung)]
        row += [str(p.seed) if p.seed is not None else MISSING] if has["seed"] else []
        row += [count(getattr(p, size))]
        row += [count(p.tokens)] if has["tokens"] else []
        row += [power_of_ten(p.flops, 3)] if has["flops"] else []
        row += [f"{p.learning_rate:g}" if p.learning_rate is not None else MISSING] if has["learning_rate"] else []
        row += [number(p.loss, 5), percent(100 * (p.loss / fitted - 1), True) if fitted else MISSING]
        row += [p.mlflow_run or MISSING] if has["mlflow_run"] else []
        rows.append(tuple(row))
    names = {
        "seed": "seed",
        "tokens": "tokens",
        "flops": "FLOPs",
        "learning_rate": "learning rate",
        "mlflow_run": "MLflow run",
    }
    header = ["run", "rung", *([names["seed"]] if has["seed"] else []), convention(size)]
    header += [names[n] for n in ("tokens", "flops", "learning_rate") if has[n]]
    header += ["loss", "against law", *([names["mlflow_run"]] if has["mlflow_run"] else [])]
    code = (0, len(header) - 1) if has["mlflow_run"] else (0,)
    inner = table(Table(header=tuple(header), rows=tuple(rows)), code=code)
    return folded(f"{len(rows)} runs, also in points.csv", inner, stands_open=len(rows) <= 12)


def provenance_part(result: FitResult, given: Mapping[str, str]) -> str:
    """Code, versions, data and settings: what would have to be equal for the same numbers."""
    conventions = sorted({p.flops_convention for p in result.points if p.flops_convention})
    data = sorted({p.data_hash for p in result.points if p.data_hash})
    rows = [
        ("points read from", result.points.source or MISSING),
        ("hash of the points", result.points.sha256),
        ("parameters counted", convention(result.parameters)),
        ("FLOPs convention", "; ".join(conventions) or "not stated by the source"),
        *(("data hash", h) for h in data),
        *given.items(),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions().items())),
        ("settings", settings_text(result)),
    ]
    return table(Table(header=("what", "value"), rows=tuple(rows)), words=(1,), code=(1,))


def settings_text(result: FitResult) -> str:
    s = result.settings
    parts = [
        f"law={s.law}",
        f"x={s.x}",
        f"parameters={s.parameters}",
        f"delta={s.delta if s.delta is not None else 'of the law'}",
    ]
    parts += [f"bootstrap={s.bootstrap}", f"seed={s.seed}", *(f"pinned.{k}={v:g}" for k, v in s.pinned.items())]
    return " ".join(parts)


def commands_part(result: FitResult, given: Sequence[str]) -> str:
    """How to get the same numbers again."""
    lines = list(given) or default_commands(result)
    return "<h3>To reproduce</h3>\n<pre>" + escape("\n".join(lines)) + "</pre>"


def default_commands(result: FitResult) -> list[str]:
    source = result.points.source
    named: dict[str, Any] = {
        "law": result.settings.law,
        "bootstrap": result.settings.bootstrap,
        "seed": result.settings.seed,
    }
    where = f"points={source}" if source.endswith((".csv", ".parquet", ".pq")) else f"sweep={source or 'NAME'}"
    settings = " ".join(f"{k}={v}" for k, v in named.items())
    return [f"gopher fit {where} {settings} format=json"] + (
        [] if where.startswith("points") else [f"gopher report sweep={source or 'NAME'}"]
    )
