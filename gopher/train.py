"""One training run, read top to bottom in the order it happens.

The numbers depend on the spec alone: batch `s` is sequences `sequences_before(s)`.. of a fixed order, cut into
micro-batches that ranks share out; gradients are sums over micro-batches; resuming repeats the same bits. Only how many
batches are passed over with one that is bad for good depends on where checkpoints are.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gopher import checkpoint
from gopher.data import TokenStore, check_epochs
from gopher.drill import Drill
from gopher.errors import GopherError, UsageError, first_line
from gopher.journal import Journal
from gopher.metrics import budget, final_metrics, utilised
from gopher.model import Transformer, initialise
from gopher.optim import Adam, clip_scale, learning_rate, optimizer_of
from gopher.record import ASKED, FAILED, FINISHED, PREEMPTED, RUNNING, STOPPED, RunFolder, RunState
from gopher.shard import build, mesh_of, on_device, parts, process_group, sync_gradients
from gopher.spec import Placement, RunSpec, check_shares, check_version
from gopher.stability import Trouble, Watch, plan, skipped_before, skips_of
from gopher.validation import evaluate, untrusted

LOGGED_ROWS = 250  # at most about this many rows per run, however long it is
LAG_STEPS = {"cpu": 0, "cuda": 1}  # how late the host reads a step's sums
STOPS = {ASKED: "asked to stop", PREEMPTED: "its place was taken away"}


def train(
    folder: RunFolder, *, rank: int = 0, world: int = 1, should_stop: Callable[[], str | None] | None = None
) -> RunState:
    """Train the run in `folder` to its end, from its newest checkpoint if it has one; the final state.

    Called on every rank of an initialised process group, or alone. A finished run returns at once. `should_stop` is asked
    at every step; ASKED or PREEMPTED from any rank ends the run at a checkpoint with that cause.
    """
    run, placement = folder.spec(), folder.placement()
    before = folder.state()
    if before is not None and before.state == FINISHED:
        return before
    journal = Journal(folder, rank, before)
    try:
        check_version(run)
        check_shares(run, placement, world)
        torch.set_num_threads(placement.threads_per_worker)
        if rank == 0:
            folder.trim_torn_lines()
        with process_group(placement.device), contextlib.ExitStack() as ends:
            return train_steps(folder, run, placement, journal, rank, world, should_stop or (lambda: None), ends)
    except Exception as failure:
        journal.state(FAILED, reason=one_line(failure))
        raise


def train_steps(
    folder: RunFolder,
    run: RunSpec,
    placement: Placement,
    journal: Journal,
    rank: int,
    world: int,
    should_stop: Callable[[], str | None],
    ends: contextlib.ExitStack,
) -> RunState:
    # ---- data, model, optimizer, newest checkpoint
    together = placement.tensor_parallel  # ranks that compute the same sequences
    share, shares = rank // together, world // together
    store = TokenStore.open(placement.data_dir)
    check_vocabulary(run, store)
    check_epochs(store, run.data, run.train_tokens)
    validation = store.validation(run.model.context, run.evaluation.tokens_per_subset)
    model = build(run, placement, ends.enter_context(mesh_of(placement)))
    adam = optimizer_of(parts(model), run)
    saver = checkpoint.Saver(folder.checkpoints, adam, run.key, placement, run.steps, journal.sync)
    ends.callback(saver.close)
    step = saver.restore(tell=journal.warn) or 0
    if step == 0:
        inherit(model, run, placement)
    skips = skips_of(journal.events())
    pulse, drill = Pulse(run, world, watch_at(folder, step), step - 1), Drill(folder, rank)
    log_every = max(placement.log_every_steps, math.ceil(run.steps / LOGGED_ROWS))

    def is_due(step: int) -> bool:
        """Whether a checkpoint is."""
        regular = step > 0 and step % placement.checkpoint_every_steps == 0
        return regular or step == run.steps or step in saver.named

    trouble: Trouble | None = None
    journal.start(step)

    while True:
        # ---- back to before what cannot be trusted
        if trouble:
            step = rewind(folder, run, model, adam, saver, journal, pulse.step, trouble)
            skips = skips_of(journal.events())
            pulse = Pulse(run, world, watch_at(folder, step), step - 1, pulse.stop)
            trouble = None

        # ---- evaluation; after a resume at such a step it is repeated with the same result
        metrics: dict[str, float | None] = {}
        if step in run.evaluation_steps:
            metrics = evaluate(model, run, placement, validation, share, shares)
            if trouble := untrusted(metrics):
                continue  # no checkpoint was made of this step
            journal.log(step, metrics | budget(run, step, "val"))
        if is_due(step):
            save(saver, step, run, journal, pulse)
        if step == run.steps:
            journal.log(step, final_metrics(run, metrics, journal.train_seconds, world))
            return journal.state(FINISHED, step)
        if cause := pulse.stop:
            return stop(cause, saver, step, run, journal, pulse)

        # ---- forward and backward over this rank's micro-batches
        began = time.perf_counter()
        first = run.sequences_before(step) + skipped_before(skips, step)
        micro_batches = own_micro_batches(run, placement, step, first, share, shares)
        nats = accumulate(model, store, run, placement, step, micro_batches)
        nats = drill.strike(step, first, first + run.batch_sequences(step), nats / together, run.batch_tokens(step))

        # ---- one reduction tells every rank the loss, the norm, who wants to stop and whose checkpoint is on disk
        totals = totals_of(nats, adam.squared_norm(), should_stop(), saver.written, placement)
        pulse.send(step, totals)

        # ---- update, once what is due to be read can be trusted; logs, checkpoints and evaluations wait for this step too
        trouble = pulse.hear(LAG_STEPS[placement.device])
        if trouble is None:
            rate = learning_rate(run.optim, step + 1, run.steps)
            # on the device, as the host may hear of it one step later: a loss that is not finite makes the norm nan
            norm = totals[1] + (totals[0] - totals[0])
            adam.step(step + 1, rate, clip_scale(norm, run.optim.clip_norm))
            step += 1
            logging = step % log_every == 0 or step in (1, run.steps)
            if logging or is_due(step) or pulse.stop or step in run.evaluation_steps:
                trouble = pulse.hear(0)
        adam.zero_grad()
        if pulse.written:
            publish(saver, journal)
            pulse.written = False
        if trouble:
            continue
        journal.count(run.batch_tokens(step - 1), time.perf_counter() - began)

        # ---- log
        if logging:
            rows = {"train/loss": pulse.loss, "train/grad_norm": pulse.norm, "train/lr": rate}
            journal.log(step, rows | budget(run, step, "train") | utilised(run, placement, world, journal.speed()))
            journal.state(RUNNING, step)
        journal.progress(step)


# ---- batches


def check_vocabulary(run: RunSpec, store: TokenStore) -> None:
    if store.vocab_size != run.model.vocab_size:
        raise UsageError(
            f"model.vocab_size is {run.model.vocab_size} but the token shards were made with {store.vocab_size} pieces; "
            "point the run at shards of its own tokenizer"
        )


def own_micro_batches(run: RunSpec, placement: Placement, step: int, first: int, share: int, shares: int) -> range:
    """First sequence of each micro-batch in number `share` of the `shares` contiguous parts of the batch of `step`."""
    size = run.batch_sequences(step) // shares
    begin = first + share * size
    return range(begin, begin + size, placement.micro_batch_sequences)


def accumulate(
    model: Transformer,
    store: TokenStore,
    run: RunSpec,
    placement: Placement,
    step: int,
    micro_batches: Sequence[int],
) -> torch.Tensor:
    """float64 nats of this rank's micro-batches, by their first sequences; gradients are summed, over ranks with the last one."""
    nats = torch.zeros((), dtype=torch.float64, device=placement.device)
    for start in micro_batches:
        batch = store.batch(run.data, run.seed, start, start + placement.micro_batch_sequences, run.model.context)
        inputs, targets = (on_device(x, placement) for x in batch)
        sync_gradients(model, now=start == micro_batches[-1])
        loss = model(inputs, targets)
        (loss / run.batch_tokens(step)).backward()
        nats += loss.detach()
    return nats


