"""Proves that the promised drop in uncertainty is the one that the extra run brings, and that the ranking follows it and the cost."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pictures import joint_fit, ladder_fit, ladder_points

from analysis.design import Option, covariance, gradient_at, suggest
from analysis.fit import FitSettings, fit
from analysis.options import default_options, options_from_file, price
from analysis.rows import Point, Points
from analysis.table import points_from_frame
from gopher.errors import UsageError

TARGET = {"params": 1e7}


def line_points(extra: tuple[float, ...] = (), seed: int = 0) -> Points:
    """L = 20 / N^0.1 with 1 % noise on six sizes and any further ones."""
    rng = np.random.default_rng(seed)
    sizes = [*np.geomspace(1e5, 1e6, 6), *extra]
    rows = tuple(
        Point(
            run_id=f"r{i}",
            rung=f"r{i}",
            loss=float(20 * n**-0.1 * np.exp(0.01 * rng.standard_normal())),
            params_total=n,
            flops=n,
        )
        for i, n in enumerate(sizes)
    )
    return Points(rows=rows)


def line_fit(points: Points):
    return fit(points, FitSettings(law="power_law", bootstrap=0, sensitivity=False, holdout=0))


def test_the_covariance_is_that_of_ordinary_least_squares():
    """For a straight line in log-log the textbook formula is exact; the prior may only add a trace."""
    e = line_fit(line_points()).known_estimate()
    x = np.stack([np.ones(6), -np.log(e.inputs["params"])], 1)
    wanted = np.linalg.inv(x.T @ x)
    assert covariance(e) == pytest.approx(wanted, rel=0.02)


def test_the_promised_drop_is_what_the_run_brings():
    result = line_fit(line_points())
    e = result.known_estimate()
    option = Option(name="new", params=3e6, flops=1.0)
    advice = suggest(result, TARGET, [option])
    goal = gradient_at(e, TARGET, "target")
    x = np.stack([np.ones(7), -np.log([*e.inputs["params"], 3e6])], 1)
    now, after = goal @ np.linalg.inv(x[:6].T @ x[:6]) @ goal, goal @ np.linalg.inv(x.T @ x) @ goal
    assert advice.ranking[0].drop == pytest.approx(1 - after / now, rel=0.03)


def test_simulated_studies_scatter_as_promised():
    """Predictions of 200 repeated studies with and without the extra run have the promised standard deviations."""

    def scatter(extra):
        found = []
        for seed in range(200):
            points = line_points(extra, seed)
            slope, middle = np.polyfit(np.log(points.column("params_total")), np.log(points.column("loss")), 1)
            found.append(middle + slope * np.log(TARGET["params"]))
        return float(np.std(found))

    result = line_fit(line_points())
    first = suggest(result, TARGET, [Option(name="new", params=3e6, flops=1.0)]).ranking[0]
    assert first.sd_now is not None and first.sd_after is not None
    assert scatter((3e6,)) / scatter(()) == pytest.approx(first.sd_after / first.sd_now, rel=0.12)


def test_cost_decides_between_equal_drops_and_scales_away():
    cheap, dear = Option(name="cheap", params=2e6, cost=1.0), Option(name="dear", params=2e6, cost=3.0)
    ranking = suggest(line_fit(line_points()), TARGET, [dear, cheap]).ranking
    assert [s.option.name for s in ranking] == ["cheap", "dear"]
    assert [s.drop_per_cost for s in ranking] == pytest.approx([1.0, 1 / 3])
    scaled = suggest(line_fit(line_points()), TARGET, [replace(dear, cost=3e9), replace(cheap, cost=1e9)]).ranking
    assert [s.drop_per_cost for s in scaled] == pytest.approx([1.0, 1 / 3])


def test_a_seed_is_worth_little_where_rungs_scatter_more_than_seeds():
    rows = tuple(
        replace(p, loss=p.loss * (1.02 if p.rung in ("121k", "601k") else 1.0)) for p in ladder_points(noise=0.0005)
    )
    result = fit(Points(rows=rows), FitSettings(law="power_law", bootstrap=0, sensitivity=False, holdout=0))
    assert result.noise is not None and result.noise.per == "rung"
    drops = {s.option.name: s.drop for s in suggest(result, TARGET, default_options(result, TARGET)).ranking}
    assert drops["1.3M, one more seed"] < 0.05 * drops["beyond 1.3M"]


def test_a_sequence_accounts_for_its_own_picks_and_its_budget():
    result, option = line_fit(line_points()), Option(name="new", params=3e6, cost=1.0)
    steps = suggest(result, TARGET, [option], picks=3).sequence
    after = [s.sd_after for s in steps]
    assert [s.runs_there for s in steps] == [0, 1, 2] and after == sorted(after, reverse=True)
    assert [s.drop for s in steps] == sorted((s.drop for s in steps), reverse=True)
    assert len(suggest(result, TARGET, [option], budget=2.5).sequence) == 2


def test_one_large_run_beats_many_small_ones_when_it_uses_the_budget_better():
    """Greedy by ratio alone would spend the budget on the cheap run."""
    small, large = Option(name="small", params=2e5, cost=1e-4), Option(name="large", params=1e7, cost=1.0)
    advice = suggest(line_fit(line_points()), TARGET, [small, large], budget=1.0, picks=2)
    assert advice.ranking[0].option.name == "small" and [s.option.name for s in advice.sequence] == ["large"]


def test_default_options_stay_below_the_target_and_are_priced():
    options = default_options(ladder_fit(), {"params": 2e6, "tokens": 1e6})
    assert {"54k, one more seed", "between 601k and 1.3M"} <= {o.name for o in options}
    assert all(o.price <= 18 * 2e6 * 1e6 * 1.01 for o in options)
    joint = default_options(joint_fit(), {"params": 1e11, "tokens": 1e12})
    assert any("2x tokens" in o.name for o in joint)


def test_an_open_direction_counts_as_open():
    """All runs at one token count: only a run at another one can narrow a prediction at other tokens."""
    rows = tuple(
        Point(
            run_id=f"{n:g}-{k}",
            rung=f"{n:g}",
            seed=k,
            loss=float(1.7 + 400 * n**-0.34 + 0.5) * (1 + 0.001 * k),
            params_total=n,
            tokens=1e9,
        )
        for n in np.geomspace(1e7, 1e9, 7)
        for k in range(2)
    )
    result = fit(
        Points(rows=rows), FitSettings(law="chinchilla", fallback=False, bootstrap=0, sensitivity=False, holdout=0)
    )
    options = [
        Option(name="same", params=1e8, tokens=1e9, cost=1.0),
        Option(name="other", params=1e8, tokens=1e11, cost=1.0),
    ]
    advice = suggest(result, {"params": 1e9, "tokens": 1e12}, options)
    drops = {s.option.name: s.drop for s in advice.ranking}
    assert advice.ranking[0].option.name == "other" and drops["other"] > 20 * drops["same"]
    assert any("N and D collinear" in note for note in advice.notes)


def test_bad_options_are_refused():
    with pytest.raises(UsageError, match="lacks params"):
        suggest(line_fit(line_points()), TARGET, [Option(name="x", tokens=1.0, cost=1.0)])
    with pytest.raises(UsageError, match="cost"):
        suggest(line_fit(line_points()), TARGET, [Option(name="x", params=1e6)])
    with pytest.raises(UsageError, match="within a budget"):
        suggest(line_fit(line_points()), TARGET, [Option(name="x", params=1e6, cost=2.0)], budget=1.0)
    with pytest.raises(UsageError, match="option dear has no cost and others have"):
        suggest(
            line_fit(line_points()), TARGET, [Option(name="x", params=1e6, cost=2.0), Option(name="dear", params=1e6)]
        )


def options_table(folder, **columns):
    frame = pd.DataFrame({"run_id": ["small", "large"], "n": [2e6, 8e6], "tokens": [1e9, 1e9]}).assign(**columns)
    frame.to_csv(folder / "options.csv", index=False)
    return options_from_file(folder / "options.csv", line_fit(line_points()), {"params_total": "n", "loss": "val_loss"})


def test_options_of_a_file_are_priced_by_its_cost_column_alone(tmp_path):
    """The large run costs the same as the small one by the column, so it comes first; by its FLOPs it would not."""
    ranking = suggest(line_fit(line_points()), TARGET, options_table(tmp_path, cost=[5.0, 5.0])).ranking
    assert [(s.option.name, s.cost) for s in ranking] == [("large", 5.0), ("small", 5.0)]
    free = suggest(line_fit(line_points()), TARGET, options_table(tmp_path, flops=[1e12, 1e18]))
    assert free.ranking[0].option.name == "small" and free.unit == "FLOPs"
    for column in ("cost", "n", "tokens"):
        with pytest.raises(UsageError, match="option large has .* = -1, which is not a positive finite number"):
            options_table(tmp_path, **{column: [1e6, -1.0]})


def test_the_runs_done_price_the_next_ones():
    """Twice the FLOPs at three times the cost below, in proportion beyond the largest."""
    done = [(1e15, 1.0), (1e15, 3.0), (2e15, 6.0)]
    assert [price(c, done) for c in (1e15, 2**0.5 * 1e15, 4e15)] == pytest.approx([2.0, 12**0.5, 12.0])
    points = Points(rows=tuple(replace(p, cost=3 * p.params_total) for p in line_points()))
    options = default_options(line_fit(points), TARGET)
    assert [o.cost for o in options] == pytest.approx([3 * o.flops for o in options])


def test_scattered_designs_are_named_with_their_tokens_and_no_sizes_between_are_made_up():
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    frame = pd.DataFrame({"params_total": n, "tokens": d, "loss": 1.7 + 400 * n**-0.34 + 410 * d**-0.28})
    result = fit(points_from_frame(frame), FitSettings(law="chinchilla", bootstrap=0, sensitivity=False, holdout=0))
    names = {o.name for o in default_options(result, {"params": 1e11, "tokens": 1e12})}
    assert "10M at 100B tokens, one more seed" in names and "10M at 1.0B tokens, 2x tokens" in names
    assert not any("between" in name or "beyond" in name for name in names)


def test_an_option_without_the_fitted_size_names_its_column(tmp_path):
    (tmp_path / "options.csv").write_text("run_id,params_non_embedding,tokens\nsmall,2e6,1e9\n")
    with pytest.raises(UsageError, match=r"option small has no params_total, .* columns.params_total=NAME"):
        options_from_file(tmp_path / "options.csv", line_fit(line_points()))


def test_runs_of_one_design_are_one_option_though_their_batches_round_differently():
    points = line_points()
    rows = tuple(replace(p, tokens=1e9 * (1 + 0.01 * k), run_id=f"{p.run_id}-{k}") for p in points for k in (0, 1))
    names = [o.name for o in default_options(line_fit(Points(rows=rows)), TARGET)]
    assert sum("one more seed" in name for name in names) == len(points)
