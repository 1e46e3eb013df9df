"""Answers on disk, appended and never changed: evals/answers/<checkpoint>/<bundle>[-<scoring>]/<shard>.parquet.

A checkpoint is named by the hash of its weights, so no model is ever given another's answers; a shard is written whole
or not at all, so a kill loses at most the one that was being scored.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
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
        other = "" if self.scoring == Scoring() else f"-{content_hash(asdict(self.scoring))[:8]}"
        return self.folder / checkpoint[:16] / f"{bundle.key}{other}" / f"{shard:05d}.parquet"

    def missing(self, checkpoint: str, bundle: Bundle) -> list[int]:
        """Shards of the bundle that the checkpoint has not answered."""
        return [i for i in range(len(bundle.shards())) if not self.shard_path(checkpoint, bundle, i).is_file()]

    def write(self, checkpoint: str, bundle: Bundle, shard: int, answers: Sequence[Answer]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"checkpoint_sha256": checkpoint, "bundle": bundle.key, "task": bundle.task, "shard": shard}
        about |= {"scoring": asdict(self.scoring)}
        table = pa.Table.from_pylist([asdict(a) for a in answers], schema=schema())
        with written_whole(self.shard_path(checkpoint, bundle, shard)) as part:
            pq.write_table(table.replace_schema_metadata({"answers": json.dumps(about, sort_keys=True)}), part)

    def answers(self, checkpoint: str, bundle: Bundle) -> list[Answer] | None:
        """The answer to every request of the bundle, or None while some are missing. A damaged shard is told and dropped."""
        out: list[Answer] = []
        for i, requests in enumerate(bundle.shards()):
            found = self._read(self.shard_path(checkpoint, bundle, i), checkpoint, len(requests))
            if found is None:
                return None
            out += found
        return out

    def _read(self, path: Path, checkpoint: str, count: int) -> list[Answer] | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            about = json.loads(table.schema.metadata[b"answers"])
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            about, table = {}, None
            problem = " ".join(str(error).split())[:120]
        if table is not None and about["checkpoint_sha256"] == checkpoint and table.num_rows == count:
            return [Answer(**row) for row in table.to_pylist()]
        warnings.warn(
            f"{path} is damaged ({problem if table is None else 'it holds other answers'}) and is scored again",
            stacklevel=3,
        )
        path.unlink()
        return None


def schema() -> Any:
    import pyarrow as pa

    kinds = {"log_prob": pa.float64(), "is_greedy": pa.bool_(), "n_tokens": pa.int64(), "cut_tokens": pa.int64()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in Answer.__dataclass_fields__])


def score_missing(rungs: Sequence[Rung], bundle: Bundle, store: Store, shards: Sequence[int] | None = None) -> int:
    """Score what the store lacks (of `shards`, if given), every checkpoint in one pass over the requests; requests scored.

    The checkpoints must share a tokenizer, as those of one sweep do: the text is then encoded once.
    """
    encoder = Encoder(rungs[0].tokenizer)
    done = 0
    for shard, rung in unanswered(rungs, bundle, store, shards):
        requests = bundle.requests[slice_of(bundle.shards()[shard])]
        own = encoder if rung.tokenizer.sha256 == encoder.tokenizer.sha256 else Encoder(rung.tokenizer)
        store.write(rung.sha256, bundle, shard, answer(rung, requests, store.scoring, own))
        done += len(requests)
    return done


def unanswered(
    rungs: Sequence[Rung], bundle: Bundle, store: Store, shards: Sequence[int] | None
) -> Iterator[tuple[int, Rung]]:
    for shard in range(len(bundle.shards())) if shards is None else shards:
        for rung in rungs:
            if not store.shard_path(rung.sha256, bundle, shard).is_file():
                yield shard, rung


def slice_of(span: range) -> slice:
    return slice(span.start, span.stop)
