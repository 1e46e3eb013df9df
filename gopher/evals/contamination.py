"""Which evaluation items share 13 words in a row with the training text: one pass over the token shards.

Words as in Brown et al. 2020, appendix C: lower case, punctuation removed, split at blanks. An item is dirty when any
of its 13-grams stands in a training document; one of 8 to 12 words when all of its words stand there in a row; shorter
ones are not judged. Unlike there, n-grams that are common in the training text count too.

N-grams of the items are looked up by a 64-bit hash, and every hit is compared word by word, so there are no false
alarms. Memory: the items' n-grams and one block of training text, whatever the size of the shards.
"""

import codecs
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gopher.evals.ratios import Ratio
from gopher.shards import ShardReader
from gopher.tokenizer import Tokenizer

Hashes = npt.NDArray[np.uint64]

LONGEST, SHORTEST = 13, 8  # words of an n-gram
BLOCK_TOKENS = 2**18
END = "\0"  # a word of its own between documents; no item has it
NOT_WORDS = re.compile(rf"[^\w\s{END}]+|_+")
BYTE_BASE, WORD_BASE = 0x9E3779B97F4A7C15, np.uint64(0xD6E8FEB86659FD93)  # odd: they have inverses mod 2^64


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of one item stands in the training text."""

    ngrams: int  # distinct ones looked for; 0: the item is too short to be judged
    seen: int

    @property
    def dirty(self) -> bool | None:
        return self.seen > 0 if self.ngrams else None


def overlaps(items: Sequence[str], training: Iterable[str]) -> list[Overlap]:
    """The overlap of each item with the training text, which comes in blocks as `blocks_of` gives them."""
    wanted = [ngrams_of(words_of(item)) for item in items]
    by_length = {
        n: {gram for grams in wanted for gram in grams if len(gram) == n} for n in range(SHORTEST, LONGEST + 1)
    }
    tables = table_of(items)
    found: set[tuple[str, ...]] = set()
    for text in training:
        words = normalised(text).split()
        hashes = word_hashes(words)
        for n, table in tables.items():
            for at in hits(ngram_hashes(hashes, n), table):
                gram = tuple(words[at : at + n])
                if gram in by_length[n]:
                    found.add(gram)
    return [Overlap(ngrams=len(grams), seen=len(grams & found)) for grams in wanted]


def words_of(item: str) -> list[str]:
    return normalised(item.replace(END, " ")).split()


def table_of(items: Sequence[str]) -> dict[int, Hashes]:
    """Sorted hashes of all items' n-grams, by n."""
    found: dict[int, list[Hashes]] = {}
    for words in map(words_of, items):
        if len(words) >= SHORTEST:
            n = min(LONGEST, len(words))
            found.setdefault(n, []).append(ngram_hashes(word_hashes(words), n))
    return {n: np.unique(np.concatenate(hashes)) for n, hashes in found.items()}


def normalised(text: str) -> str:
    return NOT_WORDS.sub("", text.lower())


def ngrams_of(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All 13-grams; the whole of 8 to 12 words; nothing of fewer."""
    n = min(LONGEST, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n >= SHORTEST else set()


def by_subset(score: Ratio, dirty: Mapping[Any, bool | None]) -> dict[str, dict[str, float | int | None]]:
    """Value, standard error over clusters and number of the score's items: all, clean, dirty, unjudged; None where too few."""
    parts = {"all": list(score.parts)}
    for name, flag in (("clean", False), ("dirty", True), ("unjudged", None)):
        parts[name] = [key for key in score.parts if dirty[key] is flag]
    own = {name: score.of(keys) if keys else None for name, keys in parts.items()}
    return {
        name: {
            "n": len(parts[name]),
            "value": part.value if part else None,
            "stderr": part.stderr if part else None,
        }
        for name, part in own.items()
    }


# ---- hashes, mod 2^64


def word_hashes(words: Sequence[str]) -> Hashes:
    """sum of byte_i * B^i over the bytes of each word, all words at once."""
    if not words:
        return np.empty(0, np.uint64)
    raw = np.frombuffer(" ".join(words).encode(errors="replace"), np.uint8)
    blank = np.flatnonzero(raw == 32)
    starts = np.concatenate([[0], blank + 1])
    values = raw.astype(np.uint64) + np.uint64(1)
    values[blank] = 0
    room = 1 << len(raw).bit_length()
    power, inverse = powers_to(BYTE_BASE, room), powers_to(pow(BYTE_BASE, -1, 2**64), room)
    hashes: Hashes = np.add.reduceat(values * power[: len(raw)], starts) * inverse[starts]
    return hashes


@functools.lru_cache(maxsize=4)
def powers_to(base: int, count: int) -> Hashes:
    """base^0 .. base^(count - 1)."""
    out = np.full(count, base, np.uint64)
    out[0] = 1
    return np.cumprod(out, dtype=np.uint64)


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """The hash of the n words from each position on."""
    count = max(0, len(words) - n + 1)
    out = np.zeros(count, np.uint64)
    for i in range(n):
        out = out * WORD_BASE + words[i : i + count]
    return out ^ (out >> np.uint64(29))


def hits(hashes: Hashes, table: Hashes) -> list[int]:
    """Positions whose hash is in the sorted table."""
    at = np.searchsorted(table, hashes)
    at[at == len(table)] = 0
    return np.flatnonzero(table[at] == hashes).tolist()


# ---- training text


def blocks_of(reader: ShardReader, tokenizer: Tokenizer, block_tokens: int = BLOCK_TOKENS) -> Iterator[str]:
    """The documents of a split as text in blocks; each begins with the last words of the one before, so no n-gram is lost."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may be cut between two blocks
    spelling, carry = Spelling(tokenizer), ""
    for start in range(0, reader.tokens, block_tokens):
        text = carry + decoder.decode(spelling.bytes_of(reader[start : min(start + block_tokens, reader.tokens)]))
        is_last = start + block_tokens >= reader.tokens
        end = len(text) if is_last else max(text.rfind(" "), text.rfind("\n")) + 1  # the last word may go on
        yield text[:end]
        carry = last_words(text[:end], LONGEST) + text[end:]


def last_words(text: str, count: int) -> str:
    """The end of `text` from a blank on, with at least `count` words that have letters or digits."""
    for size in (256, 1024, 4096, 65_536):
        begin = text.find(" ", max(0, len(text) - size))
        if begin >= 0 and len(normalised(text[begin:]).split()) >= count:
            return text[begin:]
    return text[-65_536:]  # no text of words


class Spelling:
    """Tokens to bytes, many at once; the end of a document becomes a word of its own."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.pieces.get(token, b"") for token in range(tokenizer.vocab_size)]
        pieces[tokenizer.eos] = f" {END} ".encode()
        self.sizes = np.array([len(piece) for piece in pieces], np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.letters = np.frombuffer(b"".join(pieces), np.uint8)

    def bytes_of(self, tokens: npt.NDArray[np.uint16]) -> bytes:
        sizes = self.sizes[tokens]
        ends = np.cumsum(sizes)
        within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - sizes, sizes)
        return self.letters[np.repeat(self.starts[tokens], sizes) + within].tobytes()
