"""`gopher fit` without its plumbing: plain values in, one JSON-ready object or a printed table out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from analysis.fit import FitResult, FitSettings


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """Where the points come from and how they are fitted; each field is a key of `gopher fit`."""

    points: str | None = None  # CSV or Parquet file
    sweep: str | None = None  # MLflow experiment
    tracking_uri: str | None = None  # of the MLflow server or sqlite file, with `sweep`
    where: str = ""  # pandas query over the rows
    columns: Mapping[str, str] = field(default_factory=dict)  # our column name -> the file's
    metric: str = "auto"  # loss in a file, final/val_loss in a sweep
    bad_rows: str = "refuse"  # refuse | exclude: rows of a file that cannot be right
    settings: FitSettings = field(default_factory=FitSettings)


def request_from(values: Mapping[str, Any]) -> FitRequest:
    """A request from the flat values of the command line; unknown keys raise `UsageError` with the closest known one."""
    raise RuntimeError("being written")


def run_fit(request: FitRequest) -> FitResult:
    """Read the points, fit, return the result (nothing is written)."""
    raise RuntimeError("being written")


def print_result(result: FitResult) -> None:
    """The result as tables for a terminal."""
    raise RuntimeError("being written")
