"""`gopher resume`: launch of what a sweep has stopped, failed or not begun; stop requests and spent crash budgets are forgotten."""

from collections.abc import Sequence

from sweeps.study import ComposeFn
from sweeps.verbs import launch


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    """The exit code of the launch, which clears what made the runs stop."""
    return launch.run(compose, overrides)
