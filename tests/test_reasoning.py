"""Proves: chain of thought asks in two stages, several chains vote, options are chosen by their likelihood, wrong modes are refused."""

from pathlib import Path

import pytest
import torch

from gopher.completion import complete
from gopher.errors import UsageError
from gopher.evals.reasoning import CONCLUDE, THINK, Answer, Mode, answers, likeliest, majority, question, tidy
from gopher.inference import Rung, open_rung

torch.set_num_threads(1)
QUESTIONS = [question("Who wrote it?"), question("What is the sum?")]


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
        assert answer.text == made.text.strip() and answer.agreement == 1
    plain = answers(rung, QUESTIONS, Mode(answer_tokens=6))
    assert [a.chains for a in plain] == [(), ()]


def test_chains_vote(rung: Rung) -> None:
    mode = Mode(think=True, chains=5, thought_tokens=8, temperature=1.0, seed=3)
    options = [["yes", "no"], ["one", "two", "three"]]
    found = answers(rung, QUESTIONS, mode, options)
    for answer, own in zip(found, options, strict=True):
        assert len(set(answer.chains)) > 1, "chains are sampled independently"
        assert set(answer.votes) <= set(own) and answer.votes.count(answer.text) == max(map(answer.votes.count, own))
    assert found == answers(rung, QUESTIONS, mode, options)
    assert Answer(text="a", votes=("a", "b", "a", "a"), chains=(), cut_tokens=0).agreement == 0.75


def test_the_likeliest_option_is_chosen(rung: Rung) -> None:
    best = likeliest(rung, ["The Congress of the", "The Congress of the"], [["United", "zqx"], ["zqx", "United"]])
    assert best == (["United", "United"], [0, 0])
    _, cut = likeliest(rung, ["The Congress of the United States " * 40], [["a", "b"]])
    assert cut[0] > 0


def test_answers_are_tidied_for_comparison() -> None:
    assert majority(["Rome", "The Nile.", "a nile", "Rome!", "NILE"]) == "The Nile."
    assert [tidy(t) for t in (" The Nile.\nmore", '"a nile"', "NILE")] == ["nile", "nile", "nile"]


def test_wrong_modes_are_refused(rung: Rung) -> None:
    with pytest.raises(UsageError, match="chains is 3 without think"):
        Mode(chains=3)
    with pytest.raises(UsageError, match="thought_tokens is 0"):
        Mode(think=True, thought_tokens=0)
    with pytest.raises(UsageError, match="options must name at least one option for every prompt"):
        answers(rung, QUESTIONS, Mode(), [["yes"]])
