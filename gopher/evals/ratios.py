"""Scores that are made of items: sum of parts / sum of wholes, a mean where every whole is 1, or the exponential of it.

What each item adds to a score, to first order (Cochran 1977, section 6.3; the delta method for the exponential), gives
the score's standard error over clusters, and that of a difference between two models on the same items.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import variance
from typing import Any

Items = dict[int, float]  # doc_id -> value


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratio:
    """The items of one score. Those of a group are (member, doc_id)."""

    parts: Mapping[Any, float]
    wholes: Mapping[Any, float]
    clusters: Mapping[Any, str]  # items of one cluster share a text
    strata: Mapping[Any, str] = field(
        default_factory=dict
    )  # of a group's items their member: tasks are fixed, not drawn
    is_perplexity: bool = False  # exp(sum of parts / sum of wholes)

    @property
    def value(self) -> float:
        rate = sum(self.parts.values()) / sum(self.wholes.values())
        return math.exp(rate) if self.is_perplexity else rate

    @property
    def stderr(self) -> float | None:
        """None for one cluster."""
        return spread(self.shares(), self)

    @property
    def shares_texts(self) -> bool:
        return len(set(self.clusters.values())) < len(self.clusters)

    def shares(self) -> dict[Any, float]:
        """What each item adds to the score, to first order, beside what its stratum does; they sum to 0."""
        strata, whole = self.drawn_from(), sum(self.wholes.values())
        parts, wholes = defaultdict[str, float](float), defaultdict[str, float](float)
        for key, stratum in strata.items():
            parts[stratum] += self.parts[key]
            wholes[stratum] += self.wholes[key]
        slope = (self.value if self.is_perplexity else 1.0) / whole
        return {
            key: slope * (part - parts[strata[key]] / wholes[strata[key]] * self.wholes[key])
            for key, part in self.parts.items()
        }

    def drawn_from(self) -> dict[Any, str]:
        """The stratum of each item; those of one cluster, which show no spread, are one together."""
        clusters: defaultdict[str, set[str]] = defaultdict(set)
        for key, name in self.clusters.items():
            clusters[self.strata.get(key, "")].add(name)
        own = {key: self.strata.get(key, "") for key in self.parts}
        return {key: name if len(clusters[name]) > 1 else "" for key, name in own.items()}

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
    return b.value - a.value, spread({key: own - before[key] for key, own in b.shares().items()}, b)


def pooled(members: Mapping[str, Ratio]) -> Ratio:
    """All items of all members as one score; a cluster is of one member."""
    return Ratio(
        parts={(name, key): part for name, own in members.items() for key, part in own.parts.items()},
        wholes={(name, key): whole for name, own in members.items() for key, whole in own.wholes.items()},
        clusters={(name, key): f"{name}/{own.clusters[key]}" for name, own in members.items() for key in own.parts},
        strata={(name, key): name for name, own in members.items() for key in own.parts},
        is_perplexity=any(own.is_perplexity for own in members.values()),
    )


def spread(shares: Mapping[Any, float], score: Ratio) -> float | None:
    """Standard error of a sum of shares over the clusters of each stratum; None where a cluster has no other beside it."""
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for key, stratum in score.drawn_from().items():
        sums[stratum][score.clusters[key]] += shares[key]
    parts = [list(own.values()) for own in sums.values()]
    return None if any(len(own) == 1 for own in parts) else math.sqrt(sum(len(own) * variance(own) for own in parts))
