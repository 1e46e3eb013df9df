"""Token shards on disk: uint16 files of one stream of tokens, the ends of its documents, and their hashes."""

import contextlib
import hashlib
from array import array
from bisect import bisect_right
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

SHARD_TOKENS = 2**30  # 2 GB a file


class ShardWriter:
    """Appends documents to `<folder>/<split>-00000.bin`, ..; `close` writes `<split>.idx.npy` and returns the manifest entry."""

    def __init__(self, folder: Path, split: str, shard_tokens: int = SHARD_TOKENS) -> None:
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._ends = array("q")
        self._tokens, self._text_bytes = 0, 0
        self._file: BinaryIO | None = None
        self._files: list[dict[str, Any]] = []
        self._hash = hashlib.sha256()
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, tokens: npt.NDArray[np.uint16], text_bytes: int) -> None:
        """One document, its end token included; `text_bytes` are the UTF-8 bytes it was made from."""
        self._tokens, self._text_bytes = self._tokens + len(tokens), self._text_bytes + text_bytes
        self._ends.append(self._tokens)
        while len(tokens):
            if self._file is None or self._room() == 0:
                self._next_file()
            part, tokens = tokens[: self._room()], tokens[self._room() :]
            raw = part.astype("<u2").tobytes()
            assert self._file is not None
            self._file.write(raw)
            self._hash.update(raw)
            self._files[-1]["tokens"] += len(part)

    def _room(self) -> int:
        return self._limit - int(self._files[-1]["tokens"])

    def _next_file(self) -> None:
        self._end_file()
        name = f"{self._split}-{len(self._files):05d}.bin"
        self._files.append({"name": name, "tokens": 0})
        self._file = open(self._folder / name, "wb")  # noqa: SIM115 - closed in _end_file
        self._hash = hashlib.sha256()

    def _end_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._files[-1]["sha256"] = self._hash.hexdigest()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # after a full disk the last buffer cannot be written either
                self._file.close()

    def close(self) -> dict[str, Any]:
        self._end_file()
        self._file = None
        np.save(self._folder / f"{self._split}.idx.npy", np.frombuffer(self._ends, np.int64))
        return {"documents": len(self._ends), "tokens": self._tokens, "bytes": self._text_bytes, "files": self._files}


class ShardReader:
    """One split of one subset as a single stream of tokens over its memory-mapped files."""

    def __init__(self, folder: Path, split: str, entry: dict[str, Any]) -> None:
        self.tokens = int(entry["tokens"])
        self.documents = int(entry["documents"])
        self._maps = [np.memmap(folder / f["name"], np.dtype("<u2"), "r") for f in entry["files"]]
        self._starts = np.concatenate([[0], np.cumsum([len(m) for m in self._maps])]).tolist()
        self._index = folder / f"{split}.idx.npy"

    def __getitem__(self, span: slice) -> npt.NDArray[np.uint16]:
        """Tokens start .. stop-1 of the stream, across files where need be."""
        start, stop = span.start, span.stop
        first = bisect_right(self._starts, start) - 1
        pieces = []
        while start < stop:
            end = min(stop, self._starts[first + 1])
            pieces.append(self._maps[first][start - self._starts[first] : end - self._starts[first]])
            start, first = end, first + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def document_ends(self) -> npt.NDArray[np.int64]:
        """Position after the last token of each document."""
        ends: npt.NDArray[np.int64] = np.load(self._index)
        return ends


def intact_files(folder: Path, split: str, entry: dict[str, Any], hashes: bool) -> bool:
    """Whether every file of a split has its size, and its hash if asked."""
    for file in entry["files"]:
        path = folder / file["name"]
        if not path.is_file() or path.stat().st_size != 2 * file["tokens"]:
            return False
        if hashes:
            with open(path, "rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != file["sha256"]:
                    return False
    return (folder / f"{split}.idx.npy").is_file()
