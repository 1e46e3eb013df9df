"""The tokenizer: any UTF-8 comes back exactly, byte counts are exact, the same text gives the same model, too little text is refused."""

import functools
import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
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


@given(
    st.lists(
        st.sampled_from([*"ab1 \n\t_(.é²漢\u0301\u00a0\r\0", "  ", "The", " state", "</s>", "<0x41>"]), max_size=40
    )
)
def test_words_encoded_once_each_give_the_tokens_of_the_whole_text(lossless: Tokenizer, parts: list[str]) -> None:
    assert np.array_equal(by_words().encode(["".join(parts)])[0], lossless.encode(["".join(parts)])[0])


@functools.cache
def by_words() -> Tokenizer:
    return Tokenizer(train_tokenizer(TokenizerSpec(vocab_size=320), TEXT), bpe=True)


def test_a_saved_tokenizer_encodes_by_words_where_that_changes_nothing(tmp_path: Path) -> None:
    texts, spoken = [*TEXT, "  not  \n seen\t before,1790\u2581x "], []
    for preset, algorithm in (("lossless", "bpe"), ("lossless", "unigram"), ("gopher", "bpe")):
        model = train_tokenizer(TokenizerSpec(vocab_size=296, preset=preset, algorithm=algorithm), TEXT)
        Tokenizer(model).save(tmp_path / preset / algorithm, model, {"preset": preset, "algorithm": algorithm})
        opened = Tokenizer.open(tmp_path / preset / algorithm)
        assert all(map(np.array_equal, opened.encode(texts), Tokenizer(model).encode(texts)))
        spoken.append(bool(opened._words))
    assert spoken == [True, False, False]


def test_a_vocabulary_with_pieces_across_words_is_not_encoded_by_words(lossless: Tokenizer) -> None:
    text = ["x_1(y_1) " * 50]  # without letters, signs and digits apart, as another program may have trained it
    model = io.BytesIO()
    options = {"split_by_unicode_script": False, "split_by_number": False, "minloglevel": 2, "byte_fallback": True}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=275, model_type="bpe", **options
    )
    spanning = Tokenizer(model.getvalue(), bpe=True)
    assert np.array_equal(spanning.encode(text)[0], Tokenizer(model.getvalue()).encode(text)[0]) and not spanning._words


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
