"""Scores of a run's checkpoint land in its record once: equal to the harness's own, never scored twice, missing data named."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gopher.errors import UsageError
from gopher.evals.checkpoints import checkpoints_of
from gopher.evals.compile import Prompting, compile_tasks
from gopher.evals.exam import Exam
from gopher.evals.metrics import task_scores
from gopher.evals.scores import score_run
from gopher.evals.store import Store
from gopher.evals.units import units_of
from gopher.record import RunFolder

TASK = """task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
metadata: {{version: 1}}
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one own-written task of six questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": f"What colour is thing {i}?", "options": ["red", "green"], "answer": i % 2} for i in range(6)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(TASK.format(data=folder / "colours.jsonl"))
    return folder


@pytest.fixture
def run(own_run: Path) -> RunFolder:
    return RunFolder(own_run)


@pytest.mark.filterwarnings("ignore")  # the harness and its data library warn of many things
def test_scores_land_once_and_equal_the_harness(run: RunFolder, tasks: Path) -> None:
    import lm_eval

    from gopher.evals.items import tasks_named
    from gopher.inference import open_rung
    from gopher.lm_eval_adapter import GopherLM

    exam = Exam(tasks=("colours",), tasks_path=str(tasks))
    assert run.unscored(["colours"], exam.key) == ["colours"]
    score_run(run.path, exam)
    rung, loaded = open_rung(run.path), tasks_named(["colours"], str(tasks), print)
    own = lm_eval.simple_evaluate(GopherLM(rung=rung), tasks=list(loaded.found.values()), bootstrap_iters=100)
    want = own["results"]["colours"]
    series = run.metrics()
    assert series["eval/colours.acc"][rung.step] == pytest.approx(want["acc,none"])
    assert series["eval/colours.acc_stderr"][rung.step] == pytest.approx(want["acc_stderr,none"])
    assert sorted(series["eval/colours.gold_bpb"]) == [0, rung.step]  # the untrained model beside it
    assert series["eval/colours.gold_bpb"][0] > series["eval/colours.gold_bpb"][rung.step]  # type: ignore[operator]
    record = json.loads(run.scores_file("colours").read_text())
    assert record["items"] == {"colours": 6} and record["checkpoint_sha256"] == rung.sha256
    before, log = os.stat(run.scores_file("colours")).st_mtime_ns, (run.path / "metrics.jsonl").read_bytes()
    score_run(run.path, exam)
    assert os.stat(run.scores_file("colours")).st_mtime_ns == before
    assert (run.path / "metrics.jsonl").read_bytes() == log


@pytest.mark.filterwarnings("ignore")
def test_a_task_without_data_is_recorded_with_its_reason_and_the_others_go_on(run: RunFolder, tasks: Path) -> None:
    (tasks / "lost.yaml").write_text(TASK.replace("task: colours", "task: lost").format(data=tasks / "gone.jsonl"))
    exam = Exam(tasks=("lost", "colours"), tasks_path=str(tasks))
    score_run(run.path, exam)
    assert run.unscored(exam.tasks, exam.key) == ["lost"]  # its data may come
    record = json.loads(run.scores_file("lost").read_text())
    assert record["metrics"] == {} and "gone.jsonl" in record["skipped"]
    assert set(run.metrics()) >= {"eval/colours.acc"} and not any("lost" in name for name in run.metrics())
    shutil.copy(tasks / "colours.jsonl", tasks / "gone.jsonl")
    score_run(run.path, exam)
    assert run.unscored(exam.tasks, exam.key) == [] and "eval/lost.acc" in run.metrics()


@pytest.mark.filterwarnings("ignore")
def test_another_way_to_ask_is_scored_anew(run: RunFolder, tasks: Path) -> None:
    few, all_items = (Exam(tasks=("colours",), tasks_path=str(tasks), limit=limit) for limit in (2, None))
    for exam, items in ((few, 2), (all_items, 6)):
        assert run.unscored(exam.tasks, exam.key) == ["colours"]
        score_run(run.path, exam)
        assert json.loads(run.scores_file("colours").read_text())["items"] == {"colours": items}
    assert list(run.metrics()["eval/colours.items"].values()) == [6.0, 6.0]


def test_a_run_without_a_checkpoint_cannot_be_scored(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints)
    with pytest.raises(UsageError, match="no intact checkpoint"):
        score_run(run.path, Exam(tasks=("colours",)))


def test_what_is_no_number_is_left_out() -> None:
    values = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "em,loose": float("nan")}
    found = [(s.metric, s.value, s.stderr) for s in task_scores("t", values, 3)]
    assert found == [("acc", 0.5, None), ("em-strict", 1.0, None)]


@pytest.mark.filterwarnings("ignore")  # the harness and its data library warn of many things
def test_pieces_are_as_large_as_the_device_that_scores_them_wants(run: RunFolder, tasks: Path, tmp_path: Path) -> None:
    compiled = compile_tasks(["colours"], str(tasks), tmp_path / "b", Prompting())
    checkpoints, bundles = checkpoints_of(run.path, "last", floor=False), list(compiled.bundles.values())
    slow, fast = (units_of(checkpoints, bundles, Store(folder=tmp_path / "a"), on=on) for on in ("cpu", "cuda"))
    assert sum(u.seconds for u in slow) > sum(u.seconds for u in fast) > 0
