"""Pieces of an evaluation on Ray actors: checkpoints resident per actor, and whoever is free takes what is left."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gopher.errors import GopherError, first_line
from gopher.evals import units
from gopher.evals.store import Store
from gopher.evals.units import Unit

ATTEMPTS = 3  # of one piece, whose actor died under it


def next_unit(waiting: Sequence[Unit], resident: tuple[str, ...] | None, held: Sequence[tuple[str, ...]]) -> Unit:
    """What a free actor takes: more of its own checkpoints, else of those with the most left per actor that holds them."""
    own = [u for u in waiting if u.who == resident]
    if own:
        return own[0]
    left, holders = Counter(u.who for u in waiting), Counter(held)
    return max(waiting, key=lambda u: left[u.who] / (1 + holders[u.who]))


def score_on_ray(
    ray: Any, work: Sequence[Unit], bundles: Path, store: Store, actors: int, gpus: int, done: Callable[[int], None]
) -> int:
    """Score every piece; requests scored. `done` is told how many pieces are left after each."""
    waiting, attempts, total = list(work), Counter[Unit](), 0
    make = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0)(Scorer).remote
    free = {make(bundles, store): None for _ in range(min(actors, len(waiting)))}
    resident: dict[Any, tuple[str, ...] | None] = dict(free)
    running: dict[Any, tuple[Any, Unit]] = {}
    while waiting or running:
        for actor in [a for a in free if waiting]:
            if not waiting:
                break
            unit = next_unit(waiting, resident[actor], [who for who in resident.values() if who])
            waiting.remove(unit)
            resident[actor] = unit.who
            running[actor.score.remote(unit)] = actor, unit
            del free[actor]
        (reference, *_), _ = ray.wait(list(running))
        actor, unit = running.pop(reference)
        try:
            total += ray.get(reference)
            free[actor] = None
        except ray.exceptions.RayActorError as lost:
            attempts[unit] += 1
            if attempts[unit] == ATTEMPTS:
                raise GopherError(
                    f"scoring {unit.parts[0].task} killed its worker {ATTEMPTS} times ({first_line(lost)}); "
                    "lower evals.limit, or use a machine with more memory"
                ) from None
            waiting.append(unit)
            del resident[actor]
            another = make(bundles, store)
            free[another] = resident[another] = None
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        done(len(waiting) + len(running))
    return total


class Scorer(units.Scorer):
    """Actor on one core."""

    def __init__(self, bundles: Path, store: Store) -> None:
        import torch

        torch.set_num_threads(1)
        super().__init__(bundles, store)
