"""From text to batches: split by document, tokenizer, shards; then sequences whose order is a pure function.

    documents -> survey (duplicates, split) -> tokenizer (training split only) -> shards -> TokenStore.batch(seed, i)

The split is by content: a document whose hash falls below `validation_fraction` is never seen by the tokenizer or the
training, wherever it stands and however often. Sequences are packed: documents follow each other with an end token
between them, no mask across the boundary (the paper does not say; GPT-3 and Pythia do the same); the boundaries are kept
in the index.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gopher import corpus
from gopher.errors import SetupError, UsageError
from gopher.identity import content_hash, short_key
from gopher.order import Order
from gopher.record import write_atomic
from gopher.shards import ShardReader, ShardWriter, intact_files
from gopher.spec import DataSpec, SubsetSpec, TokenizerSpec
from gopher.tokenizer import Tokenizer, intact, train_tokenizer

FORMAT = 1
IGNORED = -100  # target of a padding position
ENCODE_DOCUMENTS = 64  # encoded at a time: bounds memory, keeps the encoder busy
HASH_CHECK_BYTES = 2**30  # shards up to this size are hashed whenever they are reused, larger ones only measured

Ints = npt.NDArray[np.int64]
Say = Callable[[str], None]


def tokenizer_key(spec: TokenizerSpec, data: DataSpec, fingerprint: str) -> str:
    """Identity of a tokenizer's inputs; mixture weights are no part of it, so mixtures share a vocabulary and compare."""
    return short_key({"format": FORMAT, "spec": spec, "text": fingerprint, "validation": data.validation_fraction})


def data_key(data: DataSpec, tokenizer: str, fingerprint: str) -> str:
    """Identity of the shards' inputs."""
    return short_key(
        {"format": FORMAT, "text": fingerprint, "tokenizer": tokenizer, "validation": data.validation_fraction}
    )


# ---- the split


@dataclass(frozen=True, kw_only=True)
class Survey:
    """One pass over a subset: who is held out, how much there is to train on."""

    held_out: frozenset[bytes]  # content hashes of validation documents
    train_bytes: int
    duplicates: int


def document_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def share(digest: bytes, part: int = 0) -> float:
    """A document's fixed uniform number in [0, 1); different `part`s are independent."""
    return float(int.from_bytes(digest[8 * part : 8 * part + 8], "big") / 2**64)


def survey(data: DataSpec, subset: SubsetSpec) -> Survey:
    """Held-out documents of a subset, at least one and never all. Raises `UsageError` when there are fewer than two."""
    sizes: dict[bytes, int] = {}
    seen = 0
    for text in corpus.documents(data, subset):
        sizes.setdefault(document_hash(text), len(text.encode()))
        seen += 1
    if len(sizes) < 2:
        raise UsageError(
            f"data subset '{subset.name}' has {len(sizes)} distinct documents; validation needs at least one apart from training, "
            "so add text, or leave the subset out"
        )
    order = sorted(sizes, key=share)
    held_out = [d for d in order if share(d) < data.validation_fraction][: len(order) - 1] or order[:1]
    train_bytes = sum(sizes.values()) - sum(sizes[d] for d in held_out)
    return Survey(held_out=frozenset(held_out), train_bytes=train_bytes, duplicates=seen - len(sizes))


def split_documents(data: DataSpec, subset: SubsetSpec, found: Survey) -> Iterator[tuple[str, bytes, str]]:
    """(split, hash, text) of every distinct document."""
    seen: set[bytes] = set()
    for text in corpus.documents(data, subset):
        digest = document_hash(text)
        if digest not in seen:
            seen.add(digest)
            yield ("validation" if digest in found.held_out else "train"), digest, text


# ---- preparing


def prepare(data: DataSpec, tokenizer: TokenizerSpec, output_root: Path, progress: Say = lambda message: None) -> Path:
    """The folder of the token shards, made if it isn't there whole; its tokenizer likewise. Safe to run twice at once."""
    text = corpus.fingerprint(data, output_root / "fingerprints.json")
    first_key = tokenizer_key(tokenizer, data, text)
    target = output_root / "data" / data_key(data, first_key, text)
    if usable(target):
        return target
    progress("reading text")
    surveys = {s.name: survey(data, s) for s in data.subsets}
    tokenizer_dir = output_root / "tokenizers" / first_key
    if not intact(tokenizer_dir):
        progress(f"training the tokenizer ({tokenizer.vocab_size} pieces)")
        make_folder(tokenizer_dir, lambda part: write_tokenizer(part, tokenizer, data, surveys), intact)
    progress("writing token shards")
    make_folder(target, lambda part: write_shards(part, Tokenizer.open(tokenizer_dir), data, surveys), usable)
    return target


