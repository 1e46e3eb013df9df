"""Scores of the paper's 280B model, to be seen behind one's own: published.csv, as Hoffmann et al. 2022 (arXiv 2203.15556) print them.

One row a task, in fractions correct or bits per byte; `mmlu` is the mean over its questions, `bigbench` over 62 tasks. Of
the paper's smaller models only single scores per task are known, from second hand, and none is here. Prompts and shots are
those of the paper's authors and may differ from a harness's.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analysis.tasks import base

MODEL = "Gopher 280B"


@dataclass(frozen=True, kw_only=True)
class Published:
    task: str
    metric: str  # as it is logged: "acc", "exact_match", "bits_per_byte", "word_perplexity"
    value: float
    shots: str  # a number, or "few" where the table gives none
    source: str  # paper and table


def published(task: str, metric: str) -> Published | None:
    """The published score of a task in a metric, or None; harness names of one task ("pile_pile-cc") are one name."""
    return table().get((task.replace("-", "_").removesuffix("_multiple_choice"), base(metric)))


@cache
def table() -> dict[tuple[str, str], Published]:
    with Path(__file__).with_name("published.csv").open() as rows:
        found = [Published(**{**row, "value": float(row["value"])}) for row in csv.DictReader(rows)]  # type: ignore[arg-type]
    return {(p.task, p.metric): p for p in found}
