"""Run folders: atomic files, last value wins per (metric, step), torn lines harm nothing, one holder at a time, missing numbers stay missing."""

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
from studies import demo_spec

from gopher.errors import GopherError, SetupError, UsageError
from gopher.record import FINISHED, RUNNING, RunFolder, RunState, append, write_atomic
from gopher.spec import Placement


def new_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.create(demo_spec(), Placement(data_dir="data"), {"git": None})
    return folder


def test_spec_placement_and_provenance_are_read_back(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    assert (
        folder.spec() == demo_spec() and folder.placement().data_dir == "data" and folder.provenance() == {"git": None}
    )


def test_the_spec_of_a_folder_is_written_once(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.create(demo_spec(seed=9), Placement(data_dir="elsewhere"), {})
    assert folder.spec().seed == 0 and folder.placement().data_dir == "elsewhere"


def test_a_later_value_replaces_an_earlier_one_at_the_same_step(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    for step, value in [(10, 5.0), (20, 4.0), (10, 5.5)]:
        folder.log(step, {"train/loss": value})
    assert folder.metrics() == {"train/loss": {10: 5.5, 20: 4.0}}
    assert folder.last("train/loss") == 4.0 and folder.last("val/loss") is None


def test_missing_and_non_finite_numbers_stay_missing(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.log(1, {"a": None, "b": float("nan"), "c": float("inf"), "d": 0.0})
    assert {k: v[1] for k, v in folder.metrics().items()} == {"a": None, "b": None, "c": None, "d": 0.0}


def test_a_torn_last_line_is_ignored_and_then_cut(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.log(1, {"a": 1.0})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "metr')
    assert folder.metrics() == {"a": {1: 1.0}}
    folder.trim_torn_lines()
    folder.log(3, {"a": 3.0})
    assert folder.metrics() == {"a": {1: 1.0, 3: 3.0}}


def test_a_line_that_cannot_be_read_is_left_out_by_name(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.event("rewind", 1, "one")
    with open(folder.path / "events.jsonl", "a") as file:
        file.write('{"kind": "warn{"kind": "warning"}\n')
    folder.event("skip", 2, "two", sequences=16)
    with pytest.warns(UserWarning, match="events.jsonl line 2 cannot be read"):
        assert [e["kind"] for e in folder.events()] == ["rewind", "skip"]


@pytest.mark.parametrize("sync", [False, True])
def test_a_line_that_finds_no_room_leaves_nothing_of_itself(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "lines"
    append(path, "one\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, hard))
        with pytest.raises(OSError):
            append(path, "two, too long\n", sync=sync)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append(path, "three\n", sync=sync)
    assert path.read_text() == "one\nthree\n"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "f.json"
    write_atomic(target, "old")
    with pytest.raises(TypeError):
        write_atomic(target, 5)  # type: ignore[arg-type]
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["f.json"]


def test_state_is_none_before_the_first_write(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    assert folder.state() is None
    folder.write_state(RunState(state=FINISHED, step=5, val_loss=3.5))
    state = folder.state()
    assert (
        state is not None and (state.state, state.step, state.val_loss) == (FINISHED, 5, 3.5) and state.updated_at > 0
    )


@pytest.mark.parametrize("text", ["", "{", '{"state": "running", "step": "x"}', '{"of_another_version": 1}'])
def test_a_state_that_cannot_be_read_is_none_with_a_warning(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.warns(UserWarning, match="state.json cannot be read"):
        assert RunFolder(tmp_path).state() is None


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(GopherError, match="launch the run first"):
        RunFolder(tmp_path / "none").spec()


@pytest.mark.parametrize("content", [b'{"rung": "44', b"", b"\xff"])
def test_a_damaged_spec_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "spec.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"spec.json is damaged \(.*\); delete it and launch the run again"):
        RunFolder(tmp_path).spec()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", r"spec.json: RunSpec is \[\]; give a mapping of fields"),
        ('{"seeds": 1}', r"spec.json: RunSpec has no field 'seeds'; did you mean 'seed'"),
        ("[" * 100_000, r"spec.json is damaged \(.*recursion"),
    ],
)
def test_a_spec_of_other_contents_names_its_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        RunFolder(tmp_path).spec()


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "spec.json").mkdir()
    with pytest.raises(UsageError, match=r"spec.json cannot be read \(Is a directory\)"):
        RunFolder(tmp_path).spec()


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"[1]",
        b'{"kind": "skip", "step": 3, "sentence": "", "sequences": "many", "metrics": 5}',
        b"{",
        b"\xff",
        b"[" * 9999,
    ],
)
def test_lines_that_are_no_records_are_left_out_and_told(tmp_path: Path, line: bytes) -> None:
    folder = new_folder(tmp_path / "run")
    folder.log(1, {"a": 1.0})
    folder.event("warning", 1, "a sentence")
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(folder.path / name, "ab") as file:
            file.write(line + b"\n\n")
    with pytest.warns(UserWarning, match="metrics.jsonl line 2 cannot be read and is left out"):
        assert folder.metrics() == {"a": {1: 1.0}}
    with pytest.warns(UserWarning, match="events.jsonl line 2 cannot be read and is left out"):
        assert [e["sentence"] for e in folder.events()] == ["a sentence"]


def hold_and_wait(path: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with RunFolder(path).held():
        ready.set()
        signal.pause()


def test_one_holder_at_a_time_and_a_killed_one_frees_the_run(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold_and_wait, args=(folder.path, ready))
    process.start()
    assert ready.wait(30) and folder.is_held()
    with pytest.raises(SetupError, match=f"process {process.pid}"), folder.held(wait_seconds=0.3):
        pass
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with folder.held(wait_seconds=5):
        assert folder.is_held()
    assert not folder.is_held()


def test_stop_requests_are_files(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.request_stop()
    assert folder.stop_requested()
    folder.clear_stop()
    assert not folder.stop_requested()


def test_metrics_lines_are_plain_json(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.log(1, {"b": 2.0, "a": 1.0})
    assert json.loads((folder.path / "metrics.jsonl").read_text()) == {"step": 1, "metrics": {"a": 1.0, "b": 2.0}}


def test_running_state_round_trips_reason(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    folder.write_state(RunState(state=RUNNING, reason="why"))
    state = folder.state()
    assert state is not None and state.reason == "why"
