"""A task's requests as data: rendered once, the same for every checkpoint and tokenizer, identified by what they were made of.

bundles/<task>-<key>.parquet holds one row per request and, in its metadata, what the key was made of.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gopher.record import written_whole

FORMAT = 1
SHARD_CHARACTERS = 400_000  # of text that no request before has: half a minute of a laptop, less of a cluster
GENERATED_CHARACTERS = 40  # of scored text that one generated token costs as much time as
DEFAULT_NEW_TOKENS = 256  # of a generation that names no number, as in the harness
LIKELIHOOD, ROLLING, GENERATE = "loglikelihood", "loglikelihood_rolling", "generate_until"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One question to a model."""

    doc_id: int
    idx: int  # among the requests of its document
    kind: str  # LIKELIHOOD: of `continuation` behind `context` | ROLLING: of the text `context` | GENERATE: behind `context`
    context: str
    continuation: str = ""
    options: str = ""  # of GENERATE: JSON of the harness's generation options
    gold: int | None = None  # of a multiple choice: idx of the right option, if the task says one
    cluster: str = ""  # passage or subject that the document shares with others; empty: its own

    @property
    def new_tokens(self) -> int:
        """Most tokens that are generated for it."""
        return int(json.loads(self.options).get("max_gen_toks", DEFAULT_NEW_TOKENS)) if self.kind == GENERATE else 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """All requests of one task under one prompt."""

    task: str
    key: str  # 16 hex digits of what the requests were made of
    made_of: dict[str, Any]  # shots, seed, limit, harness, hashes of config and documents
    requests: tuple[Request, ...]

    @property
    def n_docs(self) -> int:
        return len({r.doc_id for r in self.requests})

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(r.kind for r in self.requests)

    @cached_property
    def shards(self) -> list[range]:
        """Ranges of requests, whole documents each, of about `SHARD_CHARACTERS` new characters."""
        cuts, size = [0], 0
        for i, request in enumerate(self.requests):
            if i > 0 and request.doc_id != self.requests[i - 1].doc_id and size >= SHARD_CHARACTERS:
                cuts.append(i)
                size = 0
            size += self.new_characters[i]
        return [range(a, b) for a, b in zip(cuts, [*cuts[1:], len(self.requests)], strict=True)]

    @cached_property
    def new_characters(self) -> list[int]:
        """Of each request what is to be scored: what the request before does not begin with, and what is generated."""
        out, before = [], ""
        for request in self.requests:
            repeated = request.context is before
            new = 0 if repeated else len(request.context) - common_length(before, request.context)
            out.append(new + len(request.continuation) + request.new_tokens * GENERATED_CHARACTERS)
            before = request.context
        return out


def common_length(a: str, b: str) -> int:
    """Characters at the beginning that are equal, by bisection: comparing slices is C, a loop is not."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def bundle_path(folder: Path, task: str, key: str) -> Path:
    return folder / f"{task}-{key}.parquet"


def write_bundle(folder: Path, bundle: Bundle) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(r) for r in bundle.requests], schema=schema())
    about = {"format": FORMAT, "task": bundle.task, "key": bundle.key, "made_of": bundle.made_of}
    table = table.replace_schema_metadata({"bundle": json.dumps(about, sort_keys=True)})
    with written_whole(bundle_path(folder, bundle.task, bundle.key)) as part:
        pq.write_table(table, part, compression="zstd")


def read_bundle(folder: Path, task: str, key: str) -> Bundle | None:
    """The bundle of that key, or None when it is not there or not whole: it is then made again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(bundle_path(folder, task, key))
        about = json.loads(table.schema.metadata[b"bundle"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    if about["format"] != FORMAT or about["key"] != key:
        return None
    return Bundle(task=task, key=key, made_of=about["made_of"], requests=tuple(rows(table)))


def rows(table: Any) -> Iterator[Request]:
    """Requests of a table; equal contexts are one string, since few-shot contexts repeat per option."""
    seen: dict[str, str] = {}
    for row in table.to_pylist():
        row["context"] = seen.setdefault(row["context"], row["context"])
        yield Request(**row)


def schema() -> Any:
    import pyarrow as pa

    names = {"doc_id": pa.int64(), "idx": pa.int64(), "gold": pa.int64()}
    fields: Sequence[str] = [*Request.__dataclass_fields__]
    return pa.schema([(name, names.get(name, pa.string())) for name in fields])
