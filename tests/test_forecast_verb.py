"""Proves that `gopher forecast` on a table counts only what it knows to have come later, takes no impossible target, and logs where it was told to."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gopher.errors import UsageError
from sweeps.compose import compose, hydra_session
from sweeps.verbs import forecast

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
QUICK = ["law=power_law", "bootstrap=0", "holdout=0", "name=ours"]


def table(path: Path, rows: int = 8, **columns) -> Path:
    """L = 20 / N^0.1 with 0.3 % noise; the eighth row is the target."""
    n = 1e7 * 2.0 ** np.arange(rows)
    loss = 20 * n**-0.1 * np.exp(0.003 * np.random.default_rng(1).standard_normal(rows))
    frame = pd.DataFrame({"run_id": [f"r{i}" for i in range(rows)], "params_total": n, "tokens": 1e9, "loss": loss})
    frame.assign(**columns).to_csv(path, index=False)
    return path


def gopher(folder: Path, *words: str) -> None:
    with hydra_session():
        assert forecast.run(compose, [*words, *QUICK, f"output_root={folder / 'out'}"]) == 0


def record(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict:
    capsys.readouterr()
    gopher(folder, "list", "format=json")
    return json.loads(capsys.readouterr().out)["calibration"]


def test_what_where_hides_is_scored_as_a_backtest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = f"points={table(tmp_path / 'runs.csv')}"
    gopher(tmp_path, "freeze", points, "where='params_total<1e9'", "target.params_total=1.28e9")
    gopher(tmp_path, "score", points)
    found = record(tmp_path, capsys)
    assert (found["scored"], found["backtests"], found["pending"]) == (0, 1, 0)


@pytest.mark.parametrize(("ended", "scored"), [("2999-01-01T00:00:00", 1), ("2001-01-01", 0), (None, 0)])
def test_a_later_table_scores_a_forecast_when_it_says_that_the_run_ended_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended: str | None, scored: int
) -> None:
    gopher(tmp_path, "freeze", f"points={table(tmp_path / 'runs.csv', 7)}", "target.params_total=1.28e9")
    gopher(tmp_path, "score", f"points={table(tmp_path / 'later.csv', finished_at=ended)}")
    found = record(tmp_path, capsys)
    assert (found["scored"], found["backtests"]) == (scored, 1 - scored)


def test_forecasts_of_another_metric_wait_for_theirs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gopher(tmp_path, "freeze", f"points={table(tmp_path / 'runs.csv', 7)}", "target.params_total=1.28e9")
    gopher(tmp_path, "score", f"points={table(tmp_path / 'other.csv', loss_name='val_bpb')}")
    assert "is of loss and these points hold val_bpb" in capsys.readouterr().err
    assert record(tmp_path, capsys)["pending"] == 1


def test_a_table_is_logged_to_the_store_that_is_named_and_to_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["freeze", f"points={table(tmp_path / 'runs.csv', 7)}", "target.params_total=1.28e9"]
    gopher(tmp_path, *words)
    path = Path(capsys.readouterr().err.partition("forecast: ")[2].strip())
    assert path.is_file() and not (tmp_path / "out" / "mlflow.db").exists()
    gopher(tmp_path, *words, f"tracking.uri=sqlite:///{tmp_path / 'own.db'}")
    assert (tmp_path / "own.db").is_file() and list((tmp_path / "out" / "mlartifacts").rglob(path.name))


@pytest.mark.parametrize("size", ["abc", "-1", "0", "nan", "inf"])
def test_sizes_that_no_run_can_have_are_refused(tmp_path: Path, size: str) -> None:
    with pytest.raises(UsageError, match=r"target.params_total is .*give a number above 0"):
        gopher(tmp_path, "freeze", f"points={table(tmp_path / 'runs.csv')}", f"target.params_total={size}")
