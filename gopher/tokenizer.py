"""SentencePiece with byte fallback: trained on the training split, cached by content, exact by default.

`lossless` keeps every byte: no normalisation, blanks and line ends kept, no dummy prefix (so pieces can be
concatenated), a piece for the line end. `gopher` applies NFKC as the paper did; it is not reversible.
"""

import contextlib
import hashlib
import io
import json
import re
import warnings
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gopher.errors import UsageError
from gopher.record import write_atomic
from gopher.spec import TokenizerSpec

Tokens = npt.NDArray[np.uint16]

META = "\u2581"  # SentencePiece writes a blank as this character, so a literal one must go through byte pieces
META_BYTES = ("<0xE2>", "<0x96>", "<0x81>")
LONGEST_LINE_BYTES = 1_000_000
# Blanks with the letters, signs or digits behind them; other white space. Where one ends shows in two characters alone.
WORDS = re.compile(r" *+(?:[^\W\d_]++|(?:[^\w\s]|_)++|\d++)|[^\S ]++| ++")
MOST_WORDS = 2**18  # whose tokens are remembered, some 50 MB
LONGEST_WORD = 64  # characters of a word that is remembered


def train_tokenizer(spec: TokenizerSpec, texts: Iterable[str]) -> bytes:
    """The SentencePiece model trained on `texts`; the same bytes for the same texts. Raises `UsageError` when they are too little."""
    import sentencepiece

    model = io.BytesIO()
    nfkc = spec.preset == "gopher"
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines_of(texts),
            model_writer=model,
            model_type=spec.algorithm,
            vocab_size=spec.vocab_size,
            byte_fallback=True,
            normalization_rule_name="nfkc" if nfkc else "identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=["\n", "\n\n", "\t"],
            max_sentence_length=LONGEST_LINE_BYTES,
            num_threads=1,  # more threads give the same pieces but not the same bytes of the unigram model
            minloglevel=2,
        )
    except RuntimeError as error:
        raise too_large(spec, str(error)) from None
    return model.getvalue()


def too_large(spec: TokenizerSpec, message: str) -> UsageError:
    """SentencePiece's refusal as one sentence with the largest vocabulary that works, where it tells."""
    largest = re.search(r"<= (\d+)", message)
    cure = (
        f"set tokenizer.vocab_size to at most {largest[1]}, or add text"
        if largest
        else "lower tokenizer.vocab_size or add text"
    )
    return UsageError(f"tokenizer.vocab_size is {spec.vocab_size}, more than the training text can give; {cure}")


def lines_of(texts: Iterable[str]) -> Iterator[str]:
    """Training lines: line ends cut (they have a piece of their own), over-long lines in parts, empty ones left out."""
    limit = LONGEST_LINE_BYTES // 4
    for text in texts:
        for line in text.split("\n"):
            if 0 < len(line) <= limit:
                yield line
            else:
                yield from (line[i : i + limit] for i in range(0, len(line), limit))


