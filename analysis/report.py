"""One HTML file that says what a sweep found: headline, warnings, figures with tables, the fit, exclusions, provenance.

The file needs no network and no scripts. Beside it lie the figures as SVG and PNG, the points as CSV and the fit as JSON.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.curves import Curve
from analysis.drawing import Figure
from analysis.figures import figures
from analysis.findings import findings
from analysis.forecast import Forecast
from analysis.page import escape, page, section
from analysis.result import FitResult, dumps, records, to_json
from analysis.rows import Points
from analysis.sections import (
    choice_part,
    commands_part,
    excluded_part,
    figure_list,
    finding_list,
    fit_part,
    provenance_part,
    runs_part,
    sensitivity_part,
    tables_part,
    typeset,
)
from analysis.tasks import TaskScore
from gopher.record import write_atomic


def write_report(
    result: FitResult,
    points: Points,
    curves: Sequence[Curve],
    folder: Path | str,
    *,
    title: str = "",
    tasks: Sequence[TaskScore] = (),
    forecasts: Sequence[Forecast] = (),
    provenance: Mapping[str, str] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Write report.html, figures/*.svg and *.png, points.csv and fit.json into `folder`; the path of report.html.

    Every file is written atomically and report.html last, so a reader never sees a page whose figures are missing.
    `points` is the table as read, with what was left out (usually `result.points`).
    """
    folder = Path(folder)
    drawn = figures(result, curves, tasks, forecasts)
    name = title or result.points.source or "scaling study"
    text = report_html(name, result, points, drawn, provenance or {}, commands)
    for item in drawn:
        write_atomic(folder / "figures" / f"{item.name}.svg", item.svg)
        write_bytes(folder / "figures" / f"{item.name}.png", item.png)
    write_atomic(folder / "points.csv", points_csv(result))
    write_atomic(folder / "fit.json", dumps(to_json(result)))
    write_atomic(folder / "report.html", text)
    remove_stale(folder / "figures", {item.name for item in drawn})
    return folder / "report.html"


def write_bytes(path: Path, data: bytes) -> None:
    """`write_atomic` for bytes."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale(folder: Path, names: set[str]) -> None:
    """Pictures of an earlier report that this one does not have would be taken for its own."""
    for path in (*folder.glob("*.svg"), *folder.glob("*.png")):
        if path.stem not in names:
            path.unlink()


def points_csv(result: FitResult) -> str:
    """The points of the fit, one row a run, with the law's value."""
    rows = records(result)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def report_html(
    title: str,
    result: FitResult,
    points: Points,
    drawn: Sequence[Figure],
    provenance: Mapping[str, str],
    commands: Sequence[str],
) -> str:
    """The page as text."""
    told = findings(result)
    return page(
        f"{title}: scaling report",
        (
            f'<header>\n<h1>{escape(title)}: scaling report</h1>\n<p class="headline">{typeset(result, told.headline)}</p>\n</header>',
            '<main>\n<section aria-label="Findings">' + finding_list(told.findings) + "</section>",
            section("Figures", f'<div class="figures">\n{figure_list(drawn)}\n</div>'),
            section("The fit", *(fit_part(fit) for fit in (result, *result.also)), tables_part(result)),
            section("What else could have been chosen", choice_part(result), sensitivity_part(result)),
            section("Runs left out", excluded_part(points)),
            section("Runs of the fit", runs_part(result)),
            section("Where this comes from", provenance_part(result, provenance), commands_part(result, commands)),
            "</main>",
        ),
    )
