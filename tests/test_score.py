"""Proves: scores equal those of one full forward pass per request with the whole vocabulary at every position.

To 1e-6 (float64: 1e-10) on random requests with and without shared prefixes, packed or split, in any batch size;
sliding windows score every token once, with the stated context; wrong requests are refused in one sentence.
"""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import SPEC, model_of

from gopher import score as module
from gopher.cache import Reader
from gopher.errors import GopherError, UsageError
from gopher.prefixes import order, pack, tree
from gopher.score import Request, Score, score, score_documents, score_long, windows

torch.set_num_threads(1)
READER = Reader(model_of(torch.float64))
WINDOW = SPEC.context


def naive(reader: Reader, requests: list[Request], window: int = WINDOW) -> list[Score]:
    """One forward pass per request, log-softmax over the vocabulary at every position."""
    scores = []
    for context, continuation in requests:
        whole = [*context, *continuation]
        inputs = torch.tensor([whole[:-1][-window:]])
        with torch.no_grad():
            logits = reader.model.hidden(inputs)[0] @ reader.model.embedding.t()
        log_probs, n = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1), len(continuation)
        targets = torch.tensor(list(continuation))
        scores.append(
            Score(
                log_prob=log_probs[-n:].gather(1, targets[:, None]).double().sum().item(),
                is_greedy=bool((log_probs[-n:].argmax(-1) == targets).all()),
                n_tokens=n,
                cut_tokens=max(0, len(whole) - 1 - window),
            )
        )
    return scores


def same(ours: list[Score], exact: list[Score], limit: float) -> None:
    assert [dataclasses.replace(s, log_prob=0.0) for s in ours] == [dataclasses.replace(s, log_prob=0.0) for s in exact]
    np.testing.assert_allclose([s.log_prob for s in ours], [s.log_prob for s in exact], rtol=limit)


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, SPEC.vocab_size, count).tolist()


short = st.lists(st.integers(0, 1), min_size=1, max_size=6)  # two tokens: many shared beginnings, repeats, nested ones


@given(st.lists(st.tuples(short, short), min_size=1, max_size=12), st.sampled_from([1, 16, 4096]))
@settings(deadline=None, max_examples=30)
def test_random_requests_with_shared_beginnings(requests: list[Request], batch_tokens: int) -> None:
    same(score(READER, requests, batch_tokens=batch_tokens), naive(READER, requests), 1e-10)


def examples() -> list[Request]:
    """Few-shot questions behind one header, documents with four options, single ones, a repeated one, a long one."""
    header, requests = tokens(0, 20), []
    for question in range(3):
        asked = header + tokens(10 + question, 9)
        requests += [(asked, [answer]) for answer in (1, 2, 3)]
    for document in range(3):
        read = tokens(20 + document, 14)
        requests += [(read, tokens(30 + option, 2 + option)) for option in range(4)]
    requests += [(tokens(40, 5), tokens(41, 3)), (tokens(42, 90), tokens(43, 4)), requests[4]]
    greedy = int(READER.logits(states(tokens(44, 8)))[0, -1].argmax())
    return [*requests, (tokens(44, 8), [greedy])]


