"""Scores that are made of items: sum of parts / sum of wholes, a mean where every whole is 1, or the exponential of it.

What each item adds to a score, to first order (Cochran 1977, section 6.3; the delta method for the exponential), gives
the score's standard error over clusters, and that of a difference between two models on the same items.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Items = dict[int, float]  # doc_id -> value


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """The items of one score. Those of a group are (member, doc_id), and its members are the clusters."""

    parts: Mapping[Any, float]
    wholes: Mapping[Any, float]
    clusters: Mapping[Any, str]  # items of one cluster share a text
    is_perplexity: bool = False  # exp(sum of parts / sum of wholes)

    @property
    def value(self) -> float:
        rate = sum(self.parts.values()) / sum(self.wholes.values())
        return math.exp(rate) if self.is_perplexity else rate

    @property
    def stderr(self) -> float | None:
        """None for one cluster."""
        return spread(self.shares(), self.clusters)

    @property
    def shares_texts(self) -> bool:
        return len(set(self.clusters.values())) < len(self.clusters)

    def shares(self) -> dict[Any, float]:
        """What each item adds to the score, to first order; they sum to 0."""
        whole = sum(self.wholes.values())
        rate = sum(self.parts.values()) / whole
        slope = math.exp(rate) if self.is_perplexity else 1.0
        return {key: slope * (part - rate * self.wholes[key]) / whole for key, part in self.parts.items()}

    def of(self, keys: Collection[Any]) -> "Ratio":
        """The score of some of the items."""
        return replace(
            self,
            parts={key: self.parts[key] for key in keys},
            wholes={key: self.wholes[key] for key in keys},
            clusters={key: self.clusters[key] for key in keys},
        )


def mean_of(items: Mapping[int, float], clusters: Mapping[int, str]) -> Ratio:
    """The mean of items."""
    return Ratio(parts=dict(items), wholes=dict.fromkeys(items, 1.0), clusters={i: clusters[i] for i in items})


def difference(a: Ratio, b: Ratio) -> tuple[float, float | None] | None:
    """(b - a, its standard error) on the same items; None where they are not the same."""
    if dict(a.wholes) != dict(b.wholes):
        return None
    before = a.shares()
    return b.value - a.value, spread({key: own - before[key] for key, own in b.shares().items()}, b.clusters)


def pooled(members: Mapping[str, Ratio]) -> Ratio:
    """All items of all members as one score; a member is a cluster."""
    return Ratio(
        parts={(name, key): part for name, own in members.items() for key, part in own.parts.items()},
        wholes={(name, key): whole for name, own in members.items() for key, whole in own.wholes.items()},
        clusters={(name, key): name for name, own in members.items() for key in own.parts},
        is_perplexity=any(own.is_perplexity for own in members.values()),
    )


def spread(shares: Mapping[Any, float], clusters: Mapping[Any, str]) -> float | None:
    """Standard error of a sum of shares over clusters; None for one cluster."""
    sums: defaultdict[str, float] = defaultdict(float)
    for key, share in shares.items():
        sums[clusters[key]] += share
    count = len(sums)
    return math.sqrt(count / (count - 1) * sum(s * s for s in sums.values())) if count > 1 else None


def ratio_error(parts: Sequence[float], wholes: Sequence[float], clusters: Iterable[str]) -> float | None:
    """Standard error of sum(parts) / sum(wholes) over clusters, linearised; None for one cluster.

    With every whole 1 and every cluster of one item it is the usual s / sqrt(n).
    """
    names = dict(enumerate(clusters))
    return Ratio(parts=dict(enumerate(parts)), wholes=dict(enumerate(wholes)), clusters=names).stderr
