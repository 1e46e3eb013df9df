"""Proves: speculative sampling gives the model's own distribution, whatever the draft.

Chi-square of the joint distribution of three tokens over all 125 outcomes; greedy decoding is equal token by token;
a perfect draft is always accepted; ragged prompts and ends equal the batch of one.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from inference import chi_square, model_of

from gopher.cache import Reader
from gopher.errors import GopherError, UsageError
from gopher.generate import generate
from gopher.sampling import Sampling, distribution
from gopher.spec import ModelSpec
from gopher.speculative import speculate

torch.set_num_threads(1)
TINY = ModelSpec(n_layers=1, n_heads=2, d_head=4, d_model=8, vocab_size=5, context=32)
SMALLER = ModelSpec(n_layers=1, n_heads=1, d_head=4, d_model=4, vocab_size=5, context=32)
TARGET, DRAFT = Reader(model_of(spec=TINY)), Reader(model_of(spec=SMALLER, seed=1))
PROMPTS = [[1, 2, 3], [4], [0, 0, 4, 1, 2, 2], [3, 1]]


@pytest.mark.parametrize("sampling", [Sampling(seed=3), Sampling(temperature=0.7, top_p=0.8, seed=4)])
def test_joint_distribution_of_three_tokens(sampling: Sampling) -> None:
    n, prompt = 4000, [1, 2]
    found = speculate(TARGET, DRAFT, [prompt] * n, max_new_tokens=3, sampling=sampling, ahead=2, batch_rows=n)
    assert 0.1 < found.accepted / found.proposed < 0.95, "both branches are exercised"
    counts = np.zeros((5, 5, 5))
    np.add.at(counts, tuple(np.array(found.tokens).T), 1)
    expected = n * exact(prompt, sampling)
    assert not counts[expected == 0].any()
    assert chi_square(counts, expected) > 1e-3


def exact(prompt: list[int], sampling: Sampling) -> np.ndarray:
    """The probabilities of all triples, by full forward passes."""

    def following(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return distribution(TARGET.model(torch.tensor([tokens]))[0, -1].double(), sampling)

    p = np.zeros((5, 5, 5))
    for a, b in itertools.product(range(5), repeat=2):
        p[a, b] = following(prompt)[a] * following([*prompt, a])[b] * following([*prompt, a, b])
    return p


@pytest.mark.parametrize("ahead", [1, 3, 20])
def test_greedy_is_equal_token_by_token(ahead: int) -> None:
    greedy = Sampling(temperature=0)
    found = speculate(TARGET, DRAFT, PROMPTS, max_new_tokens=11, sampling=greedy, ahead=ahead)
    assert found.tokens == generate(TARGET, PROMPTS, max_new_tokens=11, sampling=greedy)


def test_a_perfect_draft_is_always_accepted() -> None:
    found = speculate(TARGET, Reader(TARGET.model), PROMPTS, max_new_tokens=10, sampling=Sampling(seed=2), ahead=4)
    assert found.accepted == found.proposed > 0 and all(len(new) == 10 for new in found.tokens)


def test_rows_do_not_depend_on_their_batch() -> None:
    def run(batch_rows: int) -> list[list[int]]:
        sampling = Sampling(seed=6)
        return speculate(
            TARGET,
            DRAFT,
            PROMPTS,
            max_new_tokens=12,
            sampling=sampling,
            ahead=3,
            is_done=lambda new: new[-1] == 0,
            batch_rows=batch_rows,
        ).tokens

    together = run(4)
    assert together == run(1)
    assert all(0 not in new[:-1] and (new[-1] == 0 or len(new) == 12) for new in together)


def test_a_draft_with_another_vocabulary_is_refused() -> None:
    other = Reader(model_of(spec=ModelSpec(n_layers=1, n_heads=1, d_head=4, d_model=4, vocab_size=6, context=32)))
    with pytest.raises(UsageError, match="vocabulary of 5 and the draft one of 6; use a draft trained with the same"):
        speculate(TARGET, other, PROMPTS, max_new_tokens=2, sampling=Sampling())
    with pytest.raises(UsageError, match="ahead is 0"):
        speculate(TARGET, DRAFT, PROMPTS, max_new_tokens=2, sampling=Sampling(), ahead=0)
    with pytest.raises(UsageError, match="batch_rows is -1"):
        speculate(TARGET, DRAFT, PROMPTS, max_new_tokens=2, sampling=Sampling(), batch_rows=-1)


@pytest.mark.parametrize("whose", ["model", "draft"])
def test_a_diverged_one_of_the_two_is_named(whose: str) -> None:
    broken = model_of(spec=TINY)
    broken.embedding.data.fill_(math.nan)
    pair = (Reader(broken), DRAFT) if whose == "model" else (TARGET, Reader(broken))
    with pytest.raises(GopherError, match=f"the {whose}'s logits are not finite: the checkpoint has diverged"):
        speculate(*pair, PROMPTS, max_new_tokens=2, sampling=Sampling())
