"""Proves: a step that cannot be trusted leaves nothing behind. A fault that does not come back costs no bit, a batch that is bad for
good is passed over, a run beyond help fails with its reason, on one rank and on two, with sums read at once or late."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from distributed import on_ranks
from studies import demo_spec, stop_at
from training import drill, kinds, numbers, run_in, spoil_after

from gopher.checkpoint import Saver, notes_of
from gopher.errors import GopherError, UsageError
from gopher.optim import Adam
from gopher.record import ASKED, FAILED, FINISHED, PREEMPTED, STOPPED, RunFolder
from gopher.spec import DataSpec
from gopher.stability import skipped_before, skips_of
from gopher.train import LAG_STEPS, train


@pytest.mark.parametrize("step", [3, 12])  # before the first checkpoint and after two of them
def test_a_fault_that_does_not_come_back_costs_no_bit(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path, step: int
) -> None:
    folder = drill(run_in(tmp_path / "run", shards), {"step": step, "fault": "nan"})
    assert train(folder).state == FINISHED
    assert numbers(folder) == numbers(finished)
    assert kinds(folder) == [("rewind", step)]
    usual, undisturbed = (notes_of(f.checkpoints, 20) for f in (folder, finished))  # what later spikes are called by
    assert usual == undisturbed and len(usual["watch"]["usual"]) == 20


def test_a_stop_is_not_lost_on_the_way_back(shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path) -> None:
    """Asked for once, at the very step that could not be trusted."""
    folder = drill(run_in(tmp_path / "run", shards), {"step": 7, "fault": "nan"})
    state = train(folder, should_stop=stop_at(7))
    assert (state.state, state.step) == (STOPPED, 5)
    assert train(folder).state == FINISHED and numbers(folder) == numbers(finished)


def test_a_batch_that_is_bad_for_good_is_passed_over(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path
) -> None:
    """Sequence 200 of the order, in step 12 of 16 sequences: the run goes on behind it, and a resume passes over it too."""
    bad = {"sequence": 200, "fault": "nan", "times": None}
    folder = drill(run_in(tmp_path / "run", shards), bad)
    assert train(folder).state == FINISHED
    assert kinds(folder) == [("rewind", 12), ("skip", 10)]
    losses, undisturbed = numbers(folder)["train/loss"], numbers(finished)["train/loss"]
    assert list(losses) == list(undisturbed)  # no step lost, none twice
    assert all(losses[s] == undisturbed[s] for s in range(1, 11)) and losses[11] != undisturbed[11]
    again = drill(run_in(tmp_path / "again", shards), bad)
    assert train(again, should_stop=stop_at(17)).state == STOPPED
    assert train(again).state == FINISHED
    assert numbers(again) == numbers(folder)


@pytest.mark.parametrize("bad", [(200, 210), (200, 210, 360, 420)])
def test_batches_that_were_passed_over_stay_so(
    shards: tuple[DataSpec, Path], tmp_path: Path, bad: tuple[int, ...]
) -> None:
    """Also where the second is found right behind the first, and the way back leads to before the first."""
    faults = ({"sequence": s, "fault": "nan", "times": None} for s in bad)
    folder = drill(run_in(tmp_path / "run", shards), *faults)
    assert train(folder).state == FINISHED
    run, events = folder.spec(), folder.events()
    skips = skips_of(events)
    taken = [run.sequences_before(s) + skipped_before(skips, s) for s in range(run.steps)]
    read = {
        at
        for first, s in zip(taken, range(run.steps), strict=True)
        for at in range(first, first + run.batch_sequences(s))
    }
    assert not read & set(bad) and len(read) == run.sequences_before(run.steps)
    assert sum(kind == "skip" for kind, _ in kinds(folder)) == len(bad)


LONG = 240 * 16 * 64  # tokens: a spike is called after a hundred steps


@pytest.fixture(scope="module")
def spiked(shards: tuple[DataSpec, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = run_with_a_spike(tmp_path_factory.mktemp("spiked") / "run", shards)
    assert train(folder).state == FINISHED
    return folder


def run_with_a_spike(path: Path, shards: tuple[DataSpec, Path]) -> RunFolder:
    """The batches of steps 220 to 224 give a loss far above the usual, each time that they come up."""
    folder = run_in(path, shards, {"checkpoint_every_steps": 10}, tokens=LONG)
    assert folder.spec().sequences_before(220) == 3520
    return drill(folder, *({"sequence": 16 * s + 3, "fault": "spike", "times": None} for s in range(220, 225)))


def test_a_spike_is_tried_again_and_then_passed_over(spiked: RunFolder) -> None:
    """Though checkpoints of steps 210 and 220 were the newest two: the spike may have begun before its first high loss."""
    assert kinds(spiked) == [("rewind", 224), ("skip", 200)]
    assert spiked.events()[0]["to"] == 200 and spiked.events()[1]["sequences"] == 25 * 16
    assert max(v for s, v in numbers(spiked)["train/loss"].items() if s > 1) < 8.5  # type: ignore[type-var]


@pytest.mark.parametrize("stops", [(160, 240), pytest.param((218, 230), marks=pytest.mark.slow)])
def test_a_spike_is_called_at_the_same_step_after_any_resume(
    shards: tuple[DataSpec, Path], spiked: RunFolder, tmp_path: Path, stops: tuple[int, int]
) -> None:
    folder, calls = run_with_a_spike(tmp_path / "run", shards), iter(range(1000))
    for _ in stops:
        assert train(folder, should_stop=lambda: ASKED if next(calls) in stops else None).state == STOPPED
    assert train(folder).state == FINISHED
    assert kinds(folder) == kinds(spiked) and numbers(folder) == numbers(spiked)


def test_a_person_who_stops_a_run_is_not_overruled_by_a_notice(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch goes on with a run that was preempted, not with one that somebody stopped."""
    monkeypatch.setitem(LAG_STEPS, "cpu", 1)
    calls = iter([None, None, ASKED, PREEMPTED])
    state = train(run_in(tmp_path / "run", shards, {"log_every_steps": 100}), should_stop=lambda: next(calls, None))
    assert (state.state, state.cause) == (STOPPED, ASKED)


