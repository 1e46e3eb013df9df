"""Proves: every planted overlap with the training shards is found, and nothing else.

Items copied from training documents (other case and punctuation, across blocks, at the ends of documents) are dirty;
new text, text that spans two documents and text seen for 12 words only are clean; short items are not judged.
"""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gopher.evals.contamination import (
    Spelling,
    blocks_of,
    by_subset,
    ngram_hashes,
    ngrams_of,
    normalised,
    overlaps,
    word_hashes,
)
from gopher.evals.ratios import Ratio, mean_of
from gopher.shards import ShardReader, ShardWriter
from gopher.spec import TokenizerSpec
from gopher.tokenizer import Tokenizer, train_tokenizer

WORDS = [
    "river",
    "stone",
    "light",
    "under",
    "every",
    "morning",
    "the",
    "old",
    "bridge",
    "carries",
    "seven",
    "grey",
    "horses",
    "toward",
    "café",
    "market",
    "while",
    "rain",
]


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(f"{WORDS[i % len(WORDS)]}{i}" for i in rng.integers(0, 4000, words))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], ShardReader, Tokenizer]:
    """Thirty documents of 200 words over two shard files."""
    rng = np.random.default_rng(0)
    documents = [sentence(rng, 200) + "." for _ in range(30)]
    tokenizer = Tokenizer(train_tokenizer(TokenizerSpec(vocab_size=400), documents))
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "train", shard_tokens=20_000) as writer:
        for document in documents:
            writer.append(np.append(tokenizer.encode([document])[0], np.uint16(tokenizer.eos)), len(document.encode()))
        entry = writer.close()
    assert len(entry["files"]) > 1
    return documents, ShardReader(folder, "train", entry), tokenizer


def test_planted_overlaps_are_found(shards: tuple[list[str], ShardReader, Tokenizer]) -> None:
    documents, reader, tokenizer = shards
    rng = np.random.default_rng(1)
    words = [document.rstrip(".").split() for document in documents]
    dirty = [" ".join(w[at : at + 13]) for w in words for at in (0, 77, 187)]
    dirty += [f"{sentence(rng, 20)} {' '.join(w[50:63]).upper().replace(' ', ', ')}! {sentence(rng, 5)}" for w in words]
    short = [" ".join(w[20:28]) for w in words]
    clean = [sentence(rng, 40) for _ in range(50)]
    clean += [" ".join([*a[-7:], *b[:6]]) for a, b in zip(words, words[1:], strict=False)]  # across two documents
    clean += [f"{' '.join(w[30:42])} else {' '.join(w[42:54])}" for w in words]  # 12 words at most
    unjudged = ["", "only seven words are in this text"]
    for block_tokens in (1000, 2**20):
        found = overlaps([*dirty, *short, *clean, *unjudged], blocks_of(reader, tokenizer, block_tokens))
        flags = [f.dirty for f in found]
        assert flags == [True] * len([*dirty, *short]) + [False] * len(clean) + [None, None]
        assert all(f.seen == 1 for f in found[: len(dirty)])


def test_blocks_are_the_documents(shards: tuple[list[str], ShardReader, Tokenizer]) -> None:
    documents, reader, tokenizer = shards
    text = "".join(blocks_of(reader, tokenizer))
    assert [part.strip() for part in text.split("\0")][:-1] == documents
    known = {word for document in documents for word in document.split()} | {"\0"}
    assert all(set(block.split()) <= known for block in blocks_of(reader, tokenizer, 97)), "no block cuts a word"
    spelling, tokens = Spelling(tokenizer), tokenizer.encode(["café \u2581 漢"])[0]
    assert spelling.bytes_of(tokens).decode() == "café \u2581 漢" and spelling.bytes_of(tokens[:0]) == b""


@given(st.lists(st.text(alphabet="abcxyz0é漢", min_size=1, max_size=9), min_size=1, max_size=40))
@settings(max_examples=30)
def test_hashes_depend_on_the_words_alone(words: list[str]) -> None:
    """Equal n-grams hash alike wherever they stand, different ones differ (2^-64 aside)."""
    hashes = ngram_hashes(word_hashes(words), 2)
    alone = [ngram_hashes(word_hashes(words[i : i + 2]), 2)[0] for i in range(len(words) - 1)]
    assert hashes.tolist() == alone
    assert len(set(hashes.tolist())) == len({tuple(words[i : i + 2]) for i in range(len(words) - 1)})