# ---- what the ranks tell each other


def totals_of(
    nats: torch.Tensor, squared_norm: torch.Tensor, asked: str | None, written: bool, placement: Placement
) -> torch.Tensor:
    """Sums over all ranks: nats, squared gradient norm, how many were asked to stop, got a notice, have written."""
    told = np.array([float(asked == ASKED), float(asked == PREEMPTED), float(written)])
    totals = torch.cat([torch.stack([nats, squared_norm]), on_device(told, placement)])
    if dist.get_world_size() > 1:
        dist.all_reduce(totals)
    return totals


class Pulse:
    """What the ranks tell each other in every step; read late on a GPU, so that the host need not wait for the device.

    A step that cannot be trusted is then known one update late, but before anything of it is logged, evaluated or saved;
    its own update did not happen if its loss or norm is not finite.
    """

    def __init__(self, run: RunSpec, world: int, watch: Watch, step: int, stop: str | None = None) -> None:
        self._run, self._world, self.watch = run, world, watch
        self._sent: deque[tuple[int, torch.Tensor, Any]] = deque()
        self.step = step  # the one read last, ...
        self.loss, self.norm = math.nan, math.nan  # ... its nats per token and its gradient's norm
        self.stop = stop  # why to stop, once a rank was asked to
        self.written = False  # whether the checkpoint on its way is on every rank's disk

    def send(self, step: int, totals: torch.Tensor) -> None:
        """What `totals_of` found at `step`, on its way to the host."""
        host, arrived = totals.to("cpu", non_blocking=True), None
        if totals.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._sent.append((step, host, arrived))

    def hear(self, keep: int) -> Trouble | None:
        """Read all but the last `keep` steps, up to the first that cannot be trusted: why not."""
        while len(self._sent) > keep:
            self.step, nats, squared_norm = self._next()
            # Rounded to float32, so that the order in which ranks were added up (1e-16) does not show.
            numbers = torch.tensor([nats / self._run.batch_tokens(self.step), math.sqrt(squared_norm)])
            self.loss, self.norm = numbers.tolist()
            if trouble := self.watch.trouble(self.loss, self.norm):
                while self._sent:  # steps that will be done again; what they tell of stops holds
                    self._next()
                return trouble
        return None

    def _next(self) -> tuple[int, float, float]:
        """The oldest step not yet read, its nats and squared norm."""
        step, host, arrived = self._sent.popleft()
        if arrived is not None:
            arrived.synchronize()
        nats, squared_norm, people, notices, written = host.tolist()
        self.stop = ASKED if people else self.stop or (PREEMPTED if notices else None)
        self.written = self.written or written == self._world
        return step, nats, squared_norm


