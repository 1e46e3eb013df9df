"""`gopher report`: figures and one HTML page about a sweep (or a table of points), written under the output root and logged to MLflow."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeps.launched import command_line
from sweeps.provenance import code_state, versions
from sweeps.redact import hide_secrets
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, check_rungs
from sweeps.track import opened_tracker
from sweeps.verbs.fit import fit_request


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    from analysis.command import run_fit
    from analysis.curves import curves_from_mlflow
    from analysis.forecast_files import load_all
    from analysis.report import write_report
    from analysis.task_scores import scores_from_mlflow
    from sweeps.screen import console

    tree = compose(overrides).tree
    settings = settings_of(tree)
    request = fit_request(tree, settings)
    result = run_fit(request)
    from_sweep = request.points is None
    curves = curves_from_mlflow(settings.tracking_uri, settings.name) if from_sweep else []
    folder = report_folder(settings, request)
    launch, command = (hide_secrets(command_line(verb, overrides)) for verb in ("launch", "report"))
    page = write_report(
        result,
        result.points,
        curves,
        folder,
        title=settings.name if from_sweep else result.points.source,
        tasks=scores_from_mlflow(settings.tracking_uri, settings.name) if from_sweep else [],
        forecasts=load_all(settings.sweep_dir / "forecasts") if from_sweep else [],
        provenance=report_provenance(),
        commands=[launch, command] if from_sweep else [command],
    )
    if from_sweep:
        log_report(settings, check_rungs(tree["rungs"]), result, folder)
    console(stderr=True).print(f"report: {page}", markup=False)
    return 0


def report_folder(settings: Settings, request: Any) -> Path:
    """The sweep's own folder, or one for each table and choice of its rows: other rows are another study."""
    if request.points is None:
        return settings.sweep_dir / "report"
    files = [request.points] if isinstance(request.points, str) else request.points
    name = "+".join(Path(file).stem for file in files)
    rows = f"-{hashlib.sha256(request.where.encode()).hexdigest()[:8]}" if request.where else ""
    return settings.root / "reports" / f"{name}{rows}"


def report_provenance() -> dict[str, str]:
    code = code_state()
    commit = f"{code.commit}{' with uncommitted changes' if code.dirty else ''}" if code.commit else "installed package"
    return {"code": commit, **versions()}


def log_report(settings: Settings, rungs: Sequence[str], result: Any, folder: Path) -> None:
    """The page, its pictures and the fit into MLflow: a nested fit run, and the sweep's own note with the curve."""
    from analysis.findings import findings
    from analysis.result import to_json

    told = findings(result)
    tracker = opened_tracker(settings, rungs)
    numbers = {f"fit/{name}": float(value) for name, value in result.params.items()}
    note = note_text(told, sorted(p.stem for p in (folder / "figures").glob("*.png")), settings.name)
    tracker.log_report(json.loads(json.dumps(to_json(result))), folder, note, numbers)


def note_text(told: Any, figures: Sequence[str], sweep: str) -> str:
    """Markdown of the sweep's page in MLflow: the headline first (a folded note shows one line), the curve, the findings."""
    first = next((f for f in ("loss_vs_params", "loss_vs_size") if f in figures), figures[0] if figures else None)
    picture = [f"![{told.headline}](get-artifact?path=report/figures/{first}.png&run_uuid={{parent}})"] if first else []
    link = f"[The whole report](#/experiments/{{experiment}}/runs/{{parent}}/artifacts/report/report.html) of the sweep `{sweep}`"
    lines = [f"**{told.headline}**", *picture, *(f"- {f.text}" for f in told.findings), link]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:-1]) + "\n\n" + lines[-1]
