"""`gopher fit`: the scaling law of a sweep's logged runs, or of anybody's table."""

from collections.abc import Sequence
from typing import Any

from gopher.errors import UsageError
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    from analysis.command import print_result, run_fit
    from analysis.result import dumps, to_json
    from sweeps.screen import console

    tree = compose(overrides).tree
    settings = settings_of(tree)
    result = run_fit(fit_request(tree, settings))
    if settings.format == "json":
        print(dumps(to_json(result)), end="")
    else:
        print_result(result, console())
    return 0


def fit_request(tree: dict[str, Any], settings: Settings) -> Any:
    """What `analysis` needs of the composed config: a file of points, or the sweep's experiment."""
    from analysis.command import REQUEST_KEYS, SETTING_KEYS, request_from

    if tree["points"] is None and settings.tracking.uri is None and not (settings.root / "mlflow.db").exists():
        raise UsageError(
            f"{settings.root} has no MLflow database, so the sweep '{settings.name}' was not launched there; "
            "run gopher launch with the same words, or name its folder with output_root=DIR"
        )
    values = {k: tree[k] for k in (*REQUEST_KEYS, *SETTING_KEYS) if k in tree}
    values["sweep"] = None if values.get("points") else settings.name
    return request_from(values | {"tracking_uri": settings.tracking_uri})
