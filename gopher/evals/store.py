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
from gopher.evals.bundle import GENERATE, ROLLING, Bundle
from gopher.identity import content_hash
from gopher.inference import Rung
from gopher.record import written_whole


@dataclass(frozen=True, kw_only=True)
class Store:
    folder: Path  # <output root>/evals/answers
    scoring: Scoring = Scoring()

    def shard_path(self, checkpoint: str, bundle: Bundle, shard: int) -> Path:
        """`checkpoint`: the SHA-256 of `gopher.inference.Rung`."""
        asked = Scoring(
            stride=self.scoring.stride if ROLLING in bundle.kinds else None,
            seed=self.scoring.seed if GENERATE in bundle.kinds else 0,
            mode=self.scoring.mode if asks(bundle) else "plain",
            chains=self.scoring.chains if GENERATE in bundle.kinds else 1,
        )
        other = "" if asked == Scoring() else f"-{content_hash(asdict(asked))[:8]}"
        return self.folder / checkpoint[:16] / f"{bundle.key}{other}" / f"{shard:05d}.parquet"

    def missing(self, checkpoint: str, bundle: Bundle) -> list[int]:
        """Shards of the bundle that the checkpoint has not answered."""
        return [i for i in range(len(bundle.shards)) if not self.shard_path(checkpoint, bundle, i).is_file()]

    def write(self, checkpoint: str, bundle: Bundle, shard: int, answers: Sequence[Answer]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        about = {"checkpoint_sha256": checkpoint, "bundle": bundle.key, "task": bundle.task, "shard": shard}
        about |= {"scoring": asdict(self.scoring)}
        table = pa.Table.from_pylist([asdict(a) for a in answers], schema=schema())
        with written_whole(self.shard_path(checkpoint, bundle, shard)) as part:
            pq.write_table(table.replace_schema_metadata({"answers": json.dumps(about, sort_keys=True)}), part)

    def answers(self, checkpoint: str, bundle: Bundle) -> list[Answer] | None:
        """The answer to every request of the bundle, or None while some are missing. Damaged shards are told and dropped."""
        found = [
            self._read(self.shard_path(checkpoint, bundle, i), checkpoint, len(requests))
            for i, requests in enumerate(bundle.shards)
        ]
        whole = [answers for answers in found if answers is not None]
        return [one for answers in whole for one in answers] if len(whole) == len(found) else None

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


def asks(bundle: Bundle) -> bool:
    """Whether the mode of asking matters: whole documents are only read."""
    return bundle.kinds != {ROLLING}


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
) -> int:
    """Score what the store lacks (of `shards`, if given), every checkpoint in one pass over the requests; requests scored."""
    encoders, spans, done = {} if encoders is None else encoders, bundle.shards, 0
    for shard, rung in unanswered(rungs, bundle, store, shards):
        span = spans[shard]
        encoder = encoders.setdefault(rung.tokenizer.sha256, Encoder(rung.tokenizer))
        found = answer(rung, bundle.requests[span.start : span.stop], span.start, store.scoring, encoder)
        store.write(rung.sha256, bundle, shard, found)
        done += len(span)
    return done


def unanswered(
    rungs: Sequence[Rung], bundle: Bundle, store: Store, shards: Sequence[int] | None
) -> Iterator[tuple[int, Rung]]:
    for shard in range(len(bundle.shards)) if shards is None else shards:
        for rung in rungs:
            if not store.shard_path(rung.sha256, bundle, shard).is_file():
                yield shard, rung
