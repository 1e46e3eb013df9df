"""Which of the last runs goes where, so that all cores end together: pure arithmetic on how fast the runs before were.

Longest first is a good rule while many runs wait. Of the last few it can leave one core with a whole run while the others
have nothing left; which few belong together is found by trying. What a run costs in FLOPs says too little about its
seconds (small models wait for their own overheads), so lengths come from the runs that train or have trained.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

LAST_RUNS = 12  # more that wait go by length alone
SEATS = 16  # on more, too
WIDTH = 300  # partial packings that are looked into further; up to 9 runs on two seats that is all of them

Packing = tuple[tuple[float, ...], tuple[tuple[str, ...], ...]]  # end and runs of each seat


def best_packing(seconds: Mapping[str, float], ends: Sequence[float]) -> list[list[str]]:
    """Runs per seat, longest first. `ends`: when each seat becomes free, seconds; the last end of all is to come early."""
    packings: list[Packing] = [(tuple(ends), ((),) * len(ends))]
    for key in sorted(seconds, key=lambda k: (-seconds[k], k)):
        grown: dict[tuple[float, ...], Packing] = {}
        for (free, packed), i in itertools.product(packings, range(len(ends))):
            later = (*free[:i], free[i] + seconds[key], *free[i + 1 :])
            # seats with the same ends are one packing, whichever is which
            grown.setdefault(tuple(sorted(later)), (later, (*packed[:i], (*packed[i], key), *packed[i + 1 :])))
        packings = sorted(grown.values(), key=lambda p: (max(p[0]), sum(end * end for end in p[0])))[:WIDTH]
    return [list(keys) for keys in packings[0][1]]


def expected_seconds(costs: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Whole seconds of every run: as `measured`, or as those of the nearest costs let expect. Empty while only one cost was measured.

    Between and beyond two measured costs, seconds are taken to grow with a power of the cost, from 0 (not at all) to 1.
    """
    groups = defaultdict(list)
    for key, seconds in measured.items():
        groups[costs[key]].append(seconds)
    known = sorted((cost, sum(group) / len(group)) for cost, group in groups.items())
    if len(known) < 2:
        return {}
    return {key: measured.get(key) or read_off(known, cost) for key, cost in costs.items()}


def read_off(known: Sequence[tuple[float, float]], cost: float) -> float:
    """Seconds of a run that costs `cost`, from sorted pairs of (cost, seconds)."""
    right = next((i for i in range(1, len(known)) if known[i][0] >= cost), len(known) - 1)
    (low, fast), (high, slow) = known[right - 1], known[right]
    power = min(1.0, max(0.0, math.log(slow / fast) / math.log(high / low)))
    near, base = (low, fast) if cost - low < high - cost else (high, slow)
    return base * float((cost / near) ** power)
