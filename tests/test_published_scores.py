"""Proves that the published scores behind one's own are those of the tables, in the units that are logged, and that a
task's picture, table and words show them, inside its axis or out."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from pictures import task_scores

from analysis.published import published, table
from analysis.task_figures import task_page
from analysis.tasks import TaskScore

FACTS = Path(__file__).parents[2] / "shared" / "facts" / "results_by_scale.csv"


def scored(task: str, metric: str, values: tuple[float, float]) -> tuple[str, str, list[TaskScore]]:
    rungs = [s for s in task_scores(1) if s.metric == "acc" and not s.untrained][: len(values)]
    group = [replace(s, task=task, metric=metric, value=v) for s, v in zip(rungs, values, strict=True)]
    return task, metric, group


def test_a_score_is_found_by_the_harness_name_of_its_task() -> None:
    hyperbaton = published("bigbench_hyperbaton_multiple_choice", "acc")
    assert hyperbaton and hyperbaton.value == 0.517 and hyperbaton.source == "Hoffmann et al. 2022, Table A7"
    pile = published("pile_pile-cc", "bits_per_byte")
    assert pile and pile.value == 0.691
    assert published("hellaswag", "acc_norm") is None and published("mmlu_unheard_of", "acc") is None


def test_accuracies_are_fractions_and_no_task_is_said_twice() -> None:
    rows = table().values()
    assert len(rows) > 150 and all(0 < p.value < 1 for p in rows if p.metric.startswith(("acc", "exact")))
    lines = (Path(__file__).parents[1] / "analysis" / "published.csv").read_text().splitlines()
    assert len(rows) == len(lines) - 1


@pytest.mark.skipif(not FACTS.exists(), reason="shared/facts is not beside the repository")
def test_every_value_is_the_one_that_was_read_in_the_source() -> None:
    rows = csv.DictReader(FACTS.read_text().splitlines())
    seen = {r["task"]: float(r["score"]) for r in rows if r["model"] == "280B"}
    checked = [p for p in table().values() if p.task in seen and p.task.startswith(("mmlu_", "bigbench_", "pile_"))]
    assert len(checked) > 120
    for group, fact in (("mmlu", "mmlu_average"), ("bigbench", "bigbench_average_62")):
        told = published(group, "acc")
        assert told and told.value == pytest.approx(seen[fact] / 100) and told.shots == "5"
    for p in checked:
        assert p.value == pytest.approx(seen[p.task] / (1 if p.metric == "bits_per_byte" else 100)), p


def test_a_value_outside_the_axis_is_an_arrow_and_inside_a_line() -> None:
    far, near = scored("hellaswag", "acc", (0.25, 0.27)), scored("bigbench_hyperbaton", "acc", (0.49, 0.55))
    page = task_page("common_sense", [far, near], 0)
    assert "Gopher 280B 0.792 ↑<" in page.svg and "Gopher 280B 0.517<" in page.svg
    assert "Gopher 280B 0.792" in page.alt and "Gopher 280B 0.517" in page.alt
    assert "Hoffmann et al. 2022, Table 8; Hoffmann et al. 2022, Table A7" in page.caption
    assert [row[-1] for row in page.table.rows] == ["0.792 (0-shot)"] * 2 + ["0.517 (5-shot)"] * 2


def test_a_task_that_nobody_published_has_no_such_line() -> None:
    page = task_page("science", [scored("our_quiz", "acc", (0.2, 0.3))], 0)
    assert "Gopher" not in page.svg + page.alt + page.caption and {row[-1] for row in page.table.rows} == {"–"}