# ---- checkpoints and the way back


def watch_at(folder: RunFolder, step: int) -> Watch:
    """The watch as it was at the checkpoint of `step`."""
    return Watch(**checkpoint.notes_of(folder.checkpoints, step).get("watch", {}))


def save(saver: checkpoint.Saver, step: int, run: RunSpec, journal: Journal, pulse: Pulse) -> None:
    """Save `step` unless it is, or warn that it could not be; at the end that is an error."""
    if saver.holds(step):
        return
    publish(saver, journal)  # the one before: if it failed, this one is tried all the same
    try:
        saver.save(step, {"watch": pulse.watch.state()})
        if step == run.steps:
            saver.finish()
    except GopherError as failure:
        if step == run.steps:
            raise
        journal.warn(f"{failure}; training goes on")


def stop(cause: str, saver: checkpoint.Saver, step: int, run: RunSpec, journal: Journal, pulse: Pulse) -> RunState:
    """The run's state where a rank was asked to stop, with what was done until then saved if there is room."""
    save(saver, step, run, journal, pulse)
    publish(saver, journal)
    back = saver.newest or 0  # an earlier step where the disk is full
    return journal.state(STOPPED, back, reason=f"{STOPS[cause]}; the run resumes from step {back}", cause=cause)


def publish(saver: checkpoint.Saver, journal: Journal) -> None:
    """A checkpoint written beside the steps becomes one; if it could not be written, training goes on without it."""
    try:
        saver.finish()
    except GopherError as failure:
        journal.warn(f"{failure}; training goes on")


def rewind(
    folder: RunFolder,
    run: RunSpec,
    model: Transformer,
    adam: Adam,
    saver: checkpoint.Saver,
    journal: Journal,
    step: int,
    trouble: Trouble,
) -> int:
    """Step of the checkpoint that was gone back to because of `trouble` at the batch of `step`; see `gopher.stability`.

    Raises `GopherError` when the run is beyond help. No update of a step that is not finite was made (see `Adam.step`), on
    no device, and no checkpoint holds anything from after it; a spike is known by its last step, its first ones are in.
    A checkpoint whose own next step fails twice is left behind as well.
    """
    publish(saver, journal)
    if step < 0:
        raise GopherError(
            f"the run has {trouble.sentence} before its first step; inspect its validation text, and its parent if it has one"
        )
    events = journal.events()
    what = plan(events, step, spike=trouble.spike)
    if what.hopeless:
        raise GopherError(
            f"step {step + 1} has {trouble.sentence} and {what.hopeless}; lower optim.lr (now {run.optim.lr:g}) or inspect the data"
        )
    back = saver.restore(latest=what.latest, tell=journal.warn) or 0
    if back == 0:
        start_over(model, adam, run, folder.placement())
    checkpoint.drop_after(folder.checkpoints, back)
    if what.skip:
        skips = skips_of(events)
        end = run.sequences_before(step + 1) + skipped_before(skips, step)
        passed = end - run.sequences_before(back) - skipped_before(skips, back)
        sentence = f"the batches of steps {back + 1} to {step + 1} gave {trouble.sentence} twice and are passed over"
        journal.event("skip", back, sentence, sequences=passed)
    else:
        journal.event(
            "rewind",
            step,
            f"step {step + 1} has {trouble.sentence}; going on from step {back} with the same batches",
            to=back,
        )
    journal.state(RUNNING, back)
    return back


def inherit(model: Transformer, run: RunSpec, placement: Placement) -> None:
    """The parent's weights, if the run has one."""
    if run.parent:
        if placement.parent_dir is None:
            raise UsageError(
                f"the run starts from parent {run.parent} and its placement has no parent_dir; launch it again with parent=..."
            )
        checkpoint.adopt(Path(placement.parent_dir), parts(model), run.parent)


def start_over(model: Transformer, adam: Adam, run: RunSpec, placement: Placement) -> None:
    """Parameters and moments as before the first step."""
    initialise(((p.name, p.local, p.place) for p in parts(model)), run.model, run.seed)
    inherit(model, run, placement)
    for moment in (*adam.mean, *adam.square):
        moment.zero_()


def one_line(failure: BaseException) -> str:
    said, kind = first_line(failure), type(failure).__name__
    return said if isinstance(failure, GopherError) or said == kind else f"{kind}: {said}"
