"""Proves: a dialogue keeps within the context by dropping its oldest turns first, replies end where others would speak, and the verbs work from a pipe.

`gopher chat` answers each line as text or JSON; `gopher compress` measures a checkpoint and restores a file bit for bit.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gopher.completion import Draft, complete
from gopher.dialogue import DESCRIPTION, EXAMPLES, MODEL, USER, Dialogue, reply
from gopher.errors import GopherError, UsageError
from gopher.inference import Rung, open_rung
from gopher.sampling import Sampling

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rung(tiny_run: Path) -> Rung:
    return open_rung(tiny_run)


def tokens(rung: Rung, text: str) -> int:
    return len(rung.tokenizer.encode([text])[0])


def test_the_oldest_turns_go_first_and_the_description_last(rung: Rung) -> None:
    dialogue = Dialogue().said(USER, "One?").said(MODEL, "Two.").said(USER, "Three?")
    whole = dialogue.prompt(rung, 10_000)
    assert whole.text.startswith(DESCRIPTION) and whole.text.endswith(f"{USER}: Three?\n\n{MODEL}:")
    assert all(text in whole.text for _, text in EXAMPLES) and whole.dropped_turns == 0
    for room in range(tokens(rung, whole.text), 20, -15):
        prompt = dialogue.prompt(rung, room)
        assert tokens(rung, prompt.text) <= room
        assert prompt.described == prompt.text.startswith(DESCRIPTION) and prompt.text.endswith(f"Three?\n\n{MODEL}:")
        assert (EXAMPLES[0][1] in prompt.text) == (prompt.dropped_turns == 0)
    assert not dialogue.prompt(rung, 20).described
    assert dataclasses.replace(dialogue, prompted=False).prompt(rung, 60).text.startswith(f"{USER}: One?")


def test_replies_are_remembered_and_end_before_the_next_speaker(rung: Rung) -> None:
    first = reply(rung, Dialogue(prompted=False), "The State of the Union", Sampling(seed=1), 30)
    assert first.dialogue.turns == ((USER, "The State of the Union"), (MODEL, first.text))
    assert not any(stop in first.text for stop in ("\n\n", f"\n{USER}:", f"\n{MODEL}:"))
    second = reply(rung, first.dialogue, "x" * 500, Sampling(seed=1), 30)
    assert second.cut_tokens > 0 and len(second.dialogue.turns) == 4, "even a question too long is answered"


def gopher(cwd: Path, *words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words], cwd=cwd, capture_output=True, text=True, input=said
    )


def test_chat_answers_the_lines_of_a_pipe(tiny_run: Path, tmp_path: Path) -> None:
    done = gopher(tmp_path, "chat", str(tiny_run), "format=json", said="Hello?\n\nWho is there?\n")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [a["question"] for a in answers] == ["Hello?", "Who is there?"] and all("answer" in a for a in answers)
    assert done.stderr.count("\n") == 1 and "no longer fit in the context of 64 tokens" in done.stderr


def test_a_draft_changes_who_proposes_and_not_what_is_said(tiny_run: Path, own_run: Path, tmp_path: Path) -> None:
    """Greedy answers with a draft (the same run, an earlier step) are those without."""
    early = str(own_run / "checkpoints" / "0000000010")
    words = ("chat", str(tiny_run), "format=json", "chat.temperature=0")
    plain = gopher(tmp_path, *words, said="The Congress\n")
    helped = gopher(tmp_path, *words, f"chat.draft={early}", "chat.ahead=2", said="The Congress\n")
    assert plain.returncode == helped.returncode == 0 and plain.stdout == helped.stdout, helped.stderr
    none = gopher(tmp_path, *words, f"chat.draft={early}", "chat.ahead=0")
    assert none.returncode == 2 and "chat.ahead is 0; give 1 or more" in none.stderr


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("temperature=abc", "config.chat.temperature is 'abc'; give a value of type float"),
        ("temperature=1e-320", "; give 0 for greedy decoding, or 1e-06 or more"),
        ("seed=1.5", "config.chat.seed is 1.5; give a value of type int"),
        ("ahead=true", "config.chat.ahead is True; give a value of type int"),
        ("top_p=2", "top_p is 2.0; give a probability above 0 and at most 1"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_said(
    tiny_run: Path, tmp_path: Path, word: str, said: str
) -> None:
    done = gopher(tmp_path, "chat", str(tiny_run), f"chat.{word}", said="Hello?\n")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_checkpoint_says_so(tiny_run: Path, temperature: float) -> None:
    diverged = open_rung(tiny_run)
    diverged.reader.head.transposed.fill_(torch.inf)
    with pytest.raises(GopherError, match="the checkpoint has diverged; choose one of an earlier step"):
        complete(diverged, ["The"], max_new_tokens=3, sampling=Sampling(temperature=temperature))


def test_a_draft_asked_for_more_than_is_wanted_takes_no_room(rung: Rung) -> None:
    plain = complete(rung, ["The"], max_new_tokens=5)
    assert complete(rung, ["The"], max_new_tokens=5, draft=Draft(rung=rung, ahead=10**12)) == plain


def test_a_draft_with_other_tokens_is_refused(rung: Rung) -> None:
    other = dataclasses.replace(rung, spec=dataclasses.replace(rung.spec, tokenizer_key="other"))
    with pytest.raises(UsageError, match="the draft was trained with tokenizer other .* use a draft of the same sweep"):
        complete(rung, ["The"], max_new_tokens=3, draft=Draft(rung=other))


@pytest.mark.slow
def test_compress_measures_and_restores(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"The Congress of the United States \xff\n" * 9)
    made = gopher(tmp_path, "compress", f"checkpoint={tiny_run}", "max_bytes=900", "format=json")
    assert made.returncode == 0, made.stderr
    names = [row["name"] for row in json.loads(made.stdout)["rows"]]
    assert names == ["gzip -9", "LZMA -9e", "tiny"] and json.loads(made.stdout)["data"]["bytes"] == 900
    assert gopher(tmp_path, "compress", f"checkpoint={tiny_run}", "file=text", "out=small").returncode == 0
    words = ("compress", f"checkpoint={tiny_run}", "file=small", "out=again", "decompress=true")
    assert gopher(tmp_path, *words).returncode == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "text").read_bytes()
    refused = gopher(tmp_path, *words)
    assert refused.returncode == 2 and "again exists" in refused.stderr
