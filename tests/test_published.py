"""Proves that every published or reference fit in the shared scaling data is reproduced by `gopher fit`.

Each record is fitted by the command itself, from its words to the JSON that it prints (in this process; one record in a
process of its own). The data are not part of the repository: without the folder `shared/scaling_data` beside it the
tests are skipped.
"""

import contextlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sweeps.cli import run_verb

DATA = Path(__file__).parents[2] / "shared" / "scaling_data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="shared/scaling_data is not beside the repository")
FAST = {"bootstrap": 0, "holdout": 0, "sensitivity": False}


def word(value):
    """A value in the grammar of Hydra's overrides."""
    if isinstance(value, str):
        return '"' + value.replace('"', '\\"') + '"'
    if isinstance(value, dict):
        names = [k.replace(":", "\\:") for k in value]
        return "{" + ", ".join(f"{k}: {word(v)}" for k, v in zip(names, value.values(), strict=True)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(word(v) for v in value) + "]"
    return "null" if value is None else repr(value).lower() if isinstance(value, bool) else repr(value)


def words(file, **values):
    points = [str(DATA / f) for f in file] if isinstance(file, list) else str(DATA / file)
    return [f"{k}={word(v)}" for k, v in {"format": "json", "points": points, **FAST, **values}.items()]


def run(file, **values):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run_verb("fit", words(file, **values)) == 0
    return json.loads(out.getvalue())


def expected(record):
    return next(r for r in json.loads((DATA / "expected_dev.json").read_text()) if r["id"] == record)["expected"]


def assert_approach3(found, want):
    p = found["params"]
    assert found["law"] == "chinchilla" and found["n_points"] == want["n"]
    assert found["objective"] <= want["objective_sum_huber_log_delta1e3"] * (1 + 1e-6)
    assert math.isclose(p["A"], want["A"], rel_tol=0.02) and math.isclose(p["B"], want["B"], rel_tol=0.03)
    assert abs(p["E"] - want["E"]) < 0.003
    assert abs(p["alpha"] - want["alpha"]) < 0.002 and abs(p["beta"] - want["beta"]) < 0.002
    assert abs(found["derived"]["a_opt"] - want["a_opt"]) < 0.002
    assert found["optimum"]["grad_norm"] < 1e-5 and found["verdict"]["identified"]


@pytest.mark.parametrize(
    ("record", "file", "where"),
    [
        ("besiroglu240_huber", "chinchilla_epoch.csv", "split=='fit240'"),
        ("chinchilla_all245", "chinchilla_epoch.csv", ""),
        ("a3:epochai_chinchilla/massivetext/chinchilla", "isoflops_openathena.csv", "split=='keep'"),
    ],
)
def test_approach_3(record, file, where):
    assert_approach3(run(file, law="chinchilla", where=where), expected(record))


def test_l1_limit():
    want = expected("besiroglu240_l1")
    found = run("chinchilla_epoch.csv", law="chinchilla", where="split=='fit240'", delta=1e-7, fallback=False)
    p = found["params"]
    assert math.isclose(p["A"], want["A"], rel_tol=0.005) and math.isclose(p["B"], want["B"], rel_tol=0.005)
    assert abs(p["E"] - want["E"]) < 5e-4
    assert abs(p["alpha"] - want["alpha"]) < 3e-4 and abs(p["beta"] - want["beta"]) < 3e-4
    assert found["scatter"]["sum_abs_log"] <= 1.1294950


def test_bootstrap_intervals_and_standard_errors():
    want = expected("besiroglu240_bootstrap4000")
    found = run("chinchilla_epoch.csv", law="chinchilla", where="split=='fit240'", bootstrap=4000)
    for name, error in want["SE"].items():
        assert math.isclose(found["standard_errors"][name], error, rel_tol=0.1)
    for name, tolerance in {"E": 0.004, "alpha": 0.005, "beta": 0.006}.items():
        for got, end in zip(found["ci"][name]["95"], want["CI95"][name], strict=True):
            assert abs(got - end) < tolerance
    assert found["resampling"] == {"method": "pairs", "resamples": 4000, "seed": 0}


@pytest.mark.slow
def test_bootstrap_on_the_published_resamples():
    """The same 4,000 resamples as the published study (numpy's legacy generator, row numbers of the whole file)."""
    from analysis.bootstrap import interval, pairs
    from analysis.estimate import estimate
    from analysis.laws import law_named
    from analysis.points import points_from_file

    want = expected("besiroglu240_bootstrap4000")
    points = points_from_file(DATA / "chinchilla_epoch.csv", "split=='fit240'")
    rows = np.array([p.row for p in points])
    draw, in_file = np.random.RandomState(42), np.sort(rows)
    drawn = [draw.choice(in_file, size=240, replace=True) for _ in range(4000)]
    counts = np.stack([np.bincount(d, minlength=245)[rows] for d in drawn])
    e = estimate(law_named("chinchilla"), points, delta=1e-3)
    values = pairs(e, 4000, 0, counts).quantities(e)
    for name, error in want["SE"].items():
        assert math.isclose(float(values[name].std()), error, rel_tol=0.003)
        low, high = interval(values[name], 95)
        assert math.isclose(low, want["CI95"][name][0], rel_tol=0.01) and math.isclose(
            high, want["CI95"][name][1], rel_tol=0.003
        )


@pytest.mark.parametrize(("where", "key"), [("", "expected_all"), ("split=='keep'", "expected_keep")])
def test_approach_2(where, key):
    records = json.loads((DATA / "expected_dev.json").read_text())
    want = next(r for r in records if r["id"].startswith("a2:"))[key]
    found = run("isoflops_openathena.csv", law="approach2", where=where)
    for name in ("N_exponent", "D_exponent"):
        assert abs(found["params"][name] - want[name]) < 1e-3
    for name in ("N_coef", "D_coef"):
        assert math.isclose(found["params"][name], want[name], rel_tol=0.01)
    assert sum(row["kept"] for row in found["tables"]["isoflop"]) == want["budgets"]


PUBLISHED_C4 = {
    "A": math.exp(6.255414),
    "B": math.exp(7.3049974),
    "E": math.exp(0.6254804),
    "alpha": 0.3526596,
    "beta": 0.3526596,
    "R_D": 15.387756,
    "R_N": 5.309743,
}


def test_data_constrained_at_the_published_point():
    targets = [
        {"params": 6.34e9, "tokens": 242e9, "unique_tokens": 25e9},
        {"params": 8.67e9, "tokens": 178e9, "unique_tokens": 25e9},
    ]
    found = run(
        "datablations_c4.csv", law="data_constrained", where="split=='fit182'", pinned=PUBLISHED_C4, targets=targets
    )
    want = expected("muennighoff_eval")
    assert [p["mean"] for p in found["predictions"]] == pytest.approx(list(want.values()), abs=1e-10)
    assert abs(found["objective"] - expected("muennighoff_fit_local")["objective_at_published"]) < 1e-8


def test_published_repetition_constants_are_found_to_be_one_of_several_minima():
    pinned = {k: v for k, v in PUBLISHED_C4.items() if k not in ("R_D", "R_N")}
    found = run("datablations_c4.csv", law="data_constrained", where="split=='fit182'", pinned=pinned)
    assert found["objective"] < expected("muennighoff_fit_local")["objective_at_published"] * (1 - 1e-3)
    assert not found["verdict"]["identified"]
    assert any("two minima" in reason for reason in found["verdict"]["reasons"])


@pytest.mark.slow
def test_data_constrained_fit_says_that_excess_parameters_are_not_determined():
    found = run("datablations_c4.csv", law="data_constrained", where="split=='fit182'")
    assert not found["verdict"]["identified"] and any("R_N" in r for r in found["verdict"]["reasons"])


GADRE = {
    "law": "two_step",
    "task": {
        "step1": "overtraining",
        "step2": "exponential",
        "step1_where": "(token_multiplier==20 and params_total<1e9) or (token_multiplier==320 and params_total<2e7)",
        "step2_where": "(token_multiplier==20 and params_total<2e9) or (token_multiplier==320 and params_total<2e7)",
        "target": "(token_multiplier==640 and params_total>1e9) or params_total>2e9",
    },
}
SEVENTEEN = (  # noqa: SIM905
    "bigbench_operators pubmed_qa_labeled hellaswag_zeroshot boolq arc_easy coqa bigbench_dyck_languages lambada_openai "
    "bigbench_novel_concepts winograd bigbench_cs_algorithms commonsense_qa bigbench_qa_wikidata hellaswag copa squad piqa"
).split()


@pytest.mark.parametrize(
    ("score", "key"),
    [([f"acc:{t}" for t in SEVENTEEN], "err17"), pytest.param("acc:*", "err46", marks=pytest.mark.slow)],
)
def test_overtraining_and_loss_to_error(score, key):
    want = expected("gadre_rpj")
    found = run("gadre_overtraining.csv", **{**GADRE, "task": {**GADRE["task"], "score": score}})
    assert abs(-2 * found["params"]["eta"] - want["exponent"]) < 5e-4 and abs(found["params"]["E"] - want["E"]) < 2e-3
    rows = {(row["run"], row["step"]): row for row in found["tables"]["targets"]}
    for run_id, name in {"rpj-open_lm_1b-32.0": "open_lm_1b M=640", "rpj-open_lm_7b-1.0": "open_lm_7b M=20"}.items():
        assert abs(100 * abs(rows[run_id, "loss"]["relative_error"]) - want["pred"][name]["loss_relerr"]) < 0.002
        assert (
            abs(100 * abs(rows[run_id, "chained score"]["relative_error_of_error"]) - want["pred"][name][key]) < 0.002
        )


MMLU = {
    "mmlu_stem_test": 0.215,
    "mmlu_humanities_test": 0.335,
    "mmlu_social_sciences_test": 0.219,
    "mmlu_other_test": 0.231,
}


@pytest.mark.parametrize(
    "task",
    [
        "mmlu_avg_test",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("hellaswag_val", "piqa_val", "openbookqa_test")),
    ],
)
def test_two_step_ladder(task):
    want = expected(f"olmo_{task}_5shot")
    parts = MMLU if task.startswith("mmlu") else {task: 1.0}
    weights = {kind: {f"{kind}:{name}_rc_5shot": w for name, w in parts.items()} for kind in ("bpb", "acc")}
    found = run(
        ["olmo_ladder_fit_bpb.csv", "olmo_ladder_fit_acc.csv"],
        law="two_step",
        task={"loss": weights["bpb"], "score": weights["acc"], "target": "run_id.str.startswith('peteish')"},
    )
    rows = {row["step"]: row for row in found["tables"]["targets"] if row["run"] == "peteish13_eval_final"}
    for step, name in {
        "loss": "step1_main",
        "score from actual loss": "step2_main",
        "chained score": "chained_main",
    }.items():
        assert abs(rows[step]["actual"] - want[f"{name}:Actual"]) < 1e-6
        assert abs(rows[step]["predicted"] - want[f"{name}:Pred"]) < 1e-4
    assert abs(found["tables"]["steps"][0]["mean_relative_error"] - want["step1_main:Fit Error"]) < 1e-6