def test_normalisation() -> None:
    assert normalised("The U.S., (1999) -- it_s Ünder!").split() == ["the", "us", "1999", "its", "ünder"]
    assert ngrams_of(["w"] * 7) == set() and ngrams_of(list("abcdefgh")) == {tuple("abcdefgh")}
    assert len(ngrams_of([str(i) for i in range(20)])) == 8


def test_scores_of_subsets() -> None:
    alone = {i: str(i) for i in range(5)}
    flags = dict(enumerate([True, False, True, False, None]))
    found = by_subset(mean_of(dict(enumerate([1.0, 0.0, 1.0, 1.0, 0.5])), alone), flags)
    assert found["dirty"] == {"n": 2, "value": 1.0, "stderr": 0.0} and found["unjudged"]["stderr"] is None
    assert found["clean"] == {"n": 2, "value": 0.5, "stderr": pytest.approx(0.5)} and found["all"]["n"] == 5
    assert by_subset(mean_of({0: 1.0}, alone), {0: False})["dirty"] == {"n": 0, "value": None, "stderr": None}


def test_rates_and_perplexities_have_subsets_and_clusters_count_once() -> None:
    alone, flags = {i: str(i) for i in range(4)}, dict(enumerate([True, False, True, False]))
    bits = Ratio(
        parts=dict(enumerate([8.0, 4.0, 2.0, 4.0])), wholes=dict(enumerate([4.0, 2.0, 1.0, 1.0])), clusters=alone
    )
    assert by_subset(bits, flags)["dirty"] == {"n": 2, "value": 2.0, "stderr": 0.0}
    assert by_subset(bits, flags)["clean"]["value"] == pytest.approx(8 / 3)
    words = replace(bits, is_perplexity=True)
    assert by_subset(words, flags)["dirty"]["value"] == pytest.approx(math.exp(2))
    one = replace(bits, clusters=dict.fromkeys(range(4), "one passage"))
    assert by_subset(one, flags)["clean"] == {"n": 2, "value": pytest.approx(8 / 3), "stderr": None}


@pytest.mark.slow
def test_the_verb_finds_planted_items(tiny_run: Path, tmp_path: Path) -> None:
    """Two of five items are copied from training documents; a task without data is named and the other goes on."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install gopher-sweeps[evals]")
    words = " ".join(p.read_text() for p in sorted((tiny_run.parents[1] / "text" / "prose").glob("*.txt"))[:9]).split()
    texts = [" ".join(words[at : at + 30]) for at in (900, 2500)] + ["too short to judge"]
    texts += [f"a new sentence number {i} about nothing that any president has ever said to congress" for i in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    for name, file in (("planted", "rows.jsonl"), ("absent", "none.jsonl")):
        task = {"task": name, "test_split": "test", "output_type": "multiple_choice", "doc_to_target": 0}
        task |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / file)}}}
        task |= {"doc_to_text": "{{text}}", "doc_to_choice": ["yes", "no"], "metric_list": [{"metric": "acc"}]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
    overrides = [
        f"checkpoint={tiny_run}",
        "tasks=[planted,absent]",
        f"tasks_path={tmp_path}",
        "format=json",
        "scores=true",
    ]
    command = [sys.executable, "-m", "sweeps.cli", "contamination", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["results"][0]["dirty_ids"] == [0, 1] and found["results"][0]["unjudged"] == 1
    assert [s["task"] for s in found["skipped"]] == ["absent"] and found["skipped"][0]["reason"]
    scores = found["results"][0]["scores"]["acc"]
    assert [scores[part]["n"] for part in ("all", "clean", "dirty", "unjudged")] == [5, 2, 2, 1]
    assert scores["all"]["value"] == pytest.approx(
        sum(scores[part]["n"] * scores[part]["value"] for part in ("clean", "dirty", "unjudged")) / 5
    )
