"""Lossless compression of any bytes by a model's next-token distribution (Delétang et al. 2023, 'Language Modeling Is Compression').

The bytes become tokens that give exactly these bytes back; an arithmetic code then spends -log2 p bits on each token.
Both sides turn probabilities into the same whole numbers, because both compute them with the same calls on the same
shapes; that holds on one machine with one version of torch and one number of threads, and a checksum tells otherwise.

Unlike in the paper, text is cut into `rows` long streams that are read side by side; a stream that reaches the trained
context goes on behind its last half, so after the first tokens each one has between half and a whole context before it.
"""

import gzip
import hashlib
import lzma
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gopher.cache import Cache, Reader
from gopher.coder import MAX_TOTAL, Decoder, Encoder
from gopher.errors import UsageError
from gopher.inference import Rung
from gopher.sampling import probabilities
from gopher.tokenizer import Tokenizer

Ints = npt.NDArray[np.int64]

HEADER = struct.Struct("<4sIIH8s8s")  # magic, bytes, tokens, streams, start of the data's SHA-256, of the checkpoint's
MAGIC = b"gph1"
LEAF_BYTES = 32  # what no longer splits is written byte by byte
MAX_ROWS = 64
MAX_BYTES = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class Compressed:
    coded: bytes
    tokens: int
    byte_tokens: int  # tokens that stand for one byte, escapes included


