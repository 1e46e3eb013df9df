"""When two runs are one design: the one rule for forecasts (whose runs are the target's) and for suggestions (runs done there)."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.rows import Array

SIZES = ("params_total", "params_non_embedding", "flops", "tokens")
TOLERANCE = 0.005  # relative: two parameter counts closer than this are one rung, whatever it is called
TRAINED_TOLERANCE = 0.02  # of tokens and FLOPs, which are rounded to whole batches


def same_design(known: Mapping[str, Array], wanted: Mapping[str, float | None]) -> Array:
    """Mask of the rows of `known` (size -> values, nan where unknown) that have the sizes `wanted`.

    Every size known to both must agree, with a parameter count or FLOPs among them where `wanted` names any: equal tokens
    alone are a whole ladder. FLOPs count only where parameters and tokens do not settle it, since they are counted by
    several conventions.
    """
    sizes = {name: float(value) for name, value in wanted.items() if value is not None and name in known}
    rows = len(next(iter(known.values()), ()))
    shared = {name: np.isfinite(known[name]) for name in sizes}
    agree = {name: ~shared[name] | (np.abs(known[name] / value - 1) < tolerance(name)) for name, value in sizes.items()}
    params, trained = [n for n in sizes if n.startswith("params")], [n for n in sizes if n.endswith("tokens")]
    has_params, has_tokens, has_flops = (
        any_of(shared, params, rows),
        any_of(shared, trained, rows),
        any_of(shared, ["flops"], rows),
    )
    same = ~any_of({n: ~agree[n] for n in (*params, *trained)}, (*params, *trained), rows)
    same &= (has_params & has_tokens) | agree.get("flops", np.ones(rows, bool))
    by_size = any(v is not None and (n == "flops" or n.startswith("params")) for n, v in wanted.items())
    found: Array = same & (has_params | has_flops if by_size else has_tokens)
    return found


def designs(known: Mapping[str, Array], labels: Sequence[object]) -> list[list[int]]:
    """Row numbers of each design, in the order of its first row: rows of one label whose sizes (nan where unknown) are those of
    the smallest among them."""
    table = np.array([np.nan_to_num(values, nan=0.0) for values in known.values()])
    left = list(np.lexsort(table[::-1]))
    found = []
    while left:
        first = left[0]
        wanted = {name: float(v[first]) if np.isfinite(v[first]) else None for name, v in known.items()}
        same = same_design(known, wanted) | (~np.isfinite(list(known.values()))).all(axis=0)
        own = [i for i in left if i == first or (labels[i] == labels[first] and same[i])]
        found.append(sorted(map(int, own)))
        left = [i for i in left if i not in set(own)]
    return sorted(found)


def tolerance(name: str) -> float:
    return TOLERANCE if name.startswith("params") else TRAINED_TOLERANCE


def any_of(masks: Mapping[str, Array], names: tuple[str, ...] | list[str], rows: int) -> Array:
    """Rows in at least one of the named masks."""
    out: Array = np.zeros(rows, bool)
    for name in names:
        out = out | masks.get(name, False)
    return out