def test_a_stop_told_with_late_sums_is_not_lost(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the step behind the one that could not be trusted."""
    monkeypatch.setitem(LAG_STEPS, "cpu", 1)
    folder = run_in(tmp_path / "run", shards, {"log_every_steps": 100})
    state = train(drill(folder, {"step": 6, "fault": "nan"}), should_stop=stop_at(7))
    assert (state.state, state.step, state.reason) == (STOPPED, 5, "asked to stop; the run resumes from step 5")


@pytest.mark.parametrize("step", [None, 3, 9, 12, 14])  # 9, 14: known at an evaluation, at a checkpoint
def test_sums_that_are_read_late_change_nothing(
    shards: tuple[DataSpec, Path],
    finished: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int | None,
) -> None:
    """As on a GPU: a step that cannot be trusted is known one update later, and never logged, evaluated or saved.

    Its own update changes nothing, for the loss that is no number makes the factor of the gradients none.
    """
    monkeypatch.setitem(LAG_STEPS, "cpu", 1)
    scales, update = [], Adam.step

    def spied(self: Adam, step: int, rate: float, scale: torch.Tensor) -> None:
        scales.append(float(scale))
        update(self, step, rate, scale)

    monkeypatch.setattr(Adam, "step", spied)
    saved, save = [], Saver.save

    def spied_save(self: Saver, step: int, notes: dict) -> None:
        saved.append(step)
        save(self, step, notes)

    monkeypatch.setattr(Saver, "save", spied_save)
    folder = run_in(
        tmp_path / "run", shards, {"log_every_steps": 4, "checkpoints": "async", "checkpoint_every_steps": 15}
    )
    if step is not None:
        drill(folder, {"step": step, "fault": "nan"})
    state = train(folder, should_stop=stop_at(6))
    assert (state.state, state.cause) == (STOPPED, ASKED)
    assert train(folder).state == FINISHED
    undisturbed = numbers(finished)["train/loss"]
    losses = numbers(folder)["train/loss"]
    assert list(losses) == [1, 4, 8, 12, 16, 20]
    assert losses == {s: undisturbed[s] for s in losses}
    assert numbers(folder)["val/loss"] == numbers(finished)["val/loss"]
    assert kinds(folder) == ([] if step is None else [("rewind", step)])
    assert sum(map(math.isnan, scales)) == len(kinds(folder))
    evaluated = [line["step"] for line in folder.metric_lines() if "val/loss" in line["metrics"]]
    right_behind = {9: evaluated.count(10), 14: saved.count(15)}
    assert right_behind.get(step or 0, 1) == 1  # of the replay alone


@pytest.mark.parametrize("spoiled", [5, 15])
def test_a_spoiled_checkpoint_is_left_behind(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoiled: int
) -> None:
    """The update before it went wrong unseen: the losses of its step and of all before were numbers."""
    spoil_after(spoiled, monkeypatch)
    folder = run_in(tmp_path / "run", shards)
    assert train(folder).state == FINISHED
    before = spoiled - 5
    assert kinds(folder) == [("rewind", spoiled), ("skip", before)] and folder.events()[0]["to"] == spoiled
    assert len(numbers(folder)["train/loss"]) == 20


def test_a_course_that_was_given_up_leaves_no_checkpoint(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart would take it for the newest."""
    spoil_after(15, monkeypatch)
    folder = run_in(tmp_path / "run", shards)
    train(folder, should_stop=lambda: ASKED if ("skip", 10) in kinds(folder) else None)
    assert [int(p.name) for p in sorted(folder.checkpoints.iterdir())] == [10, 11]


def test_a_bad_evaluation_that_does_not_come_back_costs_no_bit(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_after(10, monkeypatch)
    folder = run_in(tmp_path / "run", shards)
    assert train(folder).state == FINISHED
    assert kinds(folder) == [("rewind", 9)] and numbers(folder) == numbers(finished)


def test_a_run_beyond_help_says_so_and_keeps_its_checkpoint(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    folder = drill(run_in(tmp_path / "run", shards), {"step": 7, "fault": "nan", "times": None})
    with pytest.raises(
        GopherError, match=r"step 8 has loss nan .* batches were skipped 5 times already; lower optim.lr"
    ):
        train(folder)
    state = folder.state()
    assert state is not None and state.state == FAILED
    assert [int(p.name) for p in folder.checkpoints.iterdir()] == [5]


def test_a_diverged_run_stops_before_its_parameters_do(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    optim = dataclasses.replace(demo_spec().optim, lr=1e12, clip_norm=1e12)
    folder = run_in(tmp_path / "run", shards, optim=optim)
    with pytest.raises(GopherError, match="lower optim.lr"):
        train(folder)
    state = folder.state()
    assert state is not None and state.state == FAILED and "gradient norm" in str(state.reason)
    assert all((p / "complete.json").exists() for p in folder.checkpoints.glob("0*"))


def test_an_evaluation_that_is_no_number_ends_no_run_well(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    """The last update spoils finite parameters: its own loss was a number, the next one's is not, and nothing trains on to see it."""
    optim = dataclasses.replace(demo_spec().optim, lr=1e25, warmup_steps=0)
    folder = run_in(tmp_path / "run", shards, {"checkpoint_every_steps": 1}, optim=optim, tokens=1024)
    with pytest.raises(GopherError, match=r"step 1 has val/loss (nan|inf) and .* lower optim.lr"):
        train(folder)
    state = folder.state()
    assert state is not None and state.state == FAILED and not list(folder.checkpoints.glob("0*"))
    assert list(numbers(folder)["val/loss"]) == [0] and "final/val_loss" not in folder.metrics()
    assert "NaN" not in (folder.path / "state.json").read_text() + (folder.path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "drill.json is no JSON"),
        ("5", "drill.json is 5; give a list"),
        ('[{"fault": "kil"}]', "names the fault 'kil'; use one of nan, spike, hang, kill, preempt"),
        ('[{"fault": "nan", "stp": 3}]', r"drill.json\[0\] has no field 'stp'; did you mean 'step'"),
    ],
)
def test_a_drill_that_cannot_be_read_is_refused(
    shards: tuple[DataSpec, Path], tmp_path: Path, text: str, words: str
) -> None:
    folder = run_in(tmp_path / "run", shards)
    (folder.path / "drill.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        train(folder)


def stop_and_go(rank: int, path: Path) -> None:
    calls = iter(range(1000))
    stop = train(
        RunFolder(path), rank=rank, world=2, should_stop=lambda: PREEMPTED if next(calls) == 8 and rank else None
    )
    assert stop.cause == PREEMPTED  # one rank was told, both know
    assert train(RunFolder(path), rank=rank, world=2).state == FINISHED


def test_two_ranks_rewind_skip_and_stop_together(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path
) -> None:
    how = {"workers": 2, "checkpoints": "async"}
    folder = drill(run_in(tmp_path / "run", shards, how), {"step": 3, "fault": "nan"}, {"step": 13, "fault": "nan"})
    on_ranks(2, stop_and_go, folder.path)
    assert kinds(folder) == [("rewind", 3), ("rewind", 13)]
    losses, undisturbed = numbers(folder)["train/loss"], numbers(finished)["train/loss"]
    assert list(losses) == list(undisturbed)
    assert all(losses[s] == pytest.approx(undisturbed[s], abs=1e-5) for s in losses)  # type: ignore[arg-type]
