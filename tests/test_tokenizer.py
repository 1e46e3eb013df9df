"""The tokenizer: any UTF-8 comes back exactly, byte counts are exact, the same text gives the same model, too little text is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gopher.errors import UsageError
from gopher.spec import TokenizerSpec
from gopher.tokenizer import Tokenizer, train_tokenizer

TEXT = [
    "The state of the union is strong.\n\n\tIt was 1790, and the Congress sat.\n" * 40,
    "def f(x):\n    return x + 1\n" * 40,
]


@pytest.fixture(scope="module")
def lossless() -> Tokenizer:
    return Tokenizer(train_tokenizer(TokenizerSpec(vocab_size=320), TEXT))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_exactly(lossless: Tokenizer, text: str) -> None:
    tokens = lossless.encode([text])[0]
    assert lossless.decode(tokens) == text
    assert lossless.token_bytes[tokens].sum() == len(text.encode())


@pytest.mark.parametrize(
    "text", ["\u2581", "a\u2581\u2581 b", "\0", "\r\n", "  two  ", "e\u0301", "</s>", "<0x41>", "\u2028", "🏳️‍🌈", ""]
)
def test_awkward_texts_come_back_exactly(lossless: Tokenizer, text: str) -> None:
    assert lossless.decode(lossless.encode([text])[0]) == text


def test_pieces_can_be_concatenated(lossless: Tokenizer) -> None:
    """No dummy prefix: the decoding of joined tokens is the joined text."""
    first, second = lossless.encode(["state of", " the union"])
    assert lossless.decode(np.concatenate([first, second])) == "state of the union"


def test_the_same_text_gives_the_same_model(lossless: Tokenizer) -> None:
    assert Tokenizer(train_tokenizer(TokenizerSpec(vocab_size=320), TEXT)).sha256 == lossless.sha256


def test_the_paper_preset_normalises(lossless: Tokenizer) -> None:
    gopher = Tokenizer(train_tokenizer(TokenizerSpec(vocab_size=320, preset="gopher"), TEXT))
    assert gopher.decode(gopher.encode(["\ufb01x \u2460"])[0]) == "fix 1"
    assert lossless.decode(lossless.encode(["\ufb01x \u2460"])[0]) == "\ufb01x \u2460"


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_vocabulary_the_text_cannot_give_is_refused_with_the_largest_that_works(algorithm: str) -> None:
    with pytest.raises(UsageError) as caught:
        train_tokenizer(TokenizerSpec(vocab_size=30_000, algorithm=algorithm), ["a few words only"])
    largest = int(str(caught.value).split("at most ")[1].split(",")[0])
    train_tokenizer(TokenizerSpec(vocab_size=max(264, largest), algorithm=algorithm), ["a few words only"])
