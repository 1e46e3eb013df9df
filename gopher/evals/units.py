"""The work of an evaluation in pieces of about half a minute: some shards of requests, put to checkpoints of one size in one pass.

Small tasks are put together and long ones are cut, by an estimate of what they cost, so that neither many small tasks
nor many checkpoints make many pieces of nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from gopher.errors import GopherError
from gopher.evals.bundle import Bundle, read_bundle
from gopher.evals.checkpoints import Checkpoint, device
from gopher.evals.store import Encoders, Store, score_missing
from gopher.size import params_total

UNIT_SECONDS = 30.0
RESIDENT_PARAMETERS = 5e8  # of the checkpoints that are asked in one pass
# About what scoring costs on one core or one H100
REQUEST_SECONDS = 2.5e-3
CHARACTER_SECONDS = 2e-6
PARAMETER_SECONDS = {"cpu": 4e-11, "cuda": 4e-14}  # a character and parameter


@dataclass(frozen=True, kw_only=True)
class Part:
    """One shard of a task's requests."""

    task: str
    bundle: str  # key
    number: int


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece of work that is handed out."""

    checkpoints: tuple[Checkpoint, ...]  # of one shape and tokenizer
    parts: tuple[Part, ...]
    seconds: float  # about

    @property
    def who(self) -> tuple[str, ...]:
        return tuple(c.sha256 for c in self.checkpoints)


def units_of(
    checkpoints: Sequence[Checkpoint],
    bundles: Sequence[Bundle],
    store: Store,
    unit_seconds: float = UNIT_SECONDS,
    on: str | None = None,
) -> list[Unit]:
    """What the store lacks of the bundles' answers, in pieces for the device `on` (cpu | cuda), or that of this process."""
    pace = PARAMETER_SECONDS[on or device()]
    return [unit for group in twins(checkpoints) for unit in units_of_twins(group, bundles, store, unit_seconds, pace)]


def twins(checkpoints: Sequence[Checkpoint]) -> list[list[Checkpoint]]:
    """The distinct checkpoints of one shape and tokenizer together, as many as fit in memory at once."""
    groups: dict[Any, dict[str, Checkpoint]] = {}
    for c in checkpoints:
        groups.setdefault((c.spec.model, c.spec.tokenizer_key), {})[c.sha256] = c
    return [
        part
        for (model, _), own in groups.items()
        for part in in_parts(list(own.values()), int(RESIDENT_PARAMETERS / params_total(model)))
    ]


def in_parts(values: Sequence[Checkpoint], most: int) -> Iterator[list[Checkpoint]]:
    left = iter(values)
    while part := list(islice(left, max(1, most))):
        yield part


def units_of_twins(
    group: Sequence[Checkpoint], bundles: Sequence[Bundle], store: Store, unit_seconds: float, parameter_seconds: float
) -> Iterator[Unit]:
    rate = CHARACTER_SECONDS + parameter_seconds * params_total(group[0].spec.model)
    open_units: dict[tuple[Checkpoint, ...], tuple[list[Part], float]] = {}
    for bundle in bundles:
        missing = [set(store.missing(c.sha256, bundle)) for c in group]
        for number in sorted(set[int]().union(*missing)):
            span = bundle.shards[number]
            seconds = REQUEST_SECONDS * len(span) + rate * sum(bundle.new_characters[span.start : span.stop])
            asked = [c for c, own in zip(group, missing, strict=True) if number in own]
            for who in in_parts(asked, int(unit_seconds / seconds)):
                parts, before = open_units.pop(tuple(who), ([], 0.0))
                parts.append(Part(task=bundle.task, bundle=bundle.key, number=number))
                cost = before + seconds * len(who)
                if cost >= unit_seconds:
                    yield Unit(checkpoints=tuple(who), parts=tuple(parts), seconds=cost)
                else:
                    open_units[tuple(who)] = parts, cost
    for members, (parts, cost) in open_units.items():
        yield Unit(checkpoints=members, parts=tuple(parts), seconds=cost)


class Scorer:
    """Keeps the checkpoints of its last unit, the bundles it has read, and what it has encoded."""

    def __init__(self, folder: Path, store: Store, bundles: Mapping[str, Bundle] | None = None) -> None:
        self._folder, self._store = folder, store
        self._bundles: dict[str, Bundle | None] = dict(bundles or {})
        self._rungs: dict[str, Any] = {}
        self._encoders: Encoders = {}

    def score(self, unit: Unit, wait: bool = False) -> int:
        """Requests scored of the unit: all but those that the store has, or without `wait` another process is at."""
        self._rungs = {sha: rung for sha, rung in self._rungs.items() if sha in unit.who}
        for checkpoint in unit.checkpoints:
            if checkpoint.sha256 not in self._rungs:
                self._rungs[checkpoint.sha256] = checkpoint.open()
        rungs = [self._rungs[sha] for sha in unit.who]
        parts = {key: list(own) for key, own in groupby(unit.parts, key=lambda part: (part.task, part.bundle))}
        return sum(
            score_missing(rungs, self._bundle(*key), self._store, [p.number for p in own], self._encoders, wait)
            for key, own in parts.items()
        )

    def _bundle(self, task: str, key: str) -> Bundle:
        if key not in self._bundles:
            self._bundles[key] = read_bundle(self._folder, task, key)
        found = self._bundles[key]
        if found is None:
            raise GopherError(f"the requests of {task} are gone from {self._folder}; run the same command again")
        return found
