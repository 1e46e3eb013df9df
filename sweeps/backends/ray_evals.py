"""Shards of evaluation requests on Ray actors: one checkpoint resident per actor, and whoever is free takes what is left."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import GopherError
from gopher.evals.checkpoints import Checkpoint
from gopher.evals.store import Store

ATTEMPTS = 3  # of one shard, whose actor died under it


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The smallest piece of work: some of a task's requests, put to one checkpoint."""

    checkpoint: Checkpoint
    task: str
    bundle: str  # key
    number: int


def next_shard(waiting: Sequence[Shard], resident: str | None, held: Sequence[str]) -> Shard:
    """What a free actor takes: more of its own checkpoint, else of the one with the most left per actor that holds it."""
    own = [s for s in waiting if s.checkpoint.sha256 == resident]
    if own:
        return own[0]
    left, holders = Counter(s.checkpoint.sha256 for s in waiting), Counter(held)
    return max(waiting, key=lambda s: left[s.checkpoint.sha256] / (1 + holders[s.checkpoint.sha256]))


def score_on_ray(
    ray: Any, shards: Sequence[Shard], bundles: Path, store: Store, actors: int, gpus: int, done: Callable[[int], None]
) -> int:
    """Score every shard; requests scored. `done` is told how many shards are left after each."""
    waiting, attempts, total = list(shards), Counter[Shard](), 0
    make = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Scorer).remote
    free = {make(bundles, store): None for _ in range(min(actors, len(waiting)))}
    resident: dict[Any, str | None] = dict(free)
    running: dict[Any, tuple[Any, Shard]] = {}
    while waiting or running:
        for actor in [a for a in free if waiting]:
            if not waiting:
                break
            shard = next_shard(waiting, resident[actor], [sha for sha in resident.values() if sha])
            waiting.remove(shard)
            resident[actor] = shard.checkpoint.sha256
            running[actor.score.remote(shard)] = actor, shard
            del free[actor]
        (reference, *_), _ = ray.wait(list(running))
        actor, shard = running.pop(reference)
        try:
            total += ray.get(reference)
            free[actor] = None
        except ray.exceptions.RayActorError as lost:
            attempts[shard] += 1
            if attempts[shard] == ATTEMPTS:
                raise GopherError(
                    f"shard {shard.number} of {shard.task} killed its worker {ATTEMPTS} times ({str(lost).splitlines()[0]}); "
                    "lower evals.limit, or use a machine with more memory"
                ) from None
            waiting.append(shard)
            del resident[actor]
            another = make(bundles, store)
            free[another] = resident[another] = None
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        done(len(waiting) + len(running))
    return total


class Scorer:
    """Actor that keeps one checkpoint and the bundles it has read."""

    def __init__(self, bundles: Path, store: Store) -> None:
        import torch

        torch.set_num_threads(1)
        self._folder, self._store = bundles, store
        self._checkpoint: Checkpoint | None = None
        self._rung: Any = None
        self._bundles: dict[str, Any] = {}
        self._encoders: Any = {}

    def score(self, shard: Shard) -> int:
        """Requests scored of the shard: all, or none where the store has them."""
        from gopher.evals.bundle import read_bundle
        from gopher.evals.store import score_missing

        if self._checkpoint != shard.checkpoint:
            self._checkpoint, self._rung = shard.checkpoint, shard.checkpoint.open()
        if shard.bundle not in self._bundles:
            self._bundles[shard.bundle] = read_bundle(self._folder, shard.task, shard.bundle)
        return score_missing([self._rung], self._bundles[shard.bundle], self._store, [shard.number], self._encoders)
