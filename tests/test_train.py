"""The training loop on real text: it learns, resumes to the last bit after SIGKILL, stops at a checkpoint when asked, refuses NaN, and one or two
ranks give the same losses. Golden losses guard the numbers of model, data order and optimizer together."""

import contextlib
import dataclasses
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distributed import on_ranks
from studies import demo_spec, disk_of, stop_at, tiny_shards

from gopher.errors import GopherError, UsageError
from gopher.optim import Adam
from gopher.record import ASKED, FAILED, FINISHED, PREEMPTED, STOPPED, RunFolder
from gopher.spec import DataSpec, Placement, PrecisionSpec, RunSpec
from gopher.train import LAG_STEPS, train

GOLDEN = [6.358185, 5.275566, 5.059505]  # nats per token after steps 1, 10, 20
TIMING = ("perf/", "final/train_seconds", "final/worker_hours")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSpec, Path]:
    return tiny_shards(tmp_path_factory.mktemp("train"))


def run_in(path: Path, shards: tuple[DataSpec, Path], placement: dict | None = None, **changes: object) -> RunFolder:
    """A run folder for 20 steps of the tiny model."""
    spec = dataclasses.replace(demo_spec(), data=shards[0], **changes)  # type: ignore[arg-type]
    how = {"micro_batch_sequences": 4, "checkpoint_every_steps": 5, "log_every_steps": 1, **(placement or {})}
    folder = RunFolder(path)
    folder.create(spec, Placement(data_dir=str(shards[1]), **how), {})
    return folder


def numbers(folder: RunFolder) -> dict[str, dict[int, float | None]]:
    """Everything logged that does not depend on the clock."""
    return {name: series for name, series in folder.metrics().items() if not name.startswith(TIMING)}


