"""Proves: text continues up to a stop string wherever tokens cut it, prompts that are too long lose their beginning, wrong requests are refused."""

from pathlib import Path

import pytest
import torch
from rungs import trained_run

from gopher.completion import complete, ends
from gopher.errors import UsageError
from gopher.inference import Rung, open_rung
from gopher.sampling import Sampling

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rung(tmp_path_factory: pytest.TempPathFactory) -> Rung:
    return open_rung(trained_run(tmp_path_factory.mktemp("completion")))


def test_a_stop_string_ends_the_text(rung: Rung) -> None:
    sampling = Sampling(seed=4)
    prompts = ["The Congress", "", "It is hereby", "In the"]
    whole = complete(rung, prompts, max_new_tokens=40, sampling=sampling)
    stop = whole[0].text[9:12]  # anywhere in the middle, whatever its tokens are
    cut = complete(rung, prompts, max_new_tokens=40, sampling=sampling, until=[stop, "never seen"])
    for full, ended in zip(whole, cut, strict=True):
        assert ended.text == full.text.split(stop)[0]
        assert ended.stopped == (stop in full.text or full.stopped)
    assert cut[0].stopped and not any(c.cut_tokens for c in cut)


def test_a_stop_string_is_seen_with_its_last_token(rung: Rung) -> None:
    tokens = rung.tokenizer.encode(["one\n\nQ: two"])[0].tolist()
    is_done = ends(rung.tokenizer, [b"\n\nQ:"])
    done = [i for i in range(1, len(tokens) + 1) if is_done(tokens[:i])]
    first = min(i for i in range(len(tokens) + 1) if b"\n\nQ:" in rung.tokenizer.to_bytes(tokens[:i]))
    assert done[0] == first


def test_long_prompts_lose_their_beginning(rung: Rung) -> None:
    prompt = "the state of the union " * 60
    tokens = rung.tokenizer.encode([prompt])[0]
    made = complete(rung, [prompt], max_new_tokens=10)[0]
    assert made.cut_tokens == len(tokens) - (rung.context - 10) > 0
    kept = rung.tokenizer.to_bytes(tokens[made.cut_tokens :].tolist()).decode()
    if rung.tokenizer.encode([kept])[0].tolist() == tokens[made.cut_tokens :].tolist():
        assert complete(rung, [kept], max_new_tokens=10)[0].text == made.text


def test_wrong_requests_are_refused(rung: Rung) -> None:
    with pytest.raises(UsageError, match="64 new tokens are asked for with a context of 64; ask for 1 to 63"):
        complete(rung, ["a"], max_new_tokens=64)
    with pytest.raises(UsageError, match="a stop string is empty"):
        complete(rung, ["a"], max_new_tokens=4, until=[""])


def test_a_checkpoint_is_opened_by_run_or_by_step(rung: Rung, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run folder"):
        open_rung(tmp_path)
