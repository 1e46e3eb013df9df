"""Proves the paper's arithmetic of relative gains: per task, signed so that better is positive, with errors, nothing dropped silently."""

import pytest
from pictures import task_scores

from analysis.gain_figures import relative_gain
from analysis.task_figures import headings_of, note_of, score_limits, tasks
from analysis.tasks import TaskScore, by_rung, gains, headlines, without_gain


def score(rung, params, value, **more):
    fields = {
        "task": "t",
        "category": "c",
        "metric": "acc",
        "rung": rung,
        "run_id": rung,
        "params": params,
        "step": 10,
        "value": value,
    }
    return TaskScore(**(fields | more))


def test_gain_is_relative_to_the_second_largest_or_to_the_best_smaller():
    scores = [score("s", 1e6, 0.30), score("m", 1e7, 0.20), score("l", 1e8, 0.36)]
    assert gains(scores)[0].percent == pytest.approx(80)
    assert gains(scores, "best_smaller")[0].percent == pytest.approx(20)


def test_fewer_bits_are_a_gain():
    scores = [score("m", 1e7, 1.0, higher_is_better=False), score("l", 1e8, 0.9, higher_is_better=False)]
    assert gains(scores)[0].percent == pytest.approx(10)


def test_the_error_of_a_gain_comes_from_both_scores():
    scores = [score("m", 1e7, 0.4, stderr=0.02), score("l", 1e8, 0.5, stderr=0.01)]
    wanted = 100 * 1.25 * ((0.02 / 0.4) ** 2 + (0.01 / 0.5) ** 2) ** 0.5
    assert gains(scores)[0].stderr == pytest.approx(wanted)
    assert gains([score("m", 1e7, 0.4), score("l", 1e8, 0.5)])[0].stderr is None


def test_the_last_checkpoint_counts_and_step_zero_is_the_floor():
    scores = [score("m", 1e7, v, step=k, untrained=k == 0) for k, v in ((0, 0.1), (5, 0.3), (10, 0.4))]
    assert by_rung(scores)[0].value == 0.4 and by_rung(scores, untrained=True)[0].value == 0.1


def test_seeds_add_their_scatter_to_the_item_error():
    same = [score("m", 1e7, 0.4, run_id=f"{k}", stderr=0.02) for k in range(4)]
    apart = [score("m", 1e7, 0.4 + 0.1 * (k % 2), run_id=f"{k}", stderr=0.02) for k in range(4)]
    assert by_rung(same)[0].stderr == pytest.approx(0.02)
    assert by_rung(apart)[0].stderr > 0.03 and by_rung(apart)[0].value == pytest.approx(0.45)


def test_a_task_counts_once_and_its_group_not_at_all():
    both = [("a", "gold_bpb", False), ("a", "acc", False), ("all", "acc", True), ("b", "exact_match-strict", False)]
    scores = [score(r, n, 0.5, task=t, metric=m, is_group=g) for r, n in (("m", 1e7), ("l", 1e8)) for t, m, g in both]
    assert {(s.task, s.metric) for s in headlines(scores)} == {("a", "acc"), ("b", "exact_match-strict")}
    assert "Relative gain of l over m on 2 tasks" in relative_gain(scores).alt


def test_tasks_without_a_gain_are_named():
    scores = [score("m", 1e7, 0.0), score("l", 1e8, 0.1), score("l", 1e8, 0.5, task="only_large")]
    assert gains(scores) == [] and without_gain(scores, []) == ["only_large (acc)", "t (acc)"]
    assert relative_gain(scores) is None


def test_the_gain_picture_names_what_it_leaves_out_and_counts():
    scores = [*task_scores(), score("1_3m", 1.28e6, 0.5, task="new_task", category="science")]
    figure = relative_gain(scores)
    assert figure is not None and figure.title == "Gain from 601k to 1.3M"
    assert "new_task (acc)" in figure.caption and "of 4 tasks" in figure.caption
    assert [row[0] for row in figure.table.rows] == ["language modelling"] * 2 + ["science"] * 2


