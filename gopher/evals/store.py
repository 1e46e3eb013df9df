"""Answers on disk, appended and never changed: evals/answers/<checkpoint>/<bundle>[-<scoring>]/<shard>.parquet.

A checkpoint is named by the hash of its weights, so no model is ever given another's answers; a shard is written whole
or not at all, so a kill loses at most the one that was being scored. Two processes never score the same shard.
"""

import fcntl
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gopher.evals.answers import Answer, Encoder, Scoring, answer
from gopher.evals.bundle import Bundle
from gopher.identity import content_hash
from gopher.inference import Rung
from gopher.record import written_whole


@dataclass(frozen=True, kw_only=True)
class Store:
    folder: Path  # <output root>/evals/answers
    scoring: Scoring = Scoring()

    def shard_path(self, checkpoint: str, bundle: Bundle, shard: int) -> Path:
        """`checkpoint`: the SHA-256 of `gopher.inference.Rung`."""
        asked = self.scoring.of(bundle.kinds)
        other = "" if asked == Scoring() else f"-{content_hash(asdict(asked))[:8]}"
        return self.folder / checkpoint[:16] / f"{bundle.key}{other}" / f"{shard:05d}.parquet"

    def missing(self, checkpoint: str, bundle: Bundle) -> list[int]:
        """Shards of the bundle that the checkpoint has not answered."""
        return [i for i in range(len(bundle.shards)) if not self.shard_path(checkpoint, bundle, i).is_file()]

    def write(self, checkpoint: str, bundle: Bundle, shard: int, answers: Sequence[Answer]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"checkpoint_sha256": checkpoint, "bundle": bundle.key, "task": bundle.task, "shard": shard}
        about |= {"scoring": asdict(self.scoring.of(bundle.kinds))}
        table = pa.Table.from_pylist([asdict(a) for a in answers], schema=schema())
        with written_whole(self.shard_path(checkpoint, bundle, shard)) as part:
            pq.write_table(table.replace_schema_metadata({"answers": json.dumps(about, sort_keys=True)}), part)

    def answers(self, checkpoint: str, bundle: Bundle) -> list[Answer] | None:
        """The answer to every request of the bundle, or None while some are missing. Damaged shards are told and dropped."""
        tables = self._tables(checkpoint, bundle)
        return None if tables is None else [Answer(**row) for table in tables for row in table.to_pylist()]

    def holds(self, checkpoint: str, bundle: Bundle) -> bool:
        """Whether every answer is there and whole; damaged shards are told and dropped."""
        return self._tables(checkpoint, bundle) is not None

    def _tables(self, checkpoint: str, bundle: Bundle) -> list[Any] | None:
        found = [
            self._read(self.shard_path(checkpoint, bundle, i), checkpoint, len(requests))
            for i, requests in enumerate(bundle.shards)
        ]
        return None if any(table is None for table in found) else found

    def _read(self, path: Path, checkpoint: str, count: int) -> Any:
        table, problem = judged(path, checkpoint, count)
        if not problem:
            return table
        with claimed(path, wait=True):  # whoever held the shard may have dropped it, and scored it again
            table, problem = judged(path, checkpoint, count)
            if problem:
                warnings.warn(f"{path} is damaged ({problem}) and is scored again", stacklevel=4)
                path.unlink(missing_ok=True)
        return table


def judged(path: Path, checkpoint: str, count: int) -> tuple[Any, str]:
    """(the shard's table, or None; what is wrong with it, empty where nothing is or there is none)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"answers"])
        right = about["checkpoint_sha256"] == checkpoint and table.num_rows == count
    except FileNotFoundError:
        return None, ""
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        return None, " ".join(str(error).split())[:120] or type(error).__name__
    return (table, "") if right else (None, "it holds other answers")


def schema() -> Any:
    import pyarrow as pa

    kinds = {"log_prob": pa.float64(), "is_greedy": pa.bool_(), "n_tokens": pa.int64(), "cut_tokens": pa.int64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Answer.__dataclass_fields__])


Encoders = dict[str, Encoder]  # by tokenizer hash: given from call to call, text is encoded once for all checkpoints


def score_missing(
    rungs: Sequence[Rung],
    bundle: Bundle,
    store: Store,
    shards: Sequence[int] | None = None,
    encoders: Encoders | None = None,
    wait: bool = True,
) -> int:
    """Score what the store lacks (of `shards`, if given), every checkpoint in one pass over the requests; requests scored.

    What another process is scoring is left to it; with `wait` this one stays until it is there, or takes it over.
    """
    encoders, done = {} if encoders is None else encoders, 0
    numbers = range(len(bundle.shards)) if shards is None else shards
    for last in (False, True)[: 1 + wait]:
        for shard in numbers:
            left = [rung for rung in rungs if not store.shard_path(rung.sha256, bundle, shard).is_file()]
            for members in [[rung] for rung in left] if last else by_tokenizer(left):
                done += score_shard(members, bundle, store, shard, encoders, last)
    return done


def by_tokenizer(rungs: Sequence[Rung]) -> list[list[Rung]]:
    return [
        [rung for rung in rungs if rung.tokenizer.sha256 == key]
        for key in dict.fromkeys(rung.tokenizer.sha256 for rung in rungs)
    ]


def score_shard(rungs: Sequence[Rung], bundle: Bundle, store: Store, shard: int, encoders: Encoders, wait: bool) -> int:
    """One shard put to checkpoints of one tokenizer, but those that another process asks unless this is to wait for it."""
    span = bundle.shards[shard]
    with ExitStack() as claims:
        paths = {rung.sha256: store.shard_path(rung.sha256, bundle, shard) for rung in rungs}
        own = [rung for rung in rungs if claims.enter_context(claimed(paths[rung.sha256], wait))]
        if not own:
            return 0
        encoder = encoders.setdefault(own[0].tokenizer.sha256, Encoder(own[0].tokenizer))
        requests = bundle.requests[span.start : span.stop]
        for rung, found in zip(own, answer(own, requests, span.start, store.scoring, encoder), strict=True):
            store.write(rung.sha256, bundle, shard, found)
    return len(own) * len(span)


@contextmanager
def claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Whether a shard is this process's to score: it is not there and no other process is at it.

    A lock beside it, that the kernel gives back when the process ends however it ends. It is removed once the shard is
    there: whoever still gets it then looks for the shard again.
    """
    mark = path.with_suffix(".lock")
    mark.parent.mkdir(parents=True, exist_ok=True)
    with open(mark, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield not path.is_file()
        if path.is_file():
            mark.unlink(missing_ok=True)