def make_folder(target: Path, write: Callable[[Path], None], good: Callable[[Path], bool]) -> None:
    """`target` written whole or not at all: filled beside its place and renamed; whoever comes second keeps a good first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        write(part)
        try:
            os.replace(part, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not good(target):
                shutil.rmtree(target)
                os.replace(part, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SetupError(
            f"{target.parent} has no space left for {target.name}; free some and launch again, or set output_root=DIR"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_tokenizer(folder: Path, spec: TokenizerSpec, data: DataSpec, surveys: dict[str, Survey]) -> None:
    """Train on an even sample of the training documents of all subsets, by hash, up to `train_bytes`."""
    total = sum(s.train_bytes for s in surveys.values())
    fraction = min(1.0, spec.train_bytes / total)

    def sample() -> Iterator[str]:
        for subset in data.subsets:
            for split, digest, text in split_documents(data, subset, surveys[subset.name]):
                if split == "train" and share(digest, part=1) < fraction:
                    yield text

    model = train_tokenizer(spec, sample())
    Tokenizer(model).save(
        folder, model, {"preset": spec.preset, "algorithm": spec.algorithm, "sampled_fraction": fraction}
    )


def write_shards(folder: Path, tokenizer: Tokenizer, data: DataSpec, surveys: dict[str, Survey]) -> None:
    subsets = {s.name: write_subset(folder / s.name, tokenizer, data, s, surveys[s.name]) for s in data.subsets}
    files = {
        f"{n}/{f['name']}": f["sha256"]
        for n, e in subsets.items()
        for split in ("train", "validation")
        for f in e[split]["files"]
    }
    manifest = {
        "format": FORMAT,
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, "eos": tokenizer.eos},
        "subsets": subsets,
        "sha256": content_hash(files),
    }
    np.save(folder / "token_bytes.npy", tokenizer.token_bytes)
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def write_subset(
    folder: Path, tokenizer: Tokenizer, data: DataSpec, subset: SubsetSpec, found: Survey
) -> dict[str, Any]:
    """Both splits of one subset; the manifest entry."""
    with ShardWriter(folder, "train") as train, ShardWriter(folder, "validation") as validation:
        writers = {"train": train, "validation": validation}
        for batch in batched(split_documents(data, subset, found)):
            tokens = tokenizer.encode([text for _, _, text in batch])
            for (split, _, text), ids in zip(batch, tokens, strict=True):
                writers[split].append(np.append(ids, np.uint16(tokenizer.eos)), len(text.encode()))
        entries = {split: writer.close() for split, writer in writers.items()}
    return {**entries, "duplicates_dropped": found.duplicates}


def batched(documents: Iterator[tuple[str, bytes, str]]) -> Iterator[list[tuple[str, bytes, str]]]:
    """Documents in lists of up to `ENCODE_DOCUMENTS`."""
    while batch := list(itertools.islice(documents, ENCODE_DOCUMENTS)):
        yield batch


def usable(folder: Path) -> bool:
    """Whether the shards are there and whole; damaged ones are warned about."""
    if not folder.exists():
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        subsets = json.loads((folder / "manifest.json").read_text("utf-8"))["subsets"]
        splits = [(folder / n, split, e[split]) for n, e in subsets.items() for split in ("train", "validation")]
        hashes = sum(2 * entry["tokens"] for _, _, entry in splits) <= HASH_CHECK_BYTES
        if all(intact_files(*s, hashes=hashes) for s in splits) and (folder / "token_bytes.npy").is_file():
            return True
    warnings.warn(f"the token shards in {folder} are damaged and are written again", stacklevel=2)
    return False


# ---- reading


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Held-out sequences of one subset. `inputs`, `targets`: int64 (n, context); uncounted targets are -100."""

    inputs: Ints
    targets: Ints
    n_tokens: int  # counted targets
    n_bytes: int  # UTF-8 bytes that exactly the counted targets stand for