@pytest.fixture(scope="module")
def finished(shards: tuple[DataSpec, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = run_in(tmp_path_factory.mktemp("runs") / "undisturbed", shards)
    assert train(folder).state == FINISHED
    return folder


def test_the_loss_falls_and_starts_at_the_size_of_the_vocabulary(finished: RunFolder) -> None:
    losses = finished.metrics()["val/loss"]
    assert losses[0] == pytest.approx(math.log(512), abs=0.4)
    assert losses[20] < losses[10] < losses[0] - 0.5


def test_golden_losses(finished: RunFolder) -> None:
    losses = finished.metrics()["train/loss"]
    assert [losses[s] for s in (1, 10, 20)] == pytest.approx(GOLDEN, abs=2e-3)


def test_the_metrics_keep_their_contract(finished: RunFolder) -> None:
    metrics, run = finished.metrics(), finished.spec()
    assert all(name.count("/") == 1 for name in metrics)
    for name in ("val/loss", "val/bpb", "val/loss_prose", "val/bpb_shout", "val/tokens", "val/flops"):
        assert tuple(metrics[name]) == run.evaluation_steps
    assert tuple(metrics["val/log10_flops"]) == run.evaluation_steps[1:]
    for name in ("train/loss", "train/grad_norm", "train/lr", "train/tokens", "train/log10_flops", "perf/tokens_per_s"):
        assert list(metrics[name]) == list(range(1, run.steps + 1))
    weights = run.data.weights
    mixed = sum(weights[n] * metrics[f"val/loss_{n}"][20] for n in weights)
    assert metrics["final/val_loss"][20] == metrics["val/loss"][20] == pytest.approx(mixed)
    assert metrics["train/lr"][20] == pytest.approx(run.optim.lr * run.optim.final_lr_fraction)


def test_a_finished_run_returns_at_once(finished: RunFolder) -> None:
    before = (finished.path / "metrics.jsonl").read_bytes()
    assert train(finished).state == FINISHED and (finished.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("cause", [ASKED, PREEMPTED])
def test_a_stopped_run_goes_on_where_it_was(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path, cause: str
) -> None:
    """The step at hand is finished and saved; a notice is told from a wish."""
    folder = run_in(tmp_path / "run", shards)
    state = train(folder, should_stop=stop_at(7, cause))
    assert (state.state, state.cause, state.step) == (STOPPED, cause, 8)
    assert sorted(int(p.name) for p in folder.checkpoints.iterdir()) == [5, 8]
    resumed = train(folder)
    assert (resumed.state, resumed.cause) == (FINISHED, None)
    assert numbers(folder) == numbers(finished)


def test_a_killed_run_resumes_to_the_last_bit(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path
) -> None:
    """SIGKILL of `python -m gopher train` in mid-run, then SIGTERM, then to the end."""
    folder = run_in(tmp_path / "run", shards)
    words = [sys.executable, "-W", "ignore", "-m", "gopher", "train", str(folder.path)]
    killed = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for_step(folder, 6)
    killed.kill()
    killed.wait()
    stopped = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    wait_for_attempt(folder, 2)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) in (130, 0)
    assert subprocess.run(words).returncode == 0
    assert numbers(folder) == numbers(finished)


def test_a_run_started_by_hand_says_which_attention_it_has(finished: RunFolder, tmp_path: Path) -> None:
    words = [sys.executable, "-W", "ignore", "-m", "gopher", "train"]
    folder = RunFolder(shutil.copytree(finished.path, tmp_path / "run"))
    (folder.path / "state.json").unlink()
    done = subprocess.run([*words, str(folder.path)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("chunked attention for torch.float32 on cpu") == 1
    folder.create(folder.spec(), dataclasses.replace(folder.placement(), device="cuda"), {})
    (folder.path / "state.json").unlink()
    done = subprocess.run([*words, str(folder.path)], capture_output=True, text=True)
    if not torch.cuda.is_available():
        assert done.returncode == 3 and done.stderr.count("\n") == 1 and "torch sees no CUDA device here" in done.stderr


def wait_for_step(folder: RunFolder, step: int) -> None:
    wait_for(lambda: (s := folder.state()) is not None and s.step >= step)


def wait_for_attempt(folder: RunFolder, attempt: int) -> None:
    wait_for(lambda: (s := folder.state()) is not None and s.attempt >= attempt)


def wait_for(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def train_rank(rank: int, path: Path, world: int) -> None:
    """What each rank of the run of several ranks does."""
    assert train(RunFolder(path), rank=rank, world=world).state == FINISHED


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_data_parallel_ranks_give_the_losses_of_one(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path, world: int
) -> None:
    folder = run_in(tmp_path / "run", shards, {"workers": world})
    on_ranks(world, train_rank, folder.path, world)
    one, several = numbers(finished), numbers(folder)
    for name in ("train/loss", "val/loss", "train/grad_norm"):
        assert several[name] == pytest.approx(one[name], abs=1e-5)


def test_stochastic_rounding_repeats_its_draws_after_a_resume(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    """To the last bit of losses and checkpoints, as its draws belong to (step, parameter, element)."""
    narrow = PrecisionSpec(
        parameters="bfloat16", compute="bfloat16", stochastic_rounding=True, gradient_reduce="float64"
    )
    whole, parts = (run_in(tmp_path / name, shards, precision=narrow) for name in ("whole", "parts"))
    assert train(whole).state == FINISHED
    asked = iter([None] * 7 + [ASKED])
    assert train(parts, should_stop=lambda: next(asked, None)).state == STOPPED
    assert train(parts).state == FINISHED
    assert numbers(parts) == numbers(whole)
    assert contents(parts, 20) == contents(whole, 20)
    losses = whole.metrics()["val/loss"]
    assert losses[20] < losses[0] - 0.5  # type: ignore[operator]


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
    ("placement", "words"),
    [
        ({"micro_batch_sequences": 5}, "micro_batch_sequences=4"),
        ({"workers": 3}, "divides the batch"),
        (
            {"workers": 2, "tensor_parallel": 2},
            "tensor_parallel is 2 and the run is started on 1 rank; start a multiple",
        ),
    ],
)
def test_a_batch_that_cannot_be_shared_out_names_what_works(
    shards: tuple, tmp_path: Path, placement: dict, words: str
) -> None:
    folder = run_in(tmp_path / "run", shards, placement)
    with pytest.raises(UsageError, match=words):
        train(folder, rank=0, world=3 if placement.get("workers") == 3 else 1)


def test_shards_of_another_tokenizer_are_refused(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    other = demo_spec(vocab_size=600)
    folder = run_in(tmp_path / "run", shards, model=other.model, tokenizer=other.tokenizer)
    with pytest.raises(UsageError, match="made with 512 pieces"):
        train(folder)


PRECISIONS = {
    "mixed": PrecisionSpec(compute="bfloat16"),
    "stochastic rounding": PrecisionSpec(parameters="bfloat16", compute="bfloat16", stochastic_rounding=True),
}


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_bfloat16_modes_learn_too(shards: tuple, finished: RunFolder, tmp_path: Path, precision: PrecisionSpec) -> None:
    folder = run_in(tmp_path / "run", shards, precision=precision)
    train(folder)
    last, reference = folder.last("val/loss"), finished.last("val/loss")
    assert last != reference and last == pytest.approx(reference, abs=0.15)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_nothing(
    shards: tuple, finished: RunFolder, tmp_path: Path, mode: str
) -> None:
    folder = run_in(tmp_path / "run", shards, {"activation_checkpointing": mode})
    train(folder)
    assert folder.metrics()["train/loss"] == pytest.approx(finished.metrics()["train/loss"], abs=1e-5)


def test_the_key_of_the_folder_is_the_key_of_its_spec(finished: RunFolder) -> None:
    assert isinstance(finished.spec(), RunSpec) and len(finished.spec().key) == 12 and os.path.isdir(finished.path)


# ---- trouble on the way


def drill(folder: RunFolder, *faults: dict) -> RunFolder:
    (folder.path / "drill.json").write_text(json.dumps(faults))
    return folder


def kinds(folder: RunFolder) -> list[tuple[str, int | None]]:
    return [(e["kind"], e["step"]) for e in folder.events()]


@pytest.mark.parametrize("step", [3, 12])  # before the first checkpoint and after two of them
def test_a_fault_that_does_not_come_back_costs_no_bit(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path, step: int
) -> None:
    folder = drill(run_in(tmp_path / "run", shards), {"step": step, "fault": "nan"})
    assert train(folder).state == FINISHED
    assert numbers(folder) == numbers(finished)
    assert kinds(folder) == [("rewind", step)]


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


@pytest.mark.parametrize("step", [None, 3, 12, 14])  # 14: known at the checkpoint of step 15
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
    folder = run_in(tmp_path / "run", shards, {"log_every_steps": 4, "checkpoints": "async"})
    if step is not None:
        drill(folder, {"step": step, "fault": "nan"})
    state = train(folder, should_stop=stop_at(8))
    assert (state.state, state.cause) == (STOPPED, ASKED)
    assert train(folder).state == FINISHED
    undisturbed = numbers(finished)["train/loss"]
    losses = numbers(folder)["train/loss"]
    assert list(losses) == [1, 4, 8, 12, 16, 20]
    assert losses == {s: undisturbed[s] for s in losses}
    assert numbers(folder)["val/loss"] == numbers(finished)["val/loss"]
    assert kinds(folder) == ([] if step is None else [("rewind", step)])
    assert sum(map(math.isnan, scales)) == len(kinds(folder))


def test_a_run_beyond_help_says_so_and_keeps_its_checkpoint(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    folder = drill(run_in(tmp_path / "run", shards), {"step": 7, "fault": "nan", "times": None})
    with pytest.raises(
        GopherError, match=r"step 8 has loss nan .* batches were skipped 5 times already; lower optim.lr"
    ):
        train(folder)
    state = folder.state()
    assert state is not None and state.state == FAILED
    assert [int(p.name) for p in folder.checkpoints.iterdir()] == [5]


def test_progress_is_on_record_while_steps_are_done(finished: RunFolder) -> None:
    state = finished.state()
    assert state is not None and 0 <= state.updated_at - state.progressed_at < 5


def test_checkpoints_beside_the_steps_hold_the_same_bits(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path
) -> None:
    folder = run_in(tmp_path / "run", shards, {"checkpoints": "async", "named_checkpoints": "log"})
    assert train(folder).state == FINISHED
    assert numbers(folder) == numbers(finished)
    assert sorted(int(p.name) for p in folder.checkpoints.iterdir()) == [0, 1, 2, 4, 8, 15, 16, 20]
    for one, other in zip(contents(folder, 20), contents(finished, 20), strict=True):
        assert one == other
    shutil.rmtree(folder.checkpoints / "0000000020")
    folder.write_state(dataclasses.replace(folder.state(), state=STOPPED))  # type: ignore[type-var]
    assert train(folder).state == FINISHED and numbers(folder) == numbers(finished)


def contents(folder: RunFolder, step: int) -> list[dict]:
    marker = json.loads((folder.checkpoints / f"{step:010d}" / "complete.json").read_text())
    return [mark for name, mark in sorted(marker["files"].items()) if name.endswith(".distcp")]


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints of the tiny model and the record."""
    with disk_of("1600k", tmp_path / "disk") as disk:
        yield disk


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    shards: tuple[DataSpec, Path], finished: RunFolder, small_disk: Path, mode: str
) -> None:
    """Training goes on, says so, and keeps the last whole checkpoint; with space again the run ends as if nothing had been."""
    folder = run_in(small_disk / "run", shards, {"checkpoints": mode, "keep_checkpoints": 1})
    train(folder, should_stop=stop_at(4))  # one checkpoint, of step 5
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 60_000))  # leaves the record its kilobytes
    with pytest.raises(GopherError, match="the checkpoint of step 20 could not be written .* free some space"):
        train(folder)
    assert [p.name for p in folder.checkpoints.iterdir()] == ["0000000005"]
    assert [e["kind"] for e in folder.events()] == ["warning", "warning"]  # steps 10 and 15
    filler.unlink()
    assert train(folder).state == FINISHED
    assert numbers(folder) == numbers(finished)


@pytest.mark.filterwarnings("ignore:the checkpoint of step", "ignore:the record in")
def test_a_disk_without_a_byte_left_stops_nothing(
    shards: tuple[DataSpec, Path], finished: RunFolder, small_disk: Path
) -> None:
    """Neither training nor a stop: what the record had no room for is written once there is some."""
    folder, calls, filler = run_in(small_disk / "run", shards), iter(range(1000)), small_disk / "filler"

    def fill_then_stop() -> str | None:
        step = next(calls)
        if step == 6:
            fill(filler)
        return PREEMPTED if step == 9 else None

    state = train(folder, should_stop=fill_then_stop)
    assert (state.state, state.cause, state.step) == (STOPPED, PREEMPTED, 5)  # the step of the checkpoint there is
    filler.unlink()
    calls = iter(range(1000))

    def fill_then_free() -> None:
        step = next(calls)
        if step == 2:
            fill(filler)
        if step == 11:
            filler.unlink()

    assert train(folder, should_stop=fill_then_free).state == FINISHED
    assert numbers(folder) == numbers(finished)
    assert ("warning", 10) in kinds(folder)


def fill(path: Path) -> None:
    """Take every byte there is."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.filterwarnings("ignore:.* is damaged")
def test_a_torn_event_and_a_damaged_checkpoint_together(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path
) -> None:
    folder, calls = run_in(tmp_path / "run", shards), iter(range(100))
    train(folder, should_stop=lambda: ASKED if next(calls) == 11 else None)
    (folder.checkpoints / "0000000012" / ".metadata").write_bytes(b"")
    (folder.path / "events.jsonl").write_text('{"kind": "warn')
    assert train(folder).state == FINISHED
    assert [e["kind"] for e in folder.events()] == ["warning"] and numbers(folder) == numbers(finished)


def train_many(rank: int, paths: list[Path], counts: Path) -> None:
    """Threads and descriptors of the first rank after each run."""
    held = []
    for path in paths:
        train(RunFolder(path), rank=rank, world=2)
        gc.collect()
        held.append([len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))])
    if rank == 0:
        counts.write_text(json.dumps(held))


def test_run_after_run_leaves_no_thread_and_no_descriptor(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    how = {"workers": 2, "checkpoints": "async"}
    paths = [run_in(tmp_path / str(seed), shards, how, seed=seed).path for seed in range(4)]
    on_ranks(2, train_many, paths, tmp_path / "counts")
    held = json.loads((tmp_path / "counts").read_text())
    assert held[1] == held[3], held


def test_muon_trains_and_resumes_to_the_bit(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    optim = dataclasses.replace(demo_spec().optim, kind="muon")
    whole, parts = (run_in(tmp_path / name, shards, optim=optim) for name in ("whole", "parts"))
    train(whole)
    asked = iter([None] * 8 + [ASKED])
    assert train(parts, should_stop=lambda: next(asked, None)).state == STOPPED
    assert train(parts).state == FINISHED
    assert numbers(parts) == numbers(whole)
    losses = whole.metrics()["val/loss"]
    assert losses[20] < losses[0] - 0.5  # type: ignore[operator]


def test_a_checkpoint_kept_for_ever_survives_a_placement_that_names_none(
    shards: tuple[DataSpec, Path], tmp_path: Path
) -> None:
    often = {"checkpoint_every_steps": 4, "keep_checkpoints": 1}
    folder = run_in(tmp_path / "run", shards, {**often, "named_checkpoints": "log"})
    train(folder, should_stop=lambda: ASKED if (folder.last("train/tokens") or 0) >= 9 * 1024 else None)
    run_in(tmp_path / "run", shards, often)
    assert train(folder).state == FINISHED
    kept = [int(path.name) for path in folder.checkpoints.iterdir()]
    assert {0, 1, 2, 4, 8} < set(kept) and 16 not in kept


def test_no_checkpoint_is_ahead_of_the_numbers_on_disk(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every published checkpoint finds the rows up to its step synced."""
    folder, synced, published = run_in(tmp_path / "run", shards), [0], []
    fsync, replace = os.fsync, os.replace

    def sync(handle: int) -> None:
        fsync(handle)
        if os.readlink(f"/proc/self/fd/{handle}").endswith("metrics.jsonl"):
            synced.append(int(folder.last("train/tokens") or 0) // 1024)

    def publish(part: Path, final: Path) -> None:
        replace(part, final)
        if Path(final).parent == folder.checkpoints:
            published.append((int(Path(final).name), synced[-1]))

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", publish)
    assert train(folder).state == FINISHED
    assert [step for step, _ in published] == [5, 10, 15, 20] and all(on_disk >= step for step, on_disk in published)


def test_a_wish_to_stop_is_obeyed_once(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sweep may go on with the run without having seen that it was asked to stop."""
    from sweeps.backends import ray_gang

    monkeypatch.setattr(ray_gang, "leaving", lambda: False)
    folder = run_in(tmp_path / "run", shards)
    folder.request_stop(PREEMPTED)
    first = ray_gang.train_one(folder, 0, 1)
    assert (first["ok"], first["cause"]) == (False, PREEMPTED) and folder.stop_requested() is None
    assert ray_gang.train_one(folder, 0, 1)["ok"]
