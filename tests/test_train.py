"""The training loop on real text: it learns, resumes to the last bit after SIGKILL, stops at a checkpoint when asked, and one or two
ranks give the same losses. Golden losses guard the numbers of model, data order and optimizer together."""

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
from pathlib import Path

import pytest
import torch
from distributed import on_ranks
from studies import demo_spec, stop_at
from training import contents, numbers, run_in

from gopher.checkpoint import Saver
from gopher.data import TokenStore
from gopher.errors import UsageError
from gopher.journal import Journal
from gopher.model import Transformer, initialise
from gopher.record import ASKED, FINISHED, PREEMPTED, STOPPED, RunFolder
from gopher.spec import BatchSpec, DataSpec, PrecisionSpec, RunSpec
from gopher.train import train

GOLDEN = [6.358185, 5.275566, 5.059505]  # nats per token after steps 1, 10, 20


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


def test_a_doubled_batch_has_the_mean_gradient_of_all_its_sequences(
    shards: tuple[DataSpec, Path], tmp_path: Path
) -> None:
    """Of sequences 16 to 47 at the initial parameters, which updates of 1e-20 leave as they are."""
    optim = dataclasses.replace(demo_spec().optim, lr=1e-20, warmup_start_lr=0.0, warmup_steps=0)
    batch = BatchSpec(sequences=16, double_at_tokens=16 * 64)
    folder = run_in(tmp_path / "run", shards, optim=optim, batch=batch, tokens=48 * 64)
    train(folder)
    run = folder.spec()
    model = Transformer(run.model)
    initialise([(name, p.data.view(-1), 0) for name, p in model.named_parameters()], run.model, run.seed)
    inputs, targets = map(
        torch.from_numpy, TokenStore.open(shards[1]).batch(run.data, run.seed, 16, 48, run.model.context)
    )
    loss = model(inputs, targets) / targets.numel()
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))  # type: ignore[union-attr]
    assert run.steps == 2 and folder.last("train/loss") == pytest.approx(loss.item(), abs=1e-5)
    assert folder.last("train/grad_norm") == pytest.approx(norm, rel=1e-4)


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


def test_a_checkpoint_is_tried_though_the_one_before_it_failed_late(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow writes are published as the next one begins; the first finds no room."""
    sync, failures = Journal.sync, [OSError("no room")]

    def fail_once(journal: Journal) -> None:
        if failures:
            raise failures.pop()
        sync(journal)

    monkeypatch.setattr(Journal, "sync", fail_once)
    monkeypatch.setattr(Saver, "written", False)
    how = {"checkpoints": "async", "checkpoint_every_steps": 4, "keep_checkpoints": 9}
    folder = run_in(tmp_path / "run", shards, how)
    with pytest.warns(UserWarning, match="step 4 could not be written .*no room.* training goes on"):
        assert train(folder).state == FINISHED
    assert sorted(int(p.name) for p in folder.checkpoints.iterdir()) == [8, 12, 16, 20]


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
