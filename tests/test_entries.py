"""What MLflow is told: names and values keep their contract, a repeated log line says nothing new, notes are for people."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logged_study import MANIFEST, SHAPES, study_spec

from gopher.errors import UsageError
from gopher.size import params_non_embedding, params_total, train_flops
from gopher.spec import Placement
from sweeps.entries import (
    check_uri,
    cost_rows,
    data_params,
    fresh_rows,
    missing_text,
    note_of,
    results_table,
    run_params,
    run_tags,
    told,
    unread,
)

TOKENS = 60_000  # 59 steps


def test_params_keep_the_naming_contract() -> None:
    spec = study_spec("54k", 0, TOKENS)
    params = run_params(spec)
    names = "rung seed model.name model.n_params model.n_params_nonemb model.log10_n_params_nonemb model.n_layers model.n_heads"
    names += (
        " model.d_model model.context model.vocab_size optim.lr optim.warmup_steps train.tokens train.steps train.flops"
    )
    names += " train.log10_flops train.flops_convention train.batch_tokens data.kind"
    assert set(names.split()) <= set(params)
    assert params["model.n_params"] == params_total(spec.model)
    assert params["model.n_params_nonemb"] == params_non_embedding(spec.model)
    assert float(params["train.flops"]) == pytest.approx(train_flops(spec), rel=1e-6)
    assert params["train.steps"] == 59 and params["train.batch_tokens"] == 1024
    assert all(len(str(v)) <= 500 for v in params.values())


def test_epochs_are_those_of_the_most_repeated_subset() -> None:
    params = data_params(study_spec("54k", 0, TOKENS), MANIFEST)
    assert params == {"data.unique_tokens": 60_000, "data.max_epochs_seen": pytest.approx(59 * 1024 * 0.5 / 20_000)}


def test_tags_name_the_run_and_its_provenance() -> None:
    spec = study_spec("54k", 3, TOKENS)
    tags = run_tags(
        spec, "demo", "parent", list(SHAPES), {"git": {"commit": "c0ffee", "dirty": True}, "config_hash": "beef"}
    )
    assert tags["mlflow.runName"] == "54k-lr0.01-s3" and tags["mlflow.parentRunId"] == "parent"
    assert tags["trial.id"] == spec.key and tags["kind"] == "train" and tags["sweep.id"] == "demo"
    assert (tags["git.commit"], tags["git.dirty"], tags["config.hash"]) == ("c0ffee", "True", "beef")
    assert all(isinstance(v, str) for v in tags.values())


def log_line(step: int, **metrics: float | None) -> bytes:
    return json.dumps({"step": step, "metrics": metrics}).encode() + b"\n"


def test_a_repeated_step_is_sent_again_only_with_another_value() -> None:
    """A restart repeats the same numbers, to 1e-5 on other workers; a rewind gives others, which come later and count."""
    log = log_line(1, loss=5.0) + log_line(2, loss=4.0, **{"perf/step_s": 1.0})
    again = log_line(2, loss=4.000001, lr=0.1, **{"perf/step_s": 2.0}) + log_line(2, loss=4.5) + log_line(3, loss=3.0)
    whole = [("loss", 1, 5.0, 1), ("loss", 2, 4.0, 2), ("perf/step_s", 2, 1.0, 2)]
    whole += [("lr", 2, 0.1, 2), ("loss", 2, 4.5, 3), ("loss", 3, 3.0, 3)]
    rows = fresh_rows(log + again, {}, {}).rows
    assert [(r.name, r.step, r.value, r.after_ms) for r in rows] == whole
    first = fresh_rows(log, {}, {})
    assert first.rows + fresh_rows(again, first.steps, {}, lambda: log).rows == rows


def test_a_task_score_is_sent_whenever_it_has_changed() -> None:
    """Floors and earlier steps come after the last step, and the same step again over more items."""
    log = [log_line(9, **{"eval/t.acc": 0.5}), log_line(0, **{"eval/t.acc": 0.2}), log_line(9, **{"eval/t.acc": 0.5})]
    log += [log_line(9, **{"eval/t.acc": 0.6}), log_line(9, **{"eval/t.acc": 0.5})]
    whole = fresh_rows(b"".join(log), {"eval/t.acc": 9}, {})
    assert [(r.step, r.value, r.after_ms) for r in whole.rows] == [(9, 0.5, 9), (0, 0.2, 0), (9, 0.6, 10), (9, 0.5, 11)]
    for cut in range(len(log)):
        first = fresh_rows(b"".join(log[:cut]), {}, {})
        second = fresh_rows(b"".join(log[cut:]), first.steps, {}, lambda cut=cut: b"".join(log[:cut]))
        assert first.rows + second.rows == whole.rows


def test_cost_is_told_only_where_its_prices_are_known() -> None:
    cpu, gpu = (
        Placement(data_dir="d", workers=2, threads_per_worker=3),
        Placement(data_dir="d", workers=2, device="cuda"),
    )
    assert cost_rows(1800, 9, cpu, None, None) == []
    assert [(r.name, r.step, r.value) for r in cost_rows(1800, 9, cpu, None, 0.5)] == [("final/usd", 9, 1.5)]
    assert [r.name for r in cost_rows(1800, 9, gpu, None, 0.5)] == ["final/gpu_hours"]  # the GPU's price is missing
    assert {r.name: r.value for r in cost_rows(1800, 9, gpu, 2.0, None)} == {"final/gpu_hours": 1.0, "final/usd": 2.0}


def test_a_missing_number_is_named_and_never_sent() -> None:
    fresh = fresh_rows(log_line(4, loss=None, lr=0.1) + log_line(5, loss=None), {}, {})
    assert [r.name for r in fresh.rows] == ["lr"]
    assert missing_text(fresh.missing) == "loss from step 4"
    assert missing_text({f"m{i:02}": 1 for i in range(25)}).endswith("m19 from step 1 and 5 more")


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.none() | st.floats(-9, 9)), max_size=30), st.data()
)
def test_a_log_read_in_pieces_gives_the_rows_of_the_whole(
    entries: list[tuple[int, str, float | None]], data: Any
) -> None:
    lines = [log_line(step, **{name: value}) for step, name, value in entries]
    whole = fresh_rows(b"".join(lines), {}, {})
    cut = data.draw(st.integers(0, len(lines)))
    first = fresh_rows(b"".join(lines[:cut]), {}, {})
    second = fresh_rows(b"".join(lines[cut:]), first.steps, first.missing, lambda: b"".join(lines[:cut]))
    assert first.rows + second.rows == whole.rows and second.steps == whole.steps and second.missing == whole.missing
    assert len({(r.name, r.step, r.after_ms) for r in whole.rows}) == len(whole.rows)


def test_a_half_written_line_waits(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert unread(log, 0) == (0, b"")
    log.write_bytes(log_line(1, loss=5.0) + b'{"step": 2, "me')
    first = len(log_line(1, loss=5.0))
    assert unread(log, 0) == (0, log_line(1, loss=5.0))
    assert unread(log, first) == (first, b"")


@pytest.mark.parametrize("rows", [1, 3])
def test_a_log_that_lost_its_tail_is_read_from_its_start(rows: int, tmp_path: Path) -> None:
    """The machine went before the last lines were on disk: the note is ahead of the log, or within one of its lines."""
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b"".join(log_line(step, loss=5.0) for step in range(1, rows + 1)))
    offset = 2 * len(log_line(1, loss=5.0)) + 3
    start, lines = unread(log, offset)
    assert start == 0 and lines == log.read_bytes()
    assert [r.step for r in fresh_rows(lines, {"loss": 2}, {}).rows] == ([3] if rows == 3 else [])


POINTS = [
    {"rung": r, "params_non_embedding": n, "tokens": 1e6, "flops": 1.2e13, "learning_rate": 0.01, "loss": loss}
    for r, n, loss in (("1_3m", 1.28e6, 3.88), ("54k", 53_792.0, 4.85), ("54k", 53_792.0, 4.86))
]


def test_the_results_table_is_for_people() -> None:
    table = results_table([*POINTS, {"rung": "", "loss": 3.5, "params_non_embedding": None}])
    assert table.splitlines()[2:] == [
        "| – | – | – | – | – | 1 | 3.5000 |",
        "| 54k | 54k | 1.0M | 1.2×10¹³ | 0.01 | 2 | 4.8550 ± 0.0071 |",
        "| 1_3m | 1.3M | 1.0M | 1.2×10¹³ | 0.01 | 1 | 3.8800 |",
    ]


def test_a_long_note_ends_with_a_whole_line() -> None:
    points = [{"rung": f"r{i}", "loss": 3.0, "learning_rate": 0.01} for i in range(500)]
    note = note_of("Loss falls", points)
    assert len(note) <= 8000 and note.endswith(" |\n…") and note.startswith("Loss falls\n")
    assert note_of("Loss falls", []) == "Loss falls"


def test_a_picture_keeps_square_brackets_out_of_its_text() -> None:
    note = note_of(
        "**exponent 0.3 [0.2, 0.4]**\n\n![exponent 0.3 [0.2, 0.4]](get-artifact?path=a.png)\n\n[more](#/x)", []
    )
    assert note == "**exponent 0.3 [0.2, 0.4]**\n\n![exponent 0.3 (0.2, 0.4)](get-artifact?path=a.png)\n\n[more](#/x)"


@pytest.mark.parametrize("uri", ["./mlruns", "file:///data/mlruns", "mlruns"])
def test_a_file_store_is_refused_with_the_cure(uri: str) -> None:
    with pytest.raises(UsageError, match="leave it unset for sqlite, or name a server"):
        check_uri(uri)


def test_passwords_stay_out_of_what_people_read() -> None:
    assert (
        told(ValueError("API request to http://ann:secret@host/api failed\nmore"))
        == "API request to http://ann:***@host/api failed"
    )
    assert told(ValueError("")) == "ValueError"
