"""Which checkpoints are compared on the same items: a run's with the one before it, and the last with that of the rung below."""

from collections.abc import Sequence

from gopher.evals.checkpoints import Checkpoint
from gopher.size import params_total


def pairs(checkpoints: Sequence[Checkpoint]) -> list[tuple[Checkpoint, Checkpoint]]:
    """(before, after): every step of a run after the step before it, and every run's last step after that of a run of the
    next smaller size, with the same seed and learning rate where there is one."""
    runs: dict[object, list[Checkpoint]] = {}
    for checkpoint in sorted(checkpoints, key=lambda c: c.step):
        runs.setdefault(checkpoint.run_folder, []).append(checkpoint)
    out = [pair for own in runs.values() for pair in zip(own, own[1:], strict=False)]
    last = [own[-1] for own in runs.values()]
    for after in last:
        size = params_total(after.spec.model)
        smaller = [c for c in last if params_total(c.spec.model) < size]
        if smaller:
            out.append((nearest(smaller, after), after))
    return out


def nearest(smaller: Sequence[Checkpoint], after: Checkpoint) -> Checkpoint:
    """Of the largest of the smaller ones, that with the same seed, then with the same learning rate."""

    def far(c: Checkpoint) -> tuple[int, bool, bool]:
        spec, own = c.spec, after.spec
        return -params_total(spec.model), spec.seed != own.seed, spec.optim.lr != own.optim.lr

    return min(smaller, key=far)
