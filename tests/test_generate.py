"""Proves: batched generation is exact: ragged prompts together give the tokens of each alone, from the right distribution.

Greedy tokens equal the argmax of full forward passes; draws are seeded per prompt and do not depend on the batch;
temperature and nucleus give the stated probabilities; wrong input is refused in one sentence.
"""

import numpy as np
import pytest
import torch
from inference import SPEC, chi_square, model_of
from scipy import stats

from gopher.cache import Reader
from gopher.errors import UsageError
from gopher.generate import generate
from gopher.sampling import Dice, Sampling, distribution, draw

torch.set_num_threads(1)
READER = Reader(model_of(torch.float64))
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5], [3, 1, 4, 1, 5], [8, 9]]


def next_logits(tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return READER.model(torch.tensor([tokens]))[0, -1].double()


def test_greedy_equals_the_full_forward_pass() -> None:
    for prompt, new in zip(PROMPTS, generate(READER, PROMPTS, max_new_tokens=9), strict=True):
        for i, token in enumerate(new):
            assert token == int(next_logits(prompt + new[:i]).argmax())
        assert len(new) == 9


def test_rows_do_not_depend_on_their_batch() -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=3)
    together = generate(READER, PROMPTS, max_new_tokens=12, sampling=sampling)
    assert together == generate(READER, PROMPTS, max_new_tokens=12, sampling=sampling, batch_rows=1)
    assert together[0] != together[3], "equal prompts are sampled independently"
    assert together != generate(READER, PROMPTS, max_new_tokens=12, sampling=Sampling(seed=4))


def test_rows_end_on_their_own() -> None:
    whole = generate(READER, PROMPTS, max_new_tokens=10, sampling=Sampling(seed=1))
    stop = whole[0][4]
    ended = generate(READER, PROMPTS, max_new_tokens=10, sampling=Sampling(seed=1), is_done=lambda new: new[-1] == stop)
    assert ended == [new[: new.index(stop) + 1] if stop in new else new for new in whole]
    assert generate(READER, PROMPTS, max_new_tokens=0) == [[]] * 5 and generate(READER, [], max_new_tokens=3) == []


def test_sampled_tokens_follow_the_model() -> None:
    """Chi-square of 4,000 second tokens against their exact distribution (sum over first tokens)."""
    counts = np.bincount(
        [
            new[1]
            for new in generate(READER, [[7, 7]] * 4000, max_new_tokens=2, sampling=Sampling(seed=5), batch_rows=4000)
        ],
        minlength=SPEC.vocab_size,
    )
    first = next_logits([7, 7]).softmax(-1)
    second = sum(first[t] * next_logits([7, 7, t]).softmax(-1) for t in range(SPEC.vocab_size))
    expected = np.asarray(second) * 4000
    assert chi_square(counts, expected) > 1e-3


def test_nucleus_and_temperature() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.1, 0.1, 0.7]]).log()
    p = distribution(logits, Sampling(top_p=0.8))
    torch.testing.assert_close(p, torch.tensor([[0.625, 0.375, 0, 0], [0.125, 0, 0, 0.875]], dtype=torch.float64))
    sharp = distribution(logits, Sampling(temperature=0.5))[0]
    torch.testing.assert_close(sharp, torch.tensor([0.25, 0.09, 0.0225, 0.0025]).double() / 0.365)
    assert distribution(logits, Sampling(temperature=0)).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert distribution(logits, Sampling(top_p=1e-9)).argmax(-1).tolist() == [0, 3], "the nucleus is never empty"


def test_draws_are_the_inverse_cdf() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    for uniform, token in ((1e-17, 1), (0.25, 1), (0.2500001, 3), (1.0, 3)):
        assert draw(p, torch.tensor([uniform], dtype=torch.float64)).item() == token
    dice = Dice(1, "generate", 3, torch.device("cpu"))
    numbers = dice.roll([0, 1, 2, 0], [0, 0, 0, 1])
    assert len(set(numbers.tolist())) == 4 and dice.roll([2], [0]) == numbers[2]
    many = torch.cat([dice.roll([0], [i]) for i in range(2000)])
    assert stats.kstest(many.numpy(), "uniform").pvalue > 1e-3


def test_wrong_input_is_refused() -> None:
    for prompts, new_tokens, message in (
        ([[1] * 60], 5, "prompt 0 has 60 tokens and 5 new ones are asked for, more than the 64 of the context"),
        ([[1], []], 5, "prompt 1 is empty"),
        ([[40]], 5, "token id 40 is outside the model's vocabulary of 40"),
        ([[1]], -1, "max_new_tokens is -1"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            generate(READER, prompts, max_new_tokens=new_tokens)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="temperature is -1"):
        Sampling(temperature=-1)
    with pytest.raises(UsageError, match="top_p is 0"):
        Sampling(top_p=0)
    with pytest.raises(UsageError, match="temperature is 1e-320; give 0 for greedy decoding, or 1e-06 or more"):
        Sampling(temperature=1e-320)
    with pytest.raises(UsageError, match="batch_rows is 0"):
        generate(READER, [[1]], max_new_tokens=1, batch_rows=0)
    with pytest.raises(UsageError, match="more than max_length=0; shorten"):
        generate(READER, [[1]], max_new_tokens=1, max_length=0)
    with pytest.raises(UsageError, match="streams has 1 numbers for 2 prompts; give one for each"):
        generate(READER, [[1], [2]], max_new_tokens=1, streams=[7])
    assert generate(READER, [np.array([1, 2], np.uint16)], max_new_tokens=3) == generate(
        READER, [[1, 2]], max_new_tokens=3
    )  # type: ignore[list-item]
    assert len(generate(READER, [[1] * 60], max_new_tokens=5, max_length=65)[0]) == 5
