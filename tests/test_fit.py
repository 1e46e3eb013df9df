"""Proves the shape and the bytes of a result: Python and command give the same JSON, choices are made on hold-outs and said."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from scaling import ladder, study

from analysis.command import print_result, request_from, run_fit
from analysis.findings import findings, prediction_sentence
from analysis.fit import FitSettings, dumps, fit, to_json
from analysis.points import points_from_file
from analysis.rows import Points
from gopher.errors import UsageError

KEYS = (
    "law",
    "params",
    "objective",
    "n_points",
    "excluded",
    "optimum",
    "ci",
    "verdict",
    "holdout",
    "data_sha256",
    "versions",
    "points",
)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "study.csv"
    points = study(np.random.default_rng(1), noise=0.004, sizes=8, ratios=5)
    lines = [f"{p.run_id},{p.params_total!r},{p.tokens!r},{p.flops!r},{p.loss!r}" for p in points]
    path.write_text("\n".join(["run_id,params_total,tokens,flops,loss", *lines[::-1]]) + "\n")
    return path


def test_json_has_every_part_and_python_gives_the_same_bytes(csv):
    values = {"points": str(csv), "law": "chinchilla", "bootstrap": 100, "targets": [{"flops": 1e22}]}
    text = dumps(to_json(run_fit(request_from(values))))
    settings = FitSettings(law="chinchilla", bootstrap=100, targets=({"flops": 1e22},))
    assert text == dumps(to_json(fit(points_from_file(csv), settings)))
    found = json.loads(text)
    assert all(key in found for key in KEYS)
    assert set(found["optimum"]) >= {"start_share", "runner_up", "grad_norm", "condition"}
    assert (
        set(found["ci"]["alpha"]) == {"80", "95"}
        and found["ci"]["alpha"]["95"][0] < found["params"]["alpha"] < found["ci"]["alpha"]["95"][1]
    )
    assert found["verdict"]["identified"] is True and found["verdict"]["reasons"] == []
    assert set(found["holdout"][0]) >= {"rung", "predicted", "actual", "interval95", "decades", "baselines"}
    assert found["n_points"] == 40 == len(found["points"]) and len(found["data_sha256"]) == 64
    prediction = found["predictions"][0]
    assert (
        prediction["intervals"]["95"][0]
        < prediction["intervals"]["50"][0]
        < prediction["mean"]
        < prediction["intervals"]["80"][1]
    )
    assert prediction["derived_ci"]["tokens_per_parameter"]["95"][0] < prediction["derived"]["tokens_per_parameter"]


def test_row_order_changes_nothing(csv, tmp_path):
    head, *rows = csv.read_text().splitlines()
    (tmp_path / csv.name).write_text("\n".join([head, *sorted(rows, reverse=True)]) + "\n")
    values = {"law": "chinchilla", "bootstrap": 60, "holdout": 0, "sensitivity": False}
    one, two = (to_json(run_fit(request_from({"points": str(p), **values}))) for p in (csv, tmp_path / csv.name))
    for found in (one, two):
        found["points"] = [{k: v for k, v in p.items() if k != "row"} for p in found["points"]]
    assert dumps(one) == dumps(two)


def test_no_bootstrap_gives_no_intervals(csv):
    found = run_fit(request_from({"points": str(csv), "law": "chinchilla", "bootstrap": 0, "holdout": 0}))
    assert found.ci == {} and found.holdout == () and found.resampling == "none" and found.samples.shape == (0, 5)


def test_sensitivity_table_says_what_else_could_have_been_chosen(csv):
    rows = run_fit(request_from({"points": str(csv), "law": "chinchilla", "bootstrap": 0, "holdout": 0})).sensitivity
    assert [r["what"] for r in rows] == [
        "as fitted",
        *["Huber delta"] * 3,
        *["outlier rule"] * 3,
        *["law"] * (len(rows) - 7),
    ]
    assert [r["setting"] for r in rows[-2:]] == ["chinchilla_tied", "flops"]
    assert rows[3]["setting"] == "least squares" and rows[4]["n_points"] == 39


def test_auto_chooses_by_hold_out_and_says_so():
    result = fit(ladder(np.random.default_rng(2), noise=0.0008), FitSettings(bootstrap=100))
    assert result.law == "power_law_offset" and result.requested == "auto" and result.x == "params"
    chosen = [c for c in result.candidates if c.chosen]
    assert [c.law for c in chosen] == ["power_law_offset"] and "hold-out error" in chosen[0].reason
    other = next(c for c in result.candidates if not c.chosen)
    assert other.holdout_rmse_log > chosen[0].holdout_rmse_log
    assert result.also[0].x == "flops" and {h.law for h in result.holdout} == {"power_law", "power_law_offset"}
    assert result.holdout[0].law == "power_law_offset"


def test_each_target_of_auto_goes_to_the_law_that_reads_it():
    targets = ({"params": 1e9}, {"flops": 1e20})
    result = fit(ladder(np.random.default_rng(2)), FitSettings(bootstrap=0, targets=targets, sensitivity=False))
    assert [p.inputs for p in result.predictions] == [{"params": 1e9}] and result.settings.targets == targets
    assert [p.inputs for p in result.also[0].predictions] == [{"flops": 1e20}]
    told = " ".join(f.text for f in findings(result).findings)
    assert all(prediction_sentence(p) in told for fitted in (result, result.also[0]) for p in fitted.predictions)
    with pytest.raises(UsageError, match="lacks params"):
        fit(ladder(np.random.default_rng(2)), FitSettings(bootstrap=0, targets=({"tokens": 1e9},)))


def test_auto_on_a_straight_ladder_reports_a_power_law():
    result = fit(ladder(np.random.default_rng(3), noise=0.002, e=1e-9, a=12.0, alpha=0.08), FitSettings(bootstrap=100))
    assert result.law == "power_law" and result.verdict.identified


def test_auto_takes_both_axes_when_both_vary(csv):
    result = fit(points_from_file(csv), FitSettings(bootstrap=50, sensitivity=False))
    assert result.law == "chinchilla" and {c.law for c in result.candidates} == {
        "chinchilla",
        "flops",
        "flops_power_law",
    }


def test_one_floor_for_two_families():

    rng = np.random.default_rng(4)
    dense, sparse = ladder(rng, noise=0.0005), ladder(rng, noise=0.0005, a=25.0, alpha=0.22)
    rows = [
        type(p)(**{**vars(p), "family": f, "run_id": f + p.run_id})
        for f, t in (("dense", dense), ("sparse", sparse))
        for p in t
    ]
    result = fit(Points(rows=tuple(rows)), FitSettings(law="shared_offset", bootstrap=50))
    assert abs(result.params["E"] - 1.7) < 0.05 and abs(result.params["alpha@sparse"] - 0.22) < 0.02
    with pytest.raises(UsageError, match="shares E over families and the points have 1"):
        fit(dense, FitSettings(law="shared_offset"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"law": "chincilla"}, "law is 'chincilla'; did you mean 'chinchilla'"),
        ({"low": "auto"}, "'low' is no setting of fit; did you mean 'law'"),
        ({"bootstrap": "many"}, "bootstrap is 'many'; give a number"),
        ({"bootstrap": -1}, "bootstrap is -1; give the number of resamples"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 up"),
        ({"holdout": -2}, "holdout is -2; give how many of the largest rungs are held out"),
        ({"holdout": math.inf}, "holdout is inf; give a number"),
        ({"targets": [{"params": 0, "tokens": 1e9}]}, "targets has params = 0, which no run can have"),
        ({"targets": [{"flops": -5}]}, "targets has flops = -5, which no run can have"),
        ({"targets": [{"flops": math.nan}]}, "targets has flops = nan, which no run can have"),
        ({"law": "chinchilla", "pinned": {"alpha": math.nan}}, "pinned.alpha is nan; pin it to a number"),
        ({"delta": 0}, "delta is 0.0; give a positive Huber width"),
        ({"parameters": "all"}, "parameters is 'all'; use auto, non_embedding or total"),
        ({"law": "chinchilla", "pinned": {"EE": 1.7}}, "pinned.EE is no parameter of chinchilla; did you mean 'E'"),
        ({"law": "chinchilla", "pinned": {"E": -1}}, "pinned.E is -1.0, and E of chinchilla is positive"),
        ({"law": "data_constrained"}, "reads unique tokens and no point has a positive unique_tokens"),
        ({"law": "chinchilla", "targets": [{"params": 1e9}]}, "lacks tokens, which law chinchilla reads"),
        ({"targets": "1e9"}, "targets is '1e9'; give a list such as"),
        ({"task": {"scores": "x"}}, "task.scores is no setting; did you mean 'score'"),
        ({"law": "two_step"}, "task.score is empty"),
    ],
)
def test_settings_that_mean_nothing_are_refused(csv, values, message):
    with pytest.raises(UsageError, match=message):
        run_fit(request_from({"points": str(csv), "bootstrap": 0, "holdout": 0, "sensitivity": False} | values))
    with pytest.raises(UsageError, match="neither points nor a sweep"):
        run_fit(request_from({}))


def test_points_without_a_logarithm_are_refused():
    found = enumerate(ladder(np.random.default_rng(0)))
    rows = tuple(replace(p, run_id=f"r{i}", loss=0.0 if i == 3 else p.loss) for i, p in found)
    with pytest.raises(UsageError, match="run r3 has loss = 0 and laws are fitted to the logarithm"):
        fit(Points(rows=rows))


def test_table_for_a_terminal(csv):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_result(
        run_fit(request_from({"points": str(csv), "law": "chinchilla", "bootstrap": 50, "targets": [{"flops": 1e22}]})),
        console,
    )
    text = console.export_text()
    console.file.close()
    assert (
        "chinchilla: 40 points of study.csv" in text and "95 % interval" in text and "largest rungs predicted" in text
    )