class TokenStore:
    """Opened shards of one data folder."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._token_bytes: Ints = np.load(folder / "token_bytes.npy")
        self._readers = {
            (name, split): ShardReader(folder / name, split, entry[split])
            for name, entry in manifest["subsets"].items()
            for split in ("train", "validation")
        }
        self._orders: dict[tuple[Any, ...], Order] = {}

    @classmethod
    def open(cls, folder: Path | str) -> "TokenStore":
        """Raises `UsageError` when the folder holds no whole shards."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            return cls(folder, manifest)
        except (OSError, ValueError, KeyError):
            raise UsageError(
                f"{folder} holds no whole token shards; launch the sweep again, it prepares them"
            ) from None

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["tokenizer"]["vocab_size"])

    def reader(self, subset: str, split: str) -> ShardReader:
        return self._readers[subset, split]

    def rows(self, subset: str, context: int) -> int:
        """Whole training sequences of a subset: each has `context` inputs and one more target."""
        return max(0, (self._readers[subset, "train"].tokens - 1) // context)

    def order(self, data: DataSpec, seed: int, context: int) -> Order:
        key = (tuple(data.weights.items()), seed, context)
        if key not in self._orders:
            self._orders[key] = Order(data.weights, {n: self._enough_rows(n, context) for n in data.weights}, seed)
        return self._orders[key]

    def _enough_rows(self, subset: str, context: int) -> int:
        rows = self.rows(subset, context)
        if rows == 0:
            tokens = self._readers[subset, "train"].tokens
            raise UsageError(
                f"data subset '{subset}' has {tokens} training tokens, less than one sequence of {context}; add text or lower model.context"
            )
        return rows

    def batch(self, data: DataSpec, seed: int, start: int, stop: int, context: int) -> tuple[Ints, Ints]:
        """(inputs, targets), int64 (stop - start, context): sequences start .. stop-1 of the order under `seed`."""
        out = np.empty((stop - start, context + 1), np.int64)
        for i, (subset, row) in enumerate(self.order(data, seed, context).locate(start, stop)):
            out[i] = self._readers[subset, "train"][row * context : (row + 1) * context + 1]
        self._check(out)
        return out[:, :-1].copy(), out[:, 1:].copy()

    def validation(self, context: int, tokens_per_subset: int) -> dict[str, ValidationSet]:
        """Per subset up to about `tokens_per_subset` held-out tokens, in whole sequences spread evenly over its documents."""
        names = self.manifest["subsets"]
        sets = {n: self._validation_set(self._readers[n, "validation"], context, tokens_per_subset) for n in names}
        for name, held_out in sets.items():
            if held_out.n_bytes == 0:
                raise UsageError(
                    f"the held-out text of data subset '{name}' has {held_out.n_tokens} tokens to predict, of 0 bytes; "
                    "add text or raise data.validation_fraction"
                )
        return sets

    def _validation_set(self, reader: ShardReader, context: int, tokens: int) -> ValidationSet:
        available = -(-(reader.tokens - 1) // context)
        wanted = min(available, max(1, tokens // context))
        rows = np.unique(np.linspace(0, available - 1, wanted).round().astype(int))
        inputs, targets = np.zeros((len(rows), context), np.int64), np.full((len(rows), context), IGNORED)
        for i, row in enumerate(rows):
            piece = reader[row * context : min((row + 1) * context + 1, reader.tokens)].astype(np.int64)
            inputs[i, : len(piece) - 1], targets[i, : len(piece) - 1] = piece[:-1], piece[1:]
        self._check(inputs)
        counted = targets[targets != IGNORED]
        self._check(counted)
        return ValidationSet(
            inputs=inputs, targets=targets, n_tokens=len(counted), n_bytes=int(self._token_bytes[counted].sum())
        )

    def _check(self, tokens: Ints) -> None:
        """Damaged shards have ids that no tokenizer made; a GPU would only say that an assertion failed somewhere."""
        if tokens.size and tokens.max() >= self.vocab_size:
            raise UsageError(
                f"{self.folder} holds token id {tokens.max()} but its tokenizer has {self.vocab_size} pieces; "
                "the shards are damaged, launch the sweep again, it writes them anew"
            )

    def unique_tokens(self) -> dict[str, int]:
        """Distinct training tokens per subset."""
        return {n: int(e["train"]["tokens"]) for n, e in self.manifest["subsets"].items()}


def epochs(store: TokenStore, data: DataSpec, tokens: int) -> dict[str, float]:
    """How often each subset's training tokens are seen in a run of `tokens`."""
    unique = store.unique_tokens()
    return {name: tokens * weight / unique[name] for name, weight in data.weights.items()}


def check_epochs(store: TokenStore, data: DataSpec, tokens: int) -> dict[str, float]:
    """`epochs`, or `UsageError` when a subset would be repeated more than `data.max_epochs` times."""
    seen = epochs(store, data, tokens)
    worst = max(seen, key=lambda name: seen[name])
    if seen[worst] > data.max_epochs:
        raise UsageError(
            f"{tokens:,} tokens would repeat subset '{worst}' {seen[worst]:.1f} times, more than data.max_epochs={data.max_epochs:g}; "
            f"lower tokens or data.weights.{worst}, add text, or raise data.max_epochs"
        )
    return seen