def compress(rung: Rung, raw: bytes, rows: int | None = None) -> Compressed:
    """`raw` compressed; `rows` streams are read at once (more is faster, fewer is smaller)."""
    if len(raw) > MAX_BYTES:
        raise UsageError(f"the data has {len(raw)} bytes, more than the {MAX_BYTES} of one compressed file; split it")
    pieces = Pieces(rung.tokenizer)
    tokens = np.array(pieces.encode(raw), np.int64)
    rows = min(MAX_ROWS, max(1, len(tokens) // (8 * rung.context))) if rows is None else rows
    if not 1 <= rows <= max(1, len(tokens)):
        raise UsageError(f"rows is {rows} for {len(tokens)} tokens; give 1 to the number of tokens")
    encoder = Encoder()
    predictor = Predictor(rung, rows)
    for column in columns(len(tokens), rows):
        total = predictor.cumulative()
        for row, token in enumerate(tokens[column].tolist()):
            start = int(total[row, token - 1]) if token else 0
            encoder.encode(start, int(total[row, token]) - start, int(total[row, -1]))
        predictor.push(tokens[column])
    header = HEADER.pack(MAGIC, len(raw), len(tokens), rows, digest(raw), bytes.fromhex(rung.sha256[:16]))
    return Compressed(coded=header + encoder.finish(), tokens=len(tokens), byte_tokens=pieces.count_bytes(tokens))


def decompress(rung: Rung, coded: bytes) -> bytes:
    """What was compressed. Raises `UsageError` for other data or another model, and when the result is not bit for bit equal."""
    if len(coded) < HEADER.size or coded[:4] != MAGIC:
        raise UsageError("this is no file of `gopher compress`; name one that it wrote")
    _, n_bytes, n_tokens, rows, data_digest, model = HEADER.unpack(coded[: HEADER.size])
    if model.hex() != rung.sha256[:16]:
        raise UsageError(
            f"the file was compressed by checkpoint {model.hex()} and this one is {rung.sha256[:16]}; use the same checkpoint"
        )
    if not rows:
        raise UsageError("the file says that it was coded in 0 rows, so it is damaged; restore it")
    tokens = np.zeros(n_tokens, np.int64)
    decoder = Decoder(coded[HEADER.size :])
    predictor = Predictor(rung, rows)
    for column in columns(n_tokens, rows):
        total = predictor.cumulative()
        for row, at in enumerate(column.tolist()):
            position = decoder.position(int(total[row, -1]))
            token = int(np.searchsorted(total[row], position, side="right"))
            start = int(total[row, token - 1]) if token else 0
            decoder.take(start, int(total[row, token]) - start)
            tokens[at] = token
        predictor.push(tokens[column])
    raw = rung.tokenizer.to_bytes(tokens.tolist())
    if len(raw) != n_bytes or digest(raw) != data_digest:
        raise UsageError(
            "the decoded bytes are not those that were compressed; the file is damaged, or it was made with another machine, "
            "version of torch or number of threads: decompress where it was compressed"
        )
    return raw


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What one compressor makes of some data. The model counts as its weights, as stored, and its tokenizer."""

    name: str
    raw_bytes: int
    coded_bytes: int
    model_bytes: int = 0

    @property
    def bits_per_byte(self) -> float:
        return 8 * self.coded_bytes / self.raw_bytes

    @property
    def share(self) -> float:
        return self.coded_bytes / self.raw_bytes

    @property
    def share_with_model(self) -> float:
        return (self.coded_bytes + self.model_bytes) / self.raw_bytes


def classical_rates(raw: bytes) -> list[Rate]:
    """gzip and LZMA at their strongest."""
    made = {"gzip -9": gzip.compress(raw, 9, mtime=0), "LZMA -9e": lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)}
    return [Rate(name=name, raw_bytes=len(raw), coded_bytes=len(coded)) for name, coded in made.items()]


def rung_rate(rung: Rung, raw: bytes) -> Rate:
    """The rung's rate. Raises `GopherError` when what is decoded differs from what went in."""
    coded = compress(rung, raw).coded
    decompress(rung, coded)
    model_bytes = rung.weight_bytes + rung.tokenizer.model_bytes
    return Rate(name=rung.spec.rung, raw_bytes=len(raw), coded_bytes=len(coded), model_bytes=model_bytes)


def digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()[:8]


def columns(n_tokens: int, rows: int) -> list[Ints]:
    """Positions coded together: the i-th token of each stream; the last column has the streams that are one longer."""
    length, longer = divmod(n_tokens, rows)
    starts = np.arange(rows) * length + np.minimum(np.arange(rows), longer)
    return [starts + i for i in range(length)] + ([starts[:longer] + length] if longer else [])


class Predictor:
    """Whole-number distributions of the next token of every stream."""

    def __init__(self, rung: Rung, rows: int) -> None:
        self.reader: Reader = rung.reader
        self.context, self.vocab_size = rung.context, rung.spec.model.vocab_size
        self.history = torch.full((rows, 1), rung.tokenizer.eos)
        self.cache = Cache.empty(self.reader.model, rows, self.context)

    def cumulative(self) -> Ints:
        """(rows, V): running sums of frequencies; every token has at least 1, together they are about 2^32."""
        new = self.history[:, self.cache.length :]
        logits = self.reader.logits(self.reader.read(new, self.cache)[:, -1])
        frequency = (probabilities(logits) * (MAX_TOTAL - 2 * self.vocab_size)).to(torch.int64) + 1
        return frequency.cumsum(dim=-1).cpu().numpy()

    def push(self, tokens: Ints) -> None:
        """The tokens that came; streams that have ended go on with anything, nobody reads them."""
        rest = len(self.history) - len(tokens)
        following = torch.from_numpy(np.concatenate([tokens, np.zeros(rest, np.int64)]))
        self.history = torch.cat([self.history, following[:, None]], dim=1)
        if self.history.size(1) > self.context:
            self.history = self.history[:, -max(1, self.context // 2) :]
            self.cache = Cache.empty(self.reader.model, len(self.history), self.context)


class Pieces:
    """Any bytes as tokens that give exactly them back: text as the tokenizer cuts it, everything else byte by byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.byte_token = {piece[0]: token for token, piece in tokenizer.pieces.items() if tokenizer.is_byte(token)}

    def encode(self, raw: bytes) -> list[int]:
        """Parts that the tokenizer does not give back (no UTF-8, or changed by normalisation) are halved down to bytes."""
        tokens = self.exact(raw)
        if tokens is not None:
            return tokens
        if len(raw) <= LEAF_BYTES:
            return [self.byte_token[byte] for byte in raw]
        half = len(raw) // 2
        return self.encode(raw[:half]) + self.encode(raw[half:])

    def exact(self, raw: bytes) -> list[int] | None:
        try:
            tokens = self.tokenizer.encode([raw.decode()])[0].tolist()
        except UnicodeDecodeError:
            return None
        return tokens if self.tokenizer.to_bytes(tokens) == raw else None

    def count_bytes(self, tokens: Ints) -> int:
        return int(np.isin(tokens, list(self.byte_token.values())).sum())
