"""Proves that a table becomes points without loss, and that anything that cannot be right ends in one sentence with the value and the cure."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.table import MAX_POINTS, points_from_file, points_from_frame, size_name
from gopher.errors import UsageError


def ladder(rows=6, **columns):
    n = 1e7 * 2.0 ** np.arange(rows)
    frame = pd.DataFrame(
        {
            "run_id": [f"r{i}" for i in range(rows)],
            "params_total": n,
            "tokens": 20 * n,
            "flops": 120 * n * n,
            "loss": 1.7 + 400 * n**-0.34,
        }
    )
    return frame.assign(**columns)


def broken(column, row, value):
    frame = ladder()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame.infer_objects()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (ladder().drop(columns="loss"), "no column 'loss'; map one with columns.loss="),
        (broken("loss", 2, math.nan), r"row 3 \(r2\) has loss = nan, which is missing"),
        (broken("loss", 2, math.inf), r"row 3 \(r2\) has loss = inf, which is not finite"),
        (broken("loss", 1, -0.5), r"loss = -0.5, which is not above 0"),
        (broken("loss", 1, 0.0), r"loss = 0, which is not above 0"),
        (broken("loss", 4, "diverged"), "row 5 has loss = 'diverged', which is not a number"),
        (broken("params_total", 0, 0.0), "params_total = 0, which is not a positive finite number"),
        (broken("tokens", 0, -5.0), "tokens = -5, which is not a positive finite number"),
        (broken("flops", 0, math.inf), "flops = inf, which is not a positive finite number"),
        (
            ladder(tokens=0.2),
            r"tokens = 0.2, which is below params_total \(1e\+07\) / 1000, so one of the two is in another unit",
        ),
        (
            ladder(params_total=ladder()["params_total"] / 1e9),
            r"params_total = 0.01, which is below tokens \(2e\+08\) / 1,000,000, so one of the two is in another unit",
        ),
        (broken("loss", 3, 2071.0), r"loss = 2071, which is above 100, more than any loss per token"),
        (
            ladder(loss_name=["val_bpb", None, ""] * 2),
            r"row 2 \(r1\) has no loss_name and others have 'val_bpb' \(4 of 6 rows have none\), so units may be mixed",
        ),
        (ladder(loss_name=["val_nats", "val_bpb"] * 3), "mixes loss_name val_bpb, val_nats, which are different units"),
        (ladder(loss_name=["val_nats", "train_nats"] * 3), "which are different evaluations"),
        (pd.concat([ladder(), ladder()]), r"row 7 \(r0\) repeats an earlier one \(6 duplicate row"),
        (pd.concat([ladder(), ladder()]).drop(columns="run_id"), "duplicate row"),
        (ladder(rows=1), r"leaves 1 point\(s\) after filtering; a law needs at least 2"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(frame, message):
    with pytest.raises(UsageError, match=message) as caught:
        points_from_frame(frame)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_bad_rows_can_be_left_out_by_name():
    frame = pd.concat([broken("loss", 2, math.nan), ladder().iloc[[0]]])
    points = points_from_frame(frame, bad_rows="exclude")
    assert len(points) == 5
    assert {e.run_id: e.reason for e in points.excluded} == {
        "r2": "loss = nan is missing",
        "r0": "duplicate of an earlier row of the same run",
    }
    with pytest.raises(UsageError, match="bad_rows is 'ignore'"):
        points_from_frame(ladder(), bad_rows="ignore")


def test_a_million_rows_are_refused_and_can_be_filtered(tmp_path):
    size = 1_000_000
    frame = pd.DataFrame(
        {"run_id": np.arange(size), "params_total": 1e6 + np.arange(size), "loss": 3.0, "step": np.arange(size) % 5000}
    )
    path = tmp_path / "big.parquet"
    frame.to_parquet(path)
    with pytest.raises(UsageError, match=f"gives 1,000,000 rows and a law is fitted to at most {MAX_POINTS:,}"):
        points_from_file(path)
    assert len(points_from_file(path, where="step == 4999")) == 200


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        points_from_file(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UsageError, match="cannot be read as a table"):
        points_from_file(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("run_id,loss\n")
    with pytest.raises(UsageError, match="a header and no rows"):
        points_from_file(tmp_path / "header.csv")
    (tmp_path / "noise.parquet").write_bytes(b"not parquet")
    with pytest.raises(UsageError, match="cannot be read as a table"):
        points_from_file(tmp_path / "noise.parquet")


def test_csv_parquet_and_frame_give_the_same_points(tmp_path):
    frame = ladder(seed=0)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    tables = [
        points_from_file(tmp_path / "a.csv"),
        points_from_file(tmp_path / "a.parquet"),
        points_from_frame(frame.sample(frac=1, random_state=1)),
    ]
    assert len({t.sha256 for t in tables}) == 1
    assert [[p.run_id for p in t] for t in tables] == [[f"r{i}" for i in range(6)]] * 3


def test_columns_are_mapped_and_misspellings_met_with_a_suggestion():
    frame = ladder().rename(columns={"loss": "eval_ce", "params_total": "n"})
    points = points_from_frame(frame, columns={"loss": "eval_ce", "params_total": "n"})
    assert points.column("params_total")[0] == 1e7
    with pytest.raises(UsageError, match="columns.loss is 'eval_cee', which is not in frame; did you mean 'eval_ce'"):
        points_from_frame(frame, columns={"loss": "eval_cee"})
    with pytest.raises(UsageError, match="columns.los is not a column of the run table; did you mean 'loss'"):
        points_from_frame(frame, columns={"los": "eval_ce"})


def test_where_filters_on_columns_and_on_pairs_in_the_note():
    frame = ladder(note=[f"lr={10.0**-i};kind=a{i % 2}" for i in range(6)])
    assert len(points_from_frame(frame, where="lr < 0.05 and kind == 'a1'")) == 2
    with pytest.raises(UsageError, match="no row of frame .6 rows. satisfies it"):
        points_from_frame(frame, where="loss > 99")
    with pytest.raises(UsageError, match="cannot be evaluated on frame .name 'los' is not defined"):
        points_from_frame(frame, where="los > 1")


def test_metrics_are_picked_from_a_long_table():
    long = pd.concat([ladder(metric_name=m, metric_value=v) for m, v in (("acc:a", 0.4), ("acc:b", 0.7))])
    assert len(points_from_frame(long)) == 6  # one loss a run, however many metric rows
    assert set(points_from_frame(long, metric="acc:b").column("loss")) == {0.7}
    with pytest.raises(UsageError, match="no such metric_name; did you mean 'acc:a'"):
        points_from_frame(long, metric="acc:aa")


def test_a_metric_that_has_no_logarithm_is_refused():
    frame = ladder(metric_name="acc", metric_value=[0.0, 0.2, 0.3, 0.4, 0.5, -1.0])
    with pytest.raises(
        UsageError, match=r"acc = 0, which is not above 0, and laws are fitted to the logarithm \(2 such"
    ):
        points_from_frame(frame, metric="acc")
    assert len(points_from_frame(frame, metric="acc", bad_rows="exclude")) == 4


def test_unfinished_rows_and_other_evaluations_are_left_out_by_name():
    frame = ladder(8, state=["finished", "running", "FINISHED", "failed", None, *["finished"] * 3])
    frame = frame.assign(eval_version=[*"22222221"])
    frame.loc[1, "loss"] = math.nan
    points = points_from_frame(frame)
    assert [p.run_id for p in points] == ["r0", "r2", "r4", "r5", "r6"]
    assert {e.run_id: e.reason.partition(" differs")[0] for e in points.excluded} == {
        "r1": "state is running",
        "r3": "state is failed",
        "r7": "evaluation version 1",
    }


def test_a_filter_says_how_many_rows_it_left_out():
    few = points_from_frame(ladder(), where="params_total > 3e7")
    assert few.remarks == ('where="params_total > 3e7" leaves out 2 of 6 rows',) and few.notes == ()
    assert points_from_frame(ladder(), where="params_total > 3").remarks == ()


def search(**columns):
    """Six sizes at four learning rates and three batch sizes, best at 2e-3 and 64, named in notes."""
    rows = [
        (lr, batch, ladder()["loss"] * (1 + 0.1 * (math.log2(lr / 2e-3) ** 2 + math.log2(batch / 64) ** 2)))
        for lr in (1e-3, 2e-3, 4e-3, 8e-3)
        for batch in (32, 64, 128)
    ]
    parts = [ladder(loss=v, note=f"lr={lr};bs={b}", run_id=[f"{lr}-{b}-{i}" for i in range(6)]) for lr, b, v in rows]
    return pd.concat(parts).assign(**columns)


def test_a_search_over_settings_is_noticed_and_can_be_resolved_from_the_notes():
    (note,) = points_from_frame(search()).notes
    assert note.startswith("6 design(s) have up to 12 runs each whose losses differ by up to 50 %")
    points = points_from_frame(search(), columns={"learning_rate": "lr", "batch_tokens": "bs"})
    assert {(p.learning_rate, p.batch_tokens) for p in points} == {(2e-3, 64.0)}
    assert len(points) == 6 and len(points.excluded) == 66 and points.notes == ()
    reasons = {e.reason.partition(" is not")[0] for e in points.excluded}
    assert {"learning rate 0.001", "batch 32", "batch 128"} <= reasons
    with pytest.raises(UsageError, match="columns.learning_rate is 'rate', which is not in frame"):
        points_from_frame(search(), columns={"learning_rate": "rate"})
    narrow = search()[lambda t: t["note"].str.contains("bs=64|bs=128|bs=32") & ~t["note"].str.contains("lr=0.001")]
    with pytest.raises(UsageError, match="best learning rate 0.002 is the smallest of its grid"):
        points_from_frame(narrow, columns={"learning_rate": "lr", "batch_tokens": "bs"})


def test_seeds_are_no_search():
    parts = [
        ladder(seed=s, loss=ladder()["loss"] * (1 + 0.002 * s), run_id=[f"{s}-{i}" for i in range(6)]) for s in range(6)
    ]
    assert points_from_frame(pd.concat(parts)).notes == ()


def test_the_best_learning_rate_stands_for_its_rung():
    parts = [
        ladder(learning_rate=lr, loss=ladder()["loss"] + (lr - best) ** 2 * 1e4, run_id=[f"{lr}-{i}" for i in range(6)])
        for lr, best in ((1e-3, 2e-3), (2e-3, 2e-3), (4e-3, 2e-3))
    ]
    points = points_from_frame(pd.concat(parts))
    assert {p.learning_rate for p in points} == {2e-3} and len(points.excluded) == 12
    assert "not the best of its rung (0.002" in points.excluded[0].reason
    worst = pd.concat(parts[1:] + [ladder(learning_rate=8e-3, loss=9.0, run_id=[f"w{i}" for i in range(6)])])
    with pytest.raises(UsageError, match="at least 2"):
        points_from_frame(worst)  # the best rate is the smallest of three at every rung: nothing was bracketed


def rounded_search(**columns):
    """Three batches whose tokens are rounded to whole batches, the middle one best in loss and worst in score."""
    parts = [
        ladder(batch_tokens=b, tokens=ladder()["tokens"] * (1 + shift), loss=ladder()["loss"] + worse, run_id=[f"{b}-{i}" for i in range(6)])
        for b, shift, worse in ((32, 0.0, 0.1), (64, 0.004, 0.0), (128, -0.006, 0.2))
    ]  # fmt: skip
    return pd.concat(parts).assign(**columns)


def test_a_search_over_batches_is_one_design_though_tokens_are_rounded_to_them():
    points = points_from_frame(rounded_search())
    assert {p.batch_tokens for p in points} == {64.0} and len(points) == 6 and len(points.excluded) == 12


@pytest.mark.parametrize(("metric", "best"), [("acc", 64.0), ("eval/t.bpb", 64.0)])
def test_the_best_setting_has_the_highest_score_or_the_lowest_loss(metric, best):
    frame = rounded_search(metric_name=metric)
    value = frame["loss"] if metric.endswith("bpb") else 1 / frame["loss"]
    points = points_from_frame(frame.assign(metric_value=value), metric=metric)
    assert {p.batch_tokens for p in points} == {best}


@pytest.mark.parametrize(
    ("value", "name"), [(43663872, "43.7M"), (1e9, "1B"), (999.9e6, "1B"), (1234, "1.23k"), (54_000, "54k")]
)
def test_rungs_without_a_name_are_called_by_their_size(value, name):
    assert size_name(value) == name


def test_flops_are_derived_by_a_named_convention_only_where_none_are_given():
    frame = pd.DataFrame({"params_total": [1e8, 2e8], "tokens": [2e9, 4e9], "loss": [3.0, 2.9]})
    derived = points_from_frame(frame).rows
    assert [p.flops for p in derived] == [1.2e18, 4.8e18]
    assert {p.flops_convention for p in derived} == {"6 params_total tokens, derived"}
    empty = points_from_frame(frame.assign(flops=[None, math.nan])).rows
    assert [p.flops for p in empty] == [1.2e18, 4.8e18]
    given = points_from_frame(frame.assign(flops=[1e18, 5e18])).rows
    assert [(p.flops, p.flops_convention) for p in given] == [(1e18, None), (5e18, None)]
