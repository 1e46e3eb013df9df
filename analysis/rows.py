"""The rows a law is fitted to: points with their provenance, and every run left out with its reason."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured loss with what was spent on it. None means not known; nothing is ever filled with 0."""

    run_id: str
    rung: str  # a size of the ladder, readable: 44M
    loss: float  # nats/token or bits per byte (see loss_name), or the metric asked for
    loss_name: str = "loss"
    seed: int | None = None
    family: str = ""  # architecture, data set or sweep the run belongs to
    step: int | None = None
    params_total: float | None = None
    params_non_embedding: float | None = None
    tokens: float | None = None  # tokens trained on, repetitions counted
    unique_tokens: float | None = None
    flops: float | None = None
    flops_convention: str | None = None
    loss_stderr: float | None = None
    learning_rate: float | None = None
    batch_tokens: float | None = None  # or sequences: any unit that is the same for all points
    cost: float | None = None  # in any unit, the same for all points
    mlflow_run: str | None = None
    config_hash: str | None = None
    data_hash: str | None = None
    checkpoint: str | None = None
    started_at: str | None = None  # as finished_at
    finished_at: str | None = None  # ISO 8601, UTC unless it says otherwise: shows that a forecast was there first
    row: int | None = None  # 0-based data row of the source file


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """A run or row that does not enter the fit, by name, with the reason in words."""

    run_id: str
    reason: str
    rung: str | None = None
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Points:
    """The table: points in a fixed order that does not depend on the order of the source, and what was left out."""

    rows: tuple[Point, ...]
    excluded: tuple[Excluded, ...] = ()
    source: str = ""  # file name or experiment; never a path or host
    notes: tuple[str, ...] = ()  # things a reader should know, such as the best learning rate at the edge of its grid
    filtered: str = ""  # how many rows where= left out, in words; their names would be as many
    source_rows: Any = field(default=None, repr=False, compare=False)  # frame of all rows, before where= and any rule
    _columns: dict[str, Array] = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, after what the filter left out."""
        return ((self.filtered,) if self.filtered else ()) + self.notes

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.rows)

    def column(self, name: str) -> Array:
        """A numeric field of all points as float64; nan where it is None."""
        if name not in self._columns:
            values = [getattr(point, name) for point in self.rows]
            self._columns[name] = np.array([np.nan if v is None else v for v in values], float)
        return self._columns[name]

    def inputs(self, parameters: str = "auto") -> dict[str, Array]:
        """What laws read: params (in the given convention), tokens, unique_tokens, flops and loss, as float64."""
        names = ("tokens", "unique_tokens", "flops", "loss")
        return {"params": self.column(self.parameter_column(parameters))} | {name: self.column(name) for name in names}

    def parameter_column(self, parameters: str = "auto") -> str:
        """params_non_embedding | params_total for a convention or the column itself; auto takes non-embedding when every point has it."""
        if parameters == "auto":
            known = bool(np.isfinite(self.column("params_non_embedding")).all())
            parameters = "non_embedding" if known else "total"
        return f"params_{parameters.removeprefix('params_')}"

    def clusters(self) -> Array:
        """Integer cluster of each point: points of one run (run_id and seed) are resampled together."""
        keys = [(p.run_id, p.seed) for p in self.rows]
        codes = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([codes[key] for key in keys], int)

    def rungs(self, parameters: str = "auto") -> dict[str, Array]:
        """rung -> row numbers of its points, smallest rung first (by parameters, then FLOPs, then tokens)."""
        groups: dict[str, list[int]] = {}
        for i, point in enumerate(self.rows):
            groups.setdefault(point.rung, []).append(i)
        keys = ("params", "flops", "tokens")
        data = self.inputs(parameters)

        def size(name: str) -> tuple[float, ...]:
            return tuple(float(np.nan_to_num(np.mean(data[k][groups[name]]), nan=0.0)) for k in keys)

        return {name: np.array(groups[name], int) for name in sorted(groups, key=size)}

    def take(self, rows: Any) -> "Points":
        """The points at these row numbers (or under this mask), exclusions kept."""
        numbers = np.arange(len(self.rows))[rows]
        return replace(self, rows=tuple(self.rows[i] for i in numbers))

    def records(self) -> list[dict[str, Any]]:
        """Points as plain JSON rows, fields that no point has left out."""
        rows = [asdict(point) for point in self.rows]
        empty = {k for k in (rows[0] if rows else {}) if all(r[k] is None or r[k] == "" for r in rows)}
        return [{k: v for k, v in row.items() if k not in empty} for row in rows]

    @property
    def sha256(self) -> str:
        """Hash of what is fitted: every point's numbers and names, independent of row order and file format."""
        skip = ("row", "mlflow_run", "checkpoint", "started_at", "finished_at", "cost", "batch_tokens")  # not fitted
        rows = sorted(
            json.dumps({k: v for k, v in asdict(p).items() if k not in skip}, sort_keys=True) for p in self.rows
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()
