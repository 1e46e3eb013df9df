"""What `gopher eval` logs to MLflow comes back as task scores: errors, chance and the untrained model beside each value."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from logged_study import queued_folder, study_spec

from analysis.points import run_facts, training_runs
from analysis.task_scores import category_of, scores_from_mlflow, shown
from gopher.evals.metrics import TaskScore
from gopher.evals.scores import log_scores
from sweeps.track import Tracker


def lines(acc: float) -> list[TaskScore]:
    out = [TaskScore(task="mmlu_anatomy", metric="acc", value=acc, stderr=0.04, n=100)]
    out.append(TaskScore(task="mmlu_anatomy", metric="gold_bpb", value=3 - acc, stderr=0.1, n=100))
    out.append(TaskScore(task="mmlu_anatomy", metric="brier", value=0.7, stderr=0.1, n=100))
    out.append(TaskScore(task="quiz", metric="acc", value=acc, stderr=0.04, n=100, family="Trivia"))
    return [*out, TaskScore(task="mmlu_anatomy", metric="chance", value=0.25, stderr=None, n=100)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("scores")
    folders = [queued_folder(root, study_spec(rung, 0)) for rung in ("54k", "121k")]
    for folder, best in zip(folders, (0.26, 0.31), strict=True):
        log_scores(folder, 0, lines(0.24))
        log_scores(folder, 600, lines(best))
        log_scores(folder, 600, lines(best))  # said again: no second row
        assert len(folder.metric_lines()) == 2
    tracker = Tracker(f"sqlite:///{root / 'mlflow.db'}", "demo", root / "mlartifacts", ("54k", "121k"))
    tracker.open_sweep("")
    assert tracker.flush(folders, 10) is None
    for version in ("v1", "v2"):
        tracker.log_scores(folders[0], {"version": version, "results": [asdict(line) for line in lines(0.26)]})
    return tracker.uri


def test_scores_come_back_with_their_errors_chance_and_floor(uri: str) -> None:
    found = scores_from_mlflow(uri, "demo")
    assert {s.category for s in found if s.task == "quiz" and s.rung == "54k"} == {"Trivia"}
    found = [s for s in found if s.task != "quiz"]
    acc = [s for s in found if s.metric == "acc"]
    assert [(s.rung, s.step, s.value, s.untrained) for s in acc] == [
        ("54k", 0, 0.24, True),
        ("54k", 600, 0.26, False),
        ("121k", 0, 0.24, True),
        ("121k", 600, 0.31, False),
    ]
    assert all(s.stderr == 0.04 and s.chance == 0.25 and s.higher_is_better and s.category == "MMLU" for s in acc)
    assert {s.metric for s in found} == {"acc", "gold_bpb"}
    assert {s.n for s in found} == {100}
    assert not any(s.higher_is_better or s.chance for s in found if s.metric == "gold_bpb")


def test_the_newest_scores_are_shown_and_a_floor_that_comes_later(tmp_path: Path) -> None:
    folder = queued_folder(tmp_path, study_spec("54k", 0))
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "demo", tmp_path / "mlartifacts", ("54k",))
    tracker.open_sweep("")
    for step, acc in ((600, 0.31), (600, 0.28), (0, 0.24)):  # fewer items, all of them, the untrained model
        log_scores(folder, step, lines(acc))
        assert tracker.flush([folder], 10) is None
    (folder.path / "mlflow.json").unlink()  # all of it is sent again, and changes nothing
    again = Tracker(tracker.uri, "demo", tmp_path / "mlartifacts", ("54k",))
    again.open_sweep("")
    assert again.flush([folder], 10) is None
    found = [s for s in scores_from_mlflow(tracker.uri, "demo") if (s.task, s.metric) == ("mmlu_anatomy", "acc")]
    assert [(s.step, s.value, s.untrained) for s in found] == [(0, 0.24, True), (600, 0.28, False)]
    (run,) = training_runs(tracker.uri, "demo")
    assert run.data.metrics["eval/mmlu_anatomy.acc"] == 0.28  # what fits read


def test_fewer_items_replace_scores_only_where_they_may(tmp_path: Path) -> None:
    folder = queued_folder(tmp_path, study_spec("54k", 0))
    few = [replace(line, n=4, value=1.0) for line in lines(0.3)]
    assert log_scores(folder, 600, lines(0.3)) == {}
    assert log_scores(folder, 600, few, fewer=False)["mmlu_anatomy"] == 100
    assert folder.metrics()["eval/mmlu_anatomy.acc"] == {600: 0.3}
    assert log_scores(folder, 600, few) == {}
    assert folder.metrics()["eval/mmlu_anatomy.acc"] == {600: 1.0} and folder.last("eval/mmlu_anatomy.items") == 4


def test_items_are_counted_for_each_way_of_asking(tmp_path: Path) -> None:
    """Few thoughts are no reason to leave them out because plain answers are many, nor to forget how many these were."""
    folder = queued_folder(tmp_path, study_spec("54k", 0))
    thought = TaskScore(task="mmlu_anatomy", metric="acc-think", value=0.5, stderr=0.1, n=10)
    chance = TaskScore(task="mmlu_anatomy", metric="chance", value=0.2, stderr=None, n=10)
    log_scores(folder, 600, lines(0.3))
    assert log_scores(folder, 600, [thought, chance], fewer=False) == {}
    assert folder.last("eval/mmlu_anatomy.acc-think") == 0.5 and folder.last("eval/mmlu_anatomy.chance") == 0.25
    assert folder.last("eval/mmlu_anatomy.items") == 100 and folder.last("eval/mmlu_anatomy.items-think") == 10
    assert log_scores(folder, 600, [replace(thought, n=4)], fewer=False) == {"mmlu_anatomy (think)": 10}


def test_the_table_is_an_artifact_of_the_run(uri: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (run,) = client.search_runs(
        [client.get_experiment_by_name("demo").experiment_id], "tags.kind = 'train' and tags.rung = '54k'"
    )
    tables = [a.path for a in client.list_artifacts(run.info.run_id, "eval")]
    assert tables == ["eval/scores-v1.json", "eval/scores-v2.json"]  # one for each set of bundles
    assert run.data.tags["eval.scores"] == "v2"


def test_scored_runs_stay_in_fits_of_the_loss(uri: str) -> None:
    """One of the two runs has a table of scores: the loss of both was measured on the same text."""
    runs = training_runs(uri, "demo")
    assert len({run_facts(run, "final/val_loss").evaluation for run in runs}) == 1
    assert {run_facts(run, "eval/mmlu_anatomy.acc").evaluation for run in runs} == {"", "v2"}


def test_published_and_filtered_metrics_are_shown_and_one_number_once() -> None:
    names = ["eval/nq_open.exact_match-remove_whitespace", "eval/pile_arxiv.bits_per_byte", "eval/pile_arxiv.bpb",
             "eval/winogender.acc_male", "eval/other.acc_male", "eval/t.bpb", "eval/t.bpb_stderr", "eval/t.items"]  # fmt: skip
    assert shown(dict.fromkeys(names, 1.0)) == [
        ("nq_open", "exact_match-remove_whitespace"),
        ("pile_arxiv", "bits_per_byte"),
        ("t", "bpb"),
        ("winogender", "acc_male"),
    ]


def test_categories_are_the_papers() -> None:
    names = ["mmlu_law", "bigbench_x", "pile_cc", "race_h", "fever_3way", "triviaqa", "piqa", "winogender", "my_task"]
    found = [category_of(n) for n in names]
    assert len(set(found)) == len(names) and found[-1] == "Other tasks" and found[0] == "MMLU"
    assert category_of("bigbench_gender_x") == "BIG-bench" and category_of("our_mmlu") == "MMLU"


def test_a_task_names_its_category_and_a_group_has_its_members() -> None:
    assert category_of("my_quiz", "common_sense") == "Common sense" and category_of("mmlu_law", "Own") == "Own"
    assert category_of("knowledge", "like mmlu_law") == "MMLU" and category_of("both", "like first") == "Other tasks"
