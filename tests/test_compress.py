"""Proves: any bytes come back bit for bit from a rung's compression, and its size is the model's own information.

Text, random bytes, broken UTF-8, nothing at all; texts longer than the context, any number of streams; a tokenizer that
normalises; another checkpoint and damaged files are refused in one sentence.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gopher.cache import Cache
from gopher.compress import Pieces, classical_rates, columns, compress, decompress, rung_rate
from gopher.errors import GopherError, UsageError
from gopher.inference import Rung, open_rung
from gopher.spec import TokenizerSpec
from gopher.tokenizer import Tokenizer, train_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rung(tiny_run: Path) -> Rung:
    return open_rung(tiny_run)


@pytest.fixture(scope="module")
def text(tiny_run: Path) -> bytes:
    return (tiny_run.parents[1] / "text" / "prose" / "003.txt").read_bytes()[:2500]


@pytest.mark.parametrize("rows", [1, 3, None])
def test_text_longer_than_the_context_comes_back(rung: Rung, text: bytes, rows: int | None) -> None:
    made = compress(rung, text, rows)
    assert made.tokens > 4 * rung.context
    assert decompress(rung, made.coded) == text
    assert len(made.coded) < 0.6 * len(text), "even this model knows something about text"


@given(st.binary(max_size=80) | st.text(max_size=60).map(str.encode))
@settings(max_examples=12)
def test_any_bytes_come_back(rung: Rung, raw: bytes) -> None:
    assert decompress(rung, compress(rung, raw).coded) == raw


def test_the_size_is_the_information_of_the_model(rung: Rung) -> None:
    """-log2 p of one full forward pass, within the header, the end and 2^-20 for whole-number frequencies."""
    raw = b"The Congress of the United States, at its last session."
    tokens = torch.tensor([rung.tokenizer.eos, *Pieces(rung.tokenizer).encode(raw)])
    cache = Cache.empty(rung.reader.model, 1, len(tokens))
    logits = rung.reader.logits(rung.reader.read(tokens[None, :-1], cache))[0].double()
    bits = -logits.log_softmax(-1).gather(1, tokens[1:, None]).sum().item() / math.log(2)
    coded_bits = 8 * (len(compress(rung, raw, 1).coded) - 30)
    assert bits - 1e-3 <= coded_bits <= bits + 16


def test_columns_cover_every_token_once() -> None:
    for n_tokens, rows in ((0, 1), (1, 1), (10, 3), (12, 4), (5, 5)):
        found = np.concatenate([np.empty(0, np.int64), *columns(n_tokens, rows)])
        assert sorted(found.tolist()) == list(range(n_tokens))


def test_a_normalising_tokenizer_loses_nothing(text: bytes) -> None:
    """NFKC would turn the ligature and the wide letters into others; those parts go byte by byte."""
    tokenizer = Tokenizer(train_tokenizer(TokenizerSpec(vocab_size=400, preset="gopher"), [text.decode()] * 3))
    pieces = Pieces(tokenizer)
    raw = text[:500] + "ﬁne ＡＢ \u2581 x\u00a0y".encode() + b"\xff\xfe" + text[500:900]
    tokens = pieces.encode(raw)
    assert tokenizer.to_bytes(tokens) == raw
    assert 20 < pieces.count_bytes(np.array(tokens)) < 300


def test_other_models_and_damage_are_refused(rung: Rung, tiny_run: Path, text: bytes) -> None:
    coded = compress(rung, text[:400]).coded
    earlier = open_rung(tiny_run, step=10)
    with pytest.raises(UsageError, match=f"compressed by checkpoint {rung.sha256[:16]} and this one is"):
        decompress(earlier, coded)
    with pytest.raises(UsageError, match="no file of `gopher compress`"):
        decompress(rung, text)
    for damaged in (coded[:40] + bytes([coded[40] ^ 1]) + coded[41:], coded[:60]):
        with pytest.raises(GopherError) as caught:
            decompress(rung, damaged)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="rows is 0"):
        compress(rung, text, 0)


def test_a_diverged_model_is_refused(tiny_run: Path, text: bytes) -> None:
    broken = open_rung(tiny_run)
    broken.reader.model.embedding.data.fill_(math.nan)
    with pytest.raises(GopherError, match="the checkpoint has diverged; choose one of an earlier step"):
        compress(broken, text, 1)


def test_rates_count_the_model(rung: Rung, text: bytes) -> None:
    gzip, lzma, ours = *classical_rates(text), rung_rate(rung, text)
    assert (gzip.model_bytes, lzma.model_bytes) == (0, 0)
    assert ours.model_bytes > rung.weight_bytes == 4 * sum(p.numel() for p in rung.reader.model.parameters())
    assert ours.bits_per_byte == 8 * ours.coded_bytes / len(text)
    assert ours.share_with_model == (ours.coded_bytes + ours.model_bytes) / len(text) > 1 > ours.share
