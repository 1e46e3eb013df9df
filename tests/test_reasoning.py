"""Proves: chain of thought asks in two stages, several chains vote, wrong modes are refused."""

from pathlib import Path

import pytest
import torch

from gopher.completion import complete
from gopher.errors import UsageError
from gopher.evals.reasoning import CONCLUDE, THINK, Mode, answers, majority, tidy
from gopher.inference import Rung, open_rung

torch.set_num_threads(1)
QUESTIONS = ["Q: Who wrote it?\nA:", "Q: What is the sum?\nA:"]


@pytest.fixture(scope="module")
def rung(tiny_run: Path) -> Rung:
    return open_rung(tiny_run)


def test_two_stages(rung: Rung) -> None:
    """The thought is the greedy continuation of the question, the answer that of question, thought and conclusion."""
    mode = Mode(think=True, thought_tokens=8, answer_tokens=6)
    found = answers(rung, QUESTIONS, mode)
    for prompt, answer in zip(QUESTIONS, found, strict=True):
        asked = f"{prompt} {THINK}"
        thought = complete(rung, [asked], max_new_tokens=8, until=("\nQ:", "\n\n"))[0].text
        assert answer.chains == (thought,)
        made = complete(rung, [f"{asked} {thought.strip()}\n{CONCLUDE}"], max_new_tokens=6, until=("\n",))[0]
        assert answer.text == made.text.strip()
    plain = answers(rung, QUESTIONS, Mode(answer_tokens=6))
    assert [a.chains for a in plain] == [(), ()]


def test_chains_vote(rung: Rung) -> None:
    mode = Mode(think=True, chains=5, thought_tokens=8, temperature=1.0, seed=3)
    found = answers(rung, QUESTIONS, mode)
    for answer in found:
        assert len(set(answer.chains)) > 1, "chains are sampled independently"
        votes = [tidy(vote) for vote in answer.votes]
        assert len(votes) == 5 and votes.count(tidy(answer.text)) == max(map(votes.count, votes))
    assert found == answers(rung, QUESTIONS, mode)


def test_answers_are_tidied_for_comparison() -> None:
    assert majority(["Rome", "The Nile.", "a nile", "Rome!", "NILE"]) == "The Nile."
    assert [tidy(t) for t in (" The Nile.\nmore", '"a nile"', "NILE")] == ["nile", "nile", "nile"]


def test_wrong_modes_are_refused() -> None:
    with pytest.raises(UsageError, match="chains is 3 without think"):
        Mode(chains=3)
    with pytest.raises(UsageError, match="thought_tokens is 0"):
        Mode(think=True, thought_tokens=0)
