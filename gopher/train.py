"""One training run, read top to bottom in the order it happens.

The numbers depend on the spec alone: batch `s` is sequences `sequences_before(s)`.. of a fixed order, cut into
micro-batches that ranks share out; gradients are sums over micro-batches; resuming repeats the same bits.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from gopher import checkpoint
from gopher.data import TokenStore, check_epochs
from gopher.errors import GopherError, UsageError
from gopher.model import Transformer
from gopher.optim import Adam, clip_scale, learning_rate
from gopher.record import FAILED, FINISHED, RUNNING, STOPPED, RunFolder, RunState
from gopher.shard import build, parts, process_group, release, sync_gradients
from gopher.size import params_non_embedding, train_flops
from gopher.spec import Placement, RunSpec

LOGGED_ROWS = 250  # at most about this many rows per run, however long it is


def train(
    folder: RunFolder, *, rank: int = 0, world: int = 1, should_stop: Callable[[], bool] | None = None
) -> RunState:
    """Train the run in `folder` to its end, from its newest checkpoint if it has one; the final state.

    Called on every rank of an initialised process group, or alone. A finished run returns at once.
    """
    run, placement = folder.spec(), folder.placement()
    before = folder.state()
    if before is not None and before.state == FINISHED:
        return before
    journal = Journal(folder, rank, before)
    try:
        check_batch(run, placement, world)
        torch.set_num_threads(placement.threads_per_worker)
        with process_group(placement.device):
            return train_steps(folder, run, placement, journal, rank, world, should_stop or (lambda: False))
    except Exception as failure:
        journal.state(FAILED, reason=one_line(failure))
        raise


def train_steps(
    folder: RunFolder,
    run: RunSpec,
    placement: Placement,
    journal: "Journal",
    rank: int,
    world: int,
    should_stop: Callable[[], bool],
) -> RunState:
    # ---- data, model, optimizer, newest checkpoint
    store = TokenStore.open(placement.data_dir)
    check_vocabulary(run, store)
    check_epochs(store, run.data, run.train_tokens)
    validation = store.validation(run.model.context, run.evaluation.tokens_per_subset)
    model = build(run, placement)
    adam = Adam(parts(model), run)
    step = checkpoint.restore(folder.checkpoints, adam, run.key)
    log_every = max(placement.log_every_steps, math.ceil(run.steps / LOGGED_ROWS))
    stop, saved = False, step
    journal.start(step)

    while True:
        # ---- evaluation; after a resume at such a step it is repeated with the same result
        if step in run.evaluation_steps:
            metrics = evaluate(model, run, placement, validation, rank, world)
            journal.log(step, metrics | budget(run, step, "val"))
            if step == run.steps:
                journal.log(step, final_metrics(run, metrics, journal.train_seconds, world))
                return journal.state(FINISHED, step)
        if stop:
            if saved != step:
                checkpoint.save(folder.checkpoints, step, adam, run.key, placement.keep_checkpoints)
            return journal.state(STOPPED, step, reason="asked to stop; the run resumes from its checkpoint")

        # ---- forward and backward over this rank's micro-batches
        began = time.perf_counter()
        nats = torch.zeros((), dtype=torch.float64, device=placement.device)
        micro_batches = list(own_micro_batches(run, placement, step, rank, world))
        for start in micro_batches:
            batch = store.batch(run.data, run.seed, start, start + placement.micro_batch_sequences, run.model.context)
            inputs, targets = (torch.from_numpy(x).to(placement.device) for x in batch)
            sync_gradients(model, now=start == micro_batches[-1])
            loss = model(inputs, targets)
            (loss / run.batch_tokens(step)).backward()
            nats += loss.detach()

        # ---- one reduction tells every rank the loss, the norm and whether to stop
        totals = torch.stack([nats, adam.squared_norm(), nats.new_tensor(float(should_stop()))])
        if world > 1:
            dist.all_reduce(totals)
        loss_sum, squared_norm, stops = totals.tolist()
        # Rounded to float32, so that the order in which ranks were added up (1e-16) does not show.
        loss_per_token, norm = torch.tensor([loss_sum / run.batch_tokens(step), math.sqrt(squared_norm)]).tolist()
        if not (math.isfinite(loss_per_token) and math.isfinite(norm)):
            raise GopherError(
                f"step {step + 1} has loss {loss_per_token} and gradient norm {norm}; parameters are untouched and the "
                f"checkpoint of step {saved} is intact, so lower optim.lr (now {run.optim.lr:g}) or inspect the data"
            )

        # ---- update
        rate = learning_rate(run.optim, step + 1, run.steps)
        adam.step(step + 1, rate, clip_scale(norm, run.optim.clip_norm))
        adam.zero_grad()
        step, stop = step + 1, stops > 0
        journal.count(run.batch_tokens(step - 1), time.perf_counter() - began)

        # ---- log, checkpoint
        if step % log_every == 0 or step in (1, run.steps):
            rows = {"train/loss": loss_per_token, "train/grad_norm": norm, "train/lr": rate}
            journal.log(step, rows | budget(run, step, "train") | journal.speed())
            journal.state(RUNNING, step)
        if step % placement.checkpoint_every_steps == 0 or step == run.steps:
            saved = save(folder, step, adam, run, placement, saved)


def save(folder: RunFolder, step: int, adam: Adam, run: RunSpec, placement: Placement, saved: int) -> int:
    """Step of the newest checkpoint: `step`, or `saved` with a warning when it could not be written before the end."""
    try:
        checkpoint.save(folder.checkpoints, step, adam, run.key, placement.keep_checkpoints)
    except GopherError as failure:
        if step == run.steps:
            raise
        warnings.warn(f"{failure}; training goes on", stacklevel=2)
        return saved
    return step


# ---- batches


def check_batch(run: RunSpec, placement: Placement, world: int) -> None:
    """Refuse a batch that the ranks cannot share out in whole micro-batches."""
    sequences, micro = run.batch.sequences, placement.micro_batch_sequences
    if sequences % world:
        raise UsageError(
            f"batch.sequences is {sequences} and placement.workers {world}; use a number of workers that divides the batch"
        )
    if sequences % (world * micro):
        fits = max(m for m in range(1, micro + 1) if (sequences // world) % m == 0)
        raise UsageError(
            f"batch.sequences is {sequences}, not a multiple of {world} workers * {micro} sequences of "
            f"placement.micro_batch_sequences; set placement.micro_batch_sequences={fits}"
        )


def check_vocabulary(run: RunSpec, store: TokenStore) -> None:
    if store.vocab_size != run.model.vocab_size:
        raise UsageError(
            f"model.vocab_size is {run.model.vocab_size} but the token shards were made with {store.vocab_size} pieces; "
            "point the run at shards of its own tokenizer"
        )


def own_micro_batches(run: RunSpec, placement: Placement, step: int, rank: int, world: int) -> Iterator[int]:
    """First sequence of each micro-batch of `step` that `rank` computes: a contiguous share of the global batch."""
    share = run.batch_sequences(step) // world
    begin = run.sequences_before(step) + rank * share
    return iter(range(begin, begin + share, placement.micro_batch_sequences))


# ---- evaluation


@torch.no_grad()
def evaluate(
    model: Transformer, run: RunSpec, placement: Placement, validation: Any, rank: int, world: int
) -> dict[str, float | None]:
    """val/* of the current parameters: nats per token and bits per byte, by subset and weighted by the mixture."""
    names = list(run.data.weights)
    nats = torch.stack([summed_nats(model, validation[name], placement, rank, world) for name in names])
    release(model)
    if world > 1:
        dist.all_reduce(nats)
    metrics: dict[str, float | None] = {"val/loss": 0.0, "val/bpb": 0.0}
    loss, bpb = 0.0, 0.0
    for name, subset_nats in zip(names, nats.tolist(), strict=True):
        subset, weight = validation[name], run.data.weights[name]
        metrics[f"val/loss_{name}"] = subset_nats / subset.n_tokens
        metrics[f"val/bpb_{name}"] = subset_nats / math.log(2) / subset.n_bytes
        loss += weight * subset_nats / subset.n_tokens
        bpb += weight * subset_nats / math.log(2) / subset.n_bytes
    return metrics | {"val/loss": loss, "val/bpb": bpb}


def summed_nats(model: Transformer, subset: Any, placement: Placement, rank: int, world: int) -> torch.Tensor:
    """float64 nats of this rank's share of a subset; ranks with less to do repeat a batch that counts for nothing."""
    size = placement.micro_batch_sequences
    starts = list(range(0, len(subset.inputs), size))
    total = torch.zeros((), dtype=torch.float64, device=placement.device)
    for i in range(
        rank, -(-len(starts) // world) * world, world
    ):  # FSDP needs the same number of forwards on all ranks
        rows = slice(starts[i % len(starts)], starts[i % len(starts)] + size)
        inputs, targets = (torch.from_numpy(x[rows]).to(placement.device) for x in (subset.inputs, subset.targets))
        nats = model(inputs, targets)
        total += nats if i < len(starts) else 0.0
    return total


# ---- what is logged


def budget(run: RunSpec, step: int, prefix: str) -> dict[str, float | None]:
    """Tokens and FLOPs spent after `step` steps, the abscissas of every curve."""
    tokens, flops = run.tokens_before(step), train_flops(run, step)
    spent: dict[str, float | None] = {f"{prefix}/tokens": float(tokens)}
    if prefix != "train":
        spent[f"{prefix}/flops"] = flops
    return spent | ({f"{prefix}/log10_flops": math.log10(flops)} if step else {})


def final_metrics(
    run: RunSpec, metrics: dict[str, float | None], train_seconds: float, world: int
) -> dict[str, float | None]:
    """final/*: the last evaluation and what the run cost."""
    last = {name.replace("val/", "final/val_"): value for name, value in metrics.items()}
    cost = {"final/train_seconds": train_seconds, "final/worker_hours": train_seconds * world / 3600}
    cost["final/log10_params_nonemb"] = math.log10(params_non_embedding(run.model))
    return last | budget(run, run.steps, "final") | cost


class Journal:
    """What rank 0 writes about a run; the other ranks call the same methods and write nothing."""

    def __init__(self, folder: RunFolder, rank: int, before: RunState | None) -> None:
        self.folder, self.rank = folder, rank
        before = before or RunState(state=RUNNING)
        self.now = dataclasses.replace(before, attempt=before.attempt + 1, reason=None, tokens_per_second=None)
        self.earlier, self.began = before.train_seconds, time.perf_counter()
        self.tokens, self.steps, self.seconds = 0, 0, 0.0

    @property
    def train_seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    def start(self, step: int) -> None:
        """Training begins: seconds count from here (imports and building are not training)."""
        self.began = time.perf_counter()
        if self.rank == 0:
            self.folder.trim_torn_line()
        self.state(RUNNING, step)

    def count(self, tokens: int, seconds: float) -> None:
        self.tokens, self.steps, self.seconds = self.tokens + tokens, self.steps + 1, self.seconds + seconds

    def speed(self) -> dict[str, float | None]:
        """Speed of the steps since the last call, evaluation and checkpoints apart."""
        tokens_per_second, step_seconds = self.tokens / self.seconds, self.seconds / self.steps
        self.now = dataclasses.replace(self.now, tokens_per_second=tokens_per_second)
        self.tokens, self.steps, self.seconds = 0, 0, 0.0
        return {"perf/tokens_per_s": tokens_per_second, "perf/step_s": step_seconds}

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        self.now = dataclasses.replace(
            self.now,
            train_loss=metrics.get("train/loss", self.now.train_loss),
            val_loss=metrics.get("val/loss", self.now.val_loss),
        )
        if self.rank == 0:
            self.folder.log(step, metrics)

    def state(self, state: str, step: int | None = None, reason: str | None = None) -> RunState:
        step = self.now.step if step is None else step
        self.now = dataclasses.replace(
            self.now, state=state, step=step, reason=reason, train_seconds=self.train_seconds
        )
        if self.rank == 0:
            self.folder.write_state(self.now)
        return self.now


def one_line(failure: BaseException) -> str:
    text = str(failure).strip().splitlines()
    return (
        text[0] if isinstance(failure, GopherError) and text else f"{type(failure).__name__}: {text[0] if text else ''}"
    )