class Tokenizer:
    """A trained model: text to uint16 tokens and back. Documents end with `eos`."""

    def __init__(self, model: bytes, bpe: bool = False) -> None:
        """`bpe`: byte pair encoding without normalisation, which merges within a word whatever stands around it."""
        import sentencepiece

        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()
        self.eos: int = self._processor.eos_id()
        self.sha256, self.model_bytes = hashlib.sha256(model).hexdigest(), len(model)
        self._meta = [self._processor.piece_to_id(p) for p in META_BYTES]
        self.token_bytes = np.array([self._bytes_of(i) for i in range(self.vocab_size)], np.int64)
        self._by_words = bpe and all(len(WORDS.findall(piece)) == 1 for piece in self._spelled())
        self._words: dict[str, bytes] = {}  # their uint16 tokens

    @classmethod
    def open(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a folder written by `save`. Raises `UsageError` when it isn't whole."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
            model = (folder / "tokenizer.model").read_bytes()
        except (FileNotFoundError, ValueError):
            raise UsageError(f"{folder} holds no whole tokenizer; delete the folder and launch again") from None
        if hashlib.sha256(model).hexdigest() != manifest["sha256"]:
            raise UsageError(
                f"{folder / 'tokenizer.model'} is corrupt (its hash differs from the manifest); delete the folder and launch again"
            )
        return cls(model, manifest.get("algorithm") == "bpe" and manifest.get("preset") == "lossless")

    def _spelled(self) -> Iterator[str]:
        """The pieces that stand for characters."""
        tokens = (t for t in range(self.vocab_size) if self.token_bytes[t] and not self.is_byte(t))
        return (self._processor.id_to_piece(t).replace(META, " ") for t in tokens)

    def _bytes_of(self, token: int) -> int:
        """UTF-8 bytes that a token stands for; control tokens stand for none."""
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return 0
        if self._processor.is_byte(token):
            return 1
        return len(self._processor.id_to_piece(token).replace(META, " ").encode())

    def encode(self, texts: list[str], threads: int = 1) -> list[Tokens]:
        """Each text as uint16 tokens, without `eos`."""
        plain = [t for t in texts if META not in t]
        rows: Iterator[Tokens] = (self._encode_words(text, threads) for text in plain)
        if not self._by_words:
            rows = (np.array(row, np.uint16) for row in self._processor.encode(plain, num_threads=threads))
        return [np.array(self._encode_meta(t), np.uint16) if META in t else next(rows) for t in texts]

    def _encode_words(self, text: str, threads: int) -> Tokens:
        """Text whose words are encoded once each, twice as fast as whole documents: no piece reaches over the end of one."""
        words, known = WORDS.findall(text), self._words if len(self._words) < MOST_WORDS else {}
        if new := [word for word in set(words) if word not in known]:
            rows = self._processor.encode(new, num_threads=threads)
            known.update(zip(new, (array("H", row).tobytes() for row in rows), strict=True))
        tokens = np.frombuffer(b"".join(map(known.__getitem__, words)), np.uint16).copy()
        for word in new:
            if len(word) > LONGEST_WORD:
                del known[word]
        self._words = known
        return tokens

    def _encode_meta(self, text: str) -> list[int]:
        """Text with a literal U+2581: its bytes stand between the parts."""
        out: list[int] = []
        for i, part in enumerate(text.split(META)):
            out += (self._meta if i else []) + self._processor.encode(part)
        return out

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; byte pieces that form no UTF-8 become U+FFFD."""
        text = self._processor.decode([int(t) for t in tokens])
        return str(text)

    @cached_property
    def pieces(self) -> dict[int, bytes]:
        """The bytes of every token that stands for any."""
        spelled = {t: self._processor.id_to_piece(t) for t in range(self.vocab_size) if self.token_bytes[t]}
        return {
            t: bytes([int(piece[3:5], 16)]) if self.is_byte(t) else piece.replace(META, " ").encode()
            for t, piece in spelled.items()
        }

    def to_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes that tokens stand for; control tokens stand for none."""
        return b"".join(self.pieces.get(int(token), b"") for token in tokens)

    def is_byte(self, token: int) -> bool:
        """Whether the token stands for one byte that no piece covers."""
        return bool(self._processor.is_byte(token))

    def save(self, folder: Path, model: bytes, details: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(model)
        write_atomic(
            folder / "manifest.json",
            json.dumps({"sha256": self.sha256, "vocab_size": self.vocab_size, **details}, indent=2, sort_keys=True)
            + "\n",
        )


def intact(folder: Path) -> bool:
    """Whether a saved tokenizer can be used; a damaged one is warned about."""
    if not folder.exists():
        return False
    with contextlib.suppress(UsageError):
        Tokenizer.open(folder)
        return True
    warnings.warn(f"the tokenizer in {folder} is damaged and is trained again", stacklevel=2)
    return False