def test_many_tasks_become_one_row_a_category():
    figure = relative_gain(task_scores(tasks_per_category=10))
    assert figure is not None and len(figure.table.rows) == 20
    assert "science (10)" in figure.svg and "science_3" not in figure.svg


def test_gains_beyond_the_axis_are_counted_and_named_on_both_sides():
    wild = [
        score(rung, n, value, task=f"{name}_{i}", category=name)
        for name, low, high in (("up", 0.1, 0.9), ("down", 0.5, -0.9), ("calm", 0.5, 0.6))
        for i in range(7)
        for rung, n, value in (("m", 1e7, low), ("l", 1e8, high))
    ]
    figure = relative_gain(wild)
    assert "14 beyond the axis: " in figure.caption and "down_0 −280 %" in figure.caption
    assert "7 more →" in figure.svg and "← 7 more" in figure.svg


def test_scores_that_are_all_alike_have_an_axis() -> None:
    """Ticks that differ, none below 0; perplexities on a log axis."""
    none = [score(r, n, 0.0, step=k, untrained=k == 0) for r, n in (("m", 1e7), ("l", 1e8)) for k in (0, 10)]
    low, high = score_limits("acc", none)
    assert -0.01 < low < 0 and high > 0.02
    (page,) = tasks(none)
    assert ">0.02<" in page.svg and "0.000000" not in page.svg
    words = [score(r, n, v, metric="word_perplexity") for r, n, v in (("m", 1e7, 60_000.0), ("l", 1e8, 7e7))]
    assert ">1M<" in tasks(words)[0].svg
    wide = [score("m", 1e7, 9.0, metric="word_perplexity", stderr=40.0), score("l", 1e8, 8.0, metric="word_perplexity")]
    assert 0 < score_limits("word_perplexity", wide)[0] < 8


def test_every_size_has_its_untrained_model_and_headings_of_a_row_are_level() -> None:
    (page,) = [p for p in tasks(task_scores()) if p.name == "tasks_science"]
    assert [row[4] for row in page.table.rows] == ["0.250 ± 0.010"] * 10
    assert page.svg.count(">untrained<") == page.svg.count(">chance<") == 1  # one key for all panels
    long = "mmlu_high_school_european_history"
    group = [score("m", 1e7, 0.2), score("l", 1e8, 0.3)]
    found = headings_of([(long, "acc", group), ("t", "acc", group), ("t", "acc", group)])
    assert found[0].count("\n") == found[1].count("\n") == 3 and found[2].count("\n") == 1
    assert found[0].replace("\n", "").startswith(long)


def test_a_published_score_at_chance_is_said_not_drawn_over_it() -> None:
    group = [score("m", 1e7, 0.2, chance=0.25), score("l", 1e8, 0.3, chance=0.25)]
    assert note_of("mmlu_abstract_algebra", "acc", group) == "Gopher 280B at chance"


def test_a_category_has_its_mean_and_numbers_stand_beside_the_bars() -> None:
    scores = [
        score(r, n, v, task=t) for t, v2 in (("a", 0.3), ("b", 0.1)) for r, n, v in (("m", 1e7, 0.2), ("l", 1e8, v2))
    ]
    figure = relative_gain(scores)
    assert figure and all(f">{text}<" in figure.svg for text in ("+50 %", "−50 %", "0.00 %"))


def test_task_pages_show_chance_and_the_untrained_model():
    pages = tasks(task_scores())
    science = next(p for p in pages if p.name == "tasks_science")
    assert "(chance 0.250, untrained 0.250)" in science.alt and ">untrained<" in science.svg
    row = dict(zip(science.table.header, science.table.rows[0], strict=True))
    assert row["chance"] == "0.250" and row["untrained"] == "0.250 ± 0.010" and row["items"] == "500"
    trained = [s for s in task_scores() if not s.untrained]
    assert "were not scored" in tasks(trained)[0].caption