def states(row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return READER.model.hidden(torch.tensor([row]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_few_shot_and_multiple_choice_requests(dtype: torch.dtype) -> None:
    requests, reader = examples(), Reader(model_of(dtype))
    scores = score(reader, requests)
    same(scores, naive(reader, requests), 1e-10 if dtype == torch.float64 else 1e-6)
    assert scores[-1].is_greedy and scores[-3].cut_tokens == 90 + 3 - WINDOW


def test_trees_too_large_for_one_row_are_split_behind_their_prefix() -> None:
    """The header alone is longer than a packed row, and so is the header with one document below it."""
    reader, header = Reader(model_of(torch.float64)), tokens(1, module.PACKED_TOKENS + 5)
    requests: list[Request] = []
    for document in range(2):
        read = header + tokens(50 + document, 30 + module.PACKED_TOKENS * document)
        requests += [(read, tokens(60 + option, 1 + option)) for option in range(3)]
    requests += [(header[:300], tokens(70, 4)), (header, tokens(71, 1))]
    same(score(reader, requests, window=2000), naive(reader, requests, window=2000), 1e-10)


def test_every_shared_token_is_in_the_tree_once() -> None:
    sequences = [np.array(s) for s in ([5, 1, 2], [5, 1], [5, 1, 3, 4], [6], [5, 1, 3, 9])]
    arranged = [sequences[i] for i in order(sequences)]
    top = tree(arranged)
    assert [s.tokens.tolist() for s in top] == [[5, 1], [6]] and [s.size for s in top] == [6, 1]
    row = pack(top[0])
    assert row.tokens.tolist() == [5, 1, 2, 3, 4, 9] and row.depth.tolist() == [0, 1, 2, 2, 3, 3]
    assert row.sees is not None
    assert [np.flatnonzero(seen).tolist() for seen in row.sees[2:]] == [
        [0, 1, 2],
        [0, 1, 3],
        [0, 1, 3, 4],
        [0, 1, 3, 5],
    ]


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 12))
def test_windows_score_every_token_once_with_enough_context(n_tokens: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    cuts = windows(n_tokens, window, stride)
    assert [t for _, scored, end in cuts for t in range(scored, end)] == list(range(n_tokens))
    assert all(end - begin <= window for begin, _, end in cuts)
    assert all(scored - begin >= window - stride for begin, scored, _ in cuts[1:])


@pytest.mark.parametrize("stride", [16, 7])
def test_documents_longer_than_the_window(stride: int) -> None:
    documents = [tokens(80, 41), tokens(81, 3), [], tokens(82, 16)]
    scores = score_documents(READER, documents, first_token=0, stride=stride, window=16)
    assert [s.n_tokens for s in scores] == [41, 3, 0, 16]
    for document, ours in zip(documents, scores, strict=True):
        whole = [0, *document]
        requests = [(whole[b : s + 1], whole[s + 1 : e + 1]) for b, s, e in windows(len(document), 16, stride)]
        assert ours.log_prob == pytest.approx(sum(s.log_prob for s in naive(READER, requests, 16)), rel=1e-10)


def test_wrong_requests_are_refused() -> None:
    for request, message in (
        (([1], []), "request 0 has an empty continuation"),
        (([], [1]), "request 0 has an empty context"),
        (([1], [2] * 65), "continuation of 65 tokens, more than the window of 64"),
        (([1, 40], [2]), "token id 40 is outside the model's vocabulary of 40"),
        (([1], [77]), "token id 77 is outside"),
        (([1], [2.5]), "token ids are .2.5.; give one list of integers"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            score(READER, [request])
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="stride is 0 with a window of 64"):
        score_documents(READER, [[1]], first_token=0, stride=0)
    with pytest.raises(UsageError, match="window is 0; give 1 or more"):
        score(READER, [([1], [2])], window=0)
    with pytest.raises(UsageError, match="batch_tokens is -1; give 1 or more"):
        score(READER, [([1], [2])], batch_tokens=-1)


def test_a_diverged_model_has_no_scores() -> None:
    broken = copy.deepcopy(READER.model)
    broken.embedding.data.fill_(math.nan)
    with pytest.raises(GopherError, match="the checkpoint has diverged; choose one of an earlier step"):
        score(Reader(broken), [([1], [2])])


def test_a_continuation_longer_than_the_window_is_read_in_windows() -> None:
    model = model_of()
    reader = Reader(model)
    draw = np.random.default_rng(3)
    context, continuation = draw.integers(0, 40, 9), draw.integers(0, 40, 50)
    (found,) = score_long(reader, [(context, continuation)], window=20)
    pieces = [(np.concatenate([context, continuation[:i]]), continuation[i : i + 20]) for i in (0, 20, 40)]
    parts = score(reader, pieces, window=20)
    assert found.log_prob == pytest.approx(sum(p.log_prob for p in parts)) and found.n_tokens == 50
    assert score_long(reader, [(context, continuation[:5])]) == score(reader, [(context, continuation[:5])])
