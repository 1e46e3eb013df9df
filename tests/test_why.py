"""`gopher why` and `gopher logs`: the nearest finished run and the differing fields are the right ones, every state has
its sentence, a run is found by key, prefix, rung and rung/seed, and a worker's output and crash can be read."""

import dataclasses
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from studies import TINY, demo_spec, write_text

from gopher.errors import UsageError
from gopher.identity import flatten
from gopher.record import FAILED, FINISHED, RUNNING, RunFolder, RunState
from gopher.spec import DataSpec, Placement, RunSpec
from gopher.worker_log import worker_log
from sweeps.cli import main
from sweeps.find import find_run, known_runs
from sweeps.settings import Settings
from sweeps.study import Study
from sweeps.verbs.why import LABELS
from sweeps.worker_output import read_lines


def add(root: Path, spec: RunSpec, **state: object) -> RunFolder:
    folder = RunFolder(root / "runs" / spec.key)
    folder.create(spec, Placement(data_dir="data"), {"git": {"commit": "c0ffee"}})
    if state:
        folder.write_state(RunState(**state))  # type: ignore[arg-type]
    return folder


def ask(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict:
    before, sys.argv = sys.argv, ["gopher", *words]
    try:
        assert main() == 0
    finally:
        sys.argv = before
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add(tmp_path, demo_spec(seed=0), state=FAILED, step=7, attempt=3, reason="step 8 has loss nan")
    add(tmp_path, demo_spec(seed=1), state=FINISHED, step=20)
    add(tmp_path, demo_spec(seed=2, lr=0.5), state=FINISHED, step=20)
    add(tmp_path, demo_spec(seed=3), state=RUNNING, step=4)
    add(tmp_path, demo_spec(seed=4))
    return tmp_path


def test_labels_are_those_of_the_specs() -> None:
    declared = {f.name for f in dataclasses.fields(RunSpec) if not f.metadata.get("identity", True)}
    declared |= {f"data.{f.name}" for f in dataclasses.fields(DataSpec) if not f.metadata.get("identity", True)}
    assert declared == set(LABELS)
    assert set(LABELS) <= set(flatten(dataclasses.asdict(demo_spec())))


def test_why_names_reason_neighbour_and_dependencies(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, ["why", demo_spec().key[:5], "format=json", f"output_root={root}"])
    assert answer["state"] == FAILED and "step 8 has loss nan" in answer["because"] and "attempt 3" in answer["because"]
    assert answer["nearest"]["key"] == demo_spec(seed=1).key
    assert answer["nearest"]["differs"] == {"seed": {"this": 0, "that": 1}}
    assert [d["what"] for d in answer["depends_on"]] == ["tokenizer", "data"] and answer["code"]["commit"] == "c0ffee"


def test_every_state_has_its_sentence(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {s: ask(capsys, ["why", f"tiny/{s}", "format=json", f"output_root={root}"])["because"] for s in (1, 3, 4)}
    assert said[1] == "finished after 20 steps"
    assert "interrupted after step 4" in said[3]
    assert "waits for its tokenizer and data" in said[4]
    (root / "tokenizers" / ("t" * 12)).mkdir(parents=True)
    (root / "data" / ("d" * 12)).mkdir(parents=True)
    assert "free cores" in ask(capsys, ["why", "tiny/4", "format=json", f"output_root={root}"])["because"]


def test_a_planned_run_is_explained_and_cannot_be_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "text")
    words = ["rungs=[54k]", "data=local", f"data.path={tmp_path / 'text'}", *TINY, f"output_root={tmp_path}"]
    answer = ask(capsys, ["why", "54k/1", "format=json", *words])
    assert answer["state"] is None and answer["because"].startswith("is planned and was not launched yet")
    assert [d["present"] for d in answer["depends_on"]] == [False, False] and answer["nearest"] is None
    assert ask(capsys, ["why", answer["key"], "format=json", *words]) == answer
    monkeypatch.setattr(sys, "argv", ["gopher", "stop", "54k/1", *words])
    assert main() == 2 and "was not launched yet" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_why_as_text(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "why", "tiny/2", f"output_root={root}"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "optim.lr" in done.stdout and "0.5" in done.stdout and "finished" in done.stdout


@pytest.mark.parametrize(
    ("word", "sentence"), [("tiny", "fits 5 runs"), ("tinny", "did you mean 'tiny'"), ("tiny/9", "no run is called")]
)
def test_a_word_that_is_no_run_is_told(root: Path, word: str, sentence: str) -> None:
    settings = Settings(output_root=str(root), name="s")
    with pytest.raises(UsageError, match=sentence):
        find_run(word, list(known_runs(root)), lambda: Study(name="s", rungs=(), runs=()), settings)


def test_worker_output_warnings_and_crashes_are_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = add(root, demo_spec(seed=5), state=FAILED)
    with pytest.raises(ZeroDivisionError), worker_log(folder.path, "rank0"):
        print("hello from the worker")
        logging.getLogger("gopher.model").info("chunked attention")
        warnings.warn("a checkpoint is corrupt", stacklevel=1)
        1 / 0  # noqa: B018
    folder.path.joinpath("events.jsonl").write_text(
        '{"time": 0, "step": 3, "kind": "rewind", "sentence": "back to 2"}\n'
    )
    sys.argv = ["gopher", "logs", folder.path.name, f"output_root={root}", "follow=true"]
    assert main() == 0
    said = capsys.readouterr().out
    assert (
        "step 3 rewind: back to 2" in said
        and "rank0: hello from the worker" in said
        and "rank0: chunked attention" in said
    )
    assert "a checkpoint is corrupt" in said and "ZeroDivisionError" in said


def test_logs_as_json_are_one_object_a_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = add(root, demo_spec(seed=7))
    folder.event("rewind", 3, "back to 2")
    sys.argv = ["gopher", "logs", "tiny/7", "format=json", f"output_root={root}"]
    assert main() == 0
    (said,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said["source"] == "events" and said["line"].endswith("step 3 rewind: back to 2")


def test_a_native_crash_leaves_its_stack(root: Path) -> None:
    folder = add(root, demo_spec(seed=6))
    script = f'import os\nfrom pathlib import Path\nfrom gopher.worker_log import worker_log\nwith worker_log(Path({str(folder.path)!r}), "rank0"): os.abort()'
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode < 0
    assert "Fatal Python error: Aborted" in (folder.path / "log" / "rank0.log").read_text()


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rank0.log"
    path.write_bytes(b"one\ntw")
    ((line, offset),) = read_lines(path, 0)
    path.write_bytes(b"one\ntwo\n")
    assert line == "one" and list(read_lines(path, offset)) == [("two", 8)]
