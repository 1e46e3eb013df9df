"""Proves that `gopher suggest` ranks the runs of a plan at what runs cost there, the runs of a file, and refuses what is no budget."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from logged_study import finished_folder
from studies import TINY, write_text

from gopher.errors import UsageError
from gopher.size import train_flops
from sweeps.candidates import next_seed
from sweeps.compose import compose, hydra_session
from sweeps.study import load_study
from sweeps.track import Tracker
from sweeps.verbs import suggest

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
DONE = ("54k", "121k", "268k")
QUICK = ["law=power_law", "bootstrap=0", "holdout=0", "sensitivity=false", "format=json"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A plan of four rungs, seeds 0 and 1 on the smallest; three rungs were run with seed 0, an hour for 1e12 FLOPs."""
    root = tmp_path_factory.mktemp("study")
    text = write_text(root / "text")
    words = ["sweep=demo", "data=local", f"data.path={text}", "rungs=[54k,121k,268k,601k]", "extra_seeds={54k: [1]}"]
    words += [*TINY, f"output_root={root / 'out'}"]
    with hydra_session():
        study = load_study(compose, words)
    folders = []
    for run in study.runs:
        if run.spec.rung in DONE and run.spec.seed == 0:
            folder = finished_folder(root / "out", run.spec)
            state = folder.state()
            assert state is not None
            folder.write_state(replace(state, train_seconds=3600 * train_flops(run.spec) / 1e12))
            folders.append(folder)
    tracker = Tracker(f"sqlite:///{root / 'out' / 'mlflow.db'}", "demo", root / "out" / "mlartifacts", study.rungs)
    tracker.open_sweep("{}")
    assert tracker.flush(folders, 30) is None
    return words


def advice(words: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    capsys.readouterr()
    with hydra_session():
        assert suggest.run(compose, [*words, "target.rung=1_3m", *QUICK, *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_plans_rungs_and_seeds_are_ranked_by_flops_or_dollars(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    free = advice(words, capsys)
    names = {s["option"]["name"] for s in free["ranking"]}
    assert names == {"54k, seed 1", "121k, seed 1", "268k, seed 1", "601k, seed 0"} and free["unit"] == "FLOPs"
    assert all(s["cost"] == s["option"]["flops"] for s in free["ranking"])
    priced = advice(words, capsys, "cluster.usd_per_cpu_hour=2")
    assert priced["unit"] == "USD"
    for s in priced["ranking"]:
        assert s["cost"] == pytest.approx(2 * s["option"]["flops"] / 1e12)


@pytest.mark.slow
def test_token_counts_of_the_plan_are_options_of_their_own(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w for w in words if not w.startswith("tokens=")]  # the axis says them
    found = advice(words, capsys, "axes.tokens=[24576,49152]", "target.tokens=24576", "rungs=[601k]")
    sizes = {s["option"]["name"]: s["option"]["tokens"] for s in found["ranking"]}
    assert sizes == {"601k at 24.6k tokens, seed 0": 24_576, "601k at 49.2k tokens, seed 0": 49_152}
    with pytest.raises(UsageError, match="planned at 24576, 49152 tokens; say which with target.tokens"):
        advice(words, capsys, "axes.tokens=[24576,49152]")


@pytest.mark.slow
def test_options_of_a_file_replace_the_plan(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("run_id,params_non_embedding,cost\nmine,1e6,3\nyours,2e5,1\n")
    found = advice(words, capsys, f"options={path}")
    assert {s["option"]["name"] for s in found["ranking"]} == {"mine", "yours"} and found["unit"] == "cost"


def test_a_seed_is_the_first_planned_one_that_was_not_run() -> None:
    assert [next_seed([0, 1], []), next_seed([0, 1], [0]), next_seed([0, 1], [1, 0]), next_seed([3], [3, 7])] == [
        0,
        1,
        2,
        8,
    ]


@pytest.mark.parametrize("budget", ["abc", "-1", "0", "nan"])
def test_what_is_no_budget_is_refused(budget: str) -> None:
    with hydra_session(), pytest.raises(UsageError, match="budget is .*give what may be spent"):
        suggest.run(compose, ["sweep=demo", f"budget={budget}"])


def test_a_rung_of_a_table_is_a_target_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"r{i},{1e7 * 2**i},{20 * (1e7 * 2**i) ** -0.1 * (1 + 0.001 * (-1) ** i)}" for i in range(8)]
    (tmp_path / "runs.csv").write_text("\n".join(["run_id,params_total,loss", *lines]))
    (tmp_path / "mine.csv").write_text("run_id,params_total,cost\na,1e9,2\nb,2e9,9\n")
    words = [f"points={tmp_path / 'runs.csv'}", f"options={tmp_path / 'mine.csv'}", *QUICK]
    with hydra_session():
        assert suggest.run(compose, [*words, "target.rung=1.28B"]) == 0
        assert json.loads(capsys.readouterr().out)["target"] == {"params": 1.28e9}
        with pytest.raises(UsageError, match="the target 9B has no size"):
            suggest.run(compose, [*words, "target.rung=9B"])
