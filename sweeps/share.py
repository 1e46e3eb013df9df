"""What one of several drivers on one cluster may use: pure arithmetic on what their leases tell.

Every driver's heartbeat carries what it uses and since when its first task waits for room. While others wait, a driver takes
no more than an equal share. A gang larger than a share would wait for ever then, so the head that has waited longest,
once longer than `PATIENCE_SECONDS`, is served alone: everybody else starts nothing until it fits.
"""

from collections.abc import Sequence

from sweeps.lease import Holder
from sweeps.schedule import Capacity

PATIENCE_SECONDS = 120.0


def allowance(whole: Capacity, own: Holder, others: Sequence[Holder], now: float) -> Capacity:
    """Cores and GPUs that the driver `own` may have in all, those it has included. `others`: live, on the same cluster."""
    cpus, gpus = whole.cpus - sum(o.cpus for o in others), whole.gpus - sum(o.gpus for o in others)
    waits = sorted((h.head_since, h.id) for h in (own, *others) if h.head_since is not None)
    if waits and now - waits[0][0] > PATIENCE_SECONDS:
        if waits[0][1] != own.id:
            cpus, gpus = own.cpus, own.gpus
    elif any(o.head_since is not None for o in others):
        n = len([h for h in others if h.head_since is not None or h.cpus or h.gpus]) + 1
        cpus, gpus = min(cpus, max(own.cpus, -(-whole.cpus // n))), min(gpus, max(own.gpus, -(-whole.gpus // n)))
    return Capacity(cpus=max(0, cpus), gpus=max(0, gpus), max_parallel=whole.max_parallel)
