"""The folders of runs that are about to be trained."""

from collections.abc import Sequence

from gopher.record import QUEUED, RunFolder, RunState
from sweeps.provenance import keep_diff, provenance
from sweeps.settings import Settings
from sweeps.study import PlannedRun


def make_folders(runs: Sequence[PlannedRun], settings: Settings) -> None:
    """Queue runs: their specs, how they are run from now on, no wish to stop, the state of before.

    A run that some process trains now is left as it is; `sweeps.lookout` queues it once it is free.
    """
    for run in runs:
        folder = RunFolder(settings.run_dir(run.spec.key))
        if folder.is_held():
            continue
        folder.create(run.spec, run.placement, provenance(run.config))
        keep_diff(folder.path)
        folder.clear_stop()
        state = folder.state()
        step = state.step if state else 0
        before = {"attempt": state.attempt, "train_seconds": state.train_seconds} if state else {}
        folder.write_state(RunState(state=QUEUED, step=step, **before))  # type: ignore[arg-type]
