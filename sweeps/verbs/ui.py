"""`gopher ui`: MLflow on loopback with a link to the sweep's dashboard, until Ctrl-C."""

from collections.abc import Sequence

from sweeps.serve import show_dashboard
from sweeps.settings import settings_of
from sweeps.study import ComposeFn


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    settings = settings_of(compose(overrides).tree)
    show_dashboard(settings.tracking_uri, settings.name, settings.root, settings.ui.port, settings.ui.open)
    return 0