def test_broken_power_law_beyond_its_break():
    want = expected("bnsl_4digit")
    found = run(
        "bnsl_4digit_addition.csv",
        law="bnsl",
        x="tokens",
        where="split=='fit'",
        targets=[{"tokens": t} for t in (800, 864, 928)],
    )
    for name in ("c0", "c1", "d1", "f1"):
        assert math.isclose(found["params"][name], want[name], rel_tol=0.05)
    assert math.isclose(2 * found["objective"], want["sse_log"], rel_tol=0.05)
    actual = np.array([0.75856477, 0.64768338, 0.55695445])

    def miss(result):
        return float(np.sqrt(np.mean(np.log(np.array([p["mean"] for p in result["predictions"]]) / actual) ** 2)))

    assert math.isclose(found["scatter"]["rms_log"], want["rmsle_train"], rel_tol=0.05)
    assert math.isclose(miss(found), want["rmsle_extrapolate"], rel_tol=0.05)
    plain = run(
        "bnsl_4digit_addition.csv",
        law="power_law_offset",
        x="tokens",
        where="split=='fit'",
        targets=found["settings"]["targets"],
    )
    assert math.isclose(miss(plain), want["plain_power_law_offset_rmsle_extrapolate"], rel_tol=0.05)


def test_dense_ladder_and_its_hold_outs():
    want = expected("dm_dense_ladder")
    found = run(
        "dm_routing_final.csv", where="family=='Dense' and params_total==dense_params", law="auto", holdout=None
    )
    assert found["law"] == "power_law_offset" and found["verdict"]["identified"]
    assert (
        abs(found["params"]["E"] - want["fit6"]["E"]) < 0.03
        and abs(found["params"]["alpha"] - want["fit6"]["alpha"]) < 0.003
    )
    straight = next(c for c in found["candidates"] if c["law"] == "power_law")
    assert abs(straight["params"]["alpha"] - want["no_offset_alpha"]) < 0.003
    errors = {(h["law"], h["fitted_rungs"]): h["error_percent"] for h in found["holdout"] if h["rung"] == "1.31B"}
    for rungs, key in {5: "hold_out_1p3B_from_5", 4: "from_4"}.items():
        assert abs(errors["power_law_offset", rungs] - want[key]["offset_pct"]) < 0.05
        assert abs(errors["power_law", rungs] - want[key]["no_offset_pct"]) < 0.05


def test_the_installed_command_prints_one_json_object_and_nothing_else():
    told = words("chinchilla_epoch.csv", law="chinchilla", where="split=='fit240'")
    done = subprocess.run([sys.executable, "-m", "sweeps.cli", "fit", *told], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert_approach3(json.loads(done.stdout), expected("besiroglu240_huber"))
