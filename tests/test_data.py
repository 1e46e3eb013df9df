"""Shards and batches: the split is by content and kept from the tokenizer, folders are whole or absent, batches equal the stream, bytes are exact."""

import json
import multiprocessing
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from studies import disk_of, write_text

from gopher import corpus
from gopher.data import (
    IGNORED,
    TokenStore,
    check_epochs,
    data_key,
    document_hash,
    prepare,
    split_documents,
    survey,
    tokenizer_key,
)
from gopher.errors import SetupError, UsageError
from gopher.shards import ShardReader, ShardWriter
from gopher.spec import DataSpec, TokenizerSpec
from gopher.tokenizer import Tokenizer

TOKENIZER = TokenizerSpec(vocab_size=400)


def spec_of(path: Path, **changes: object) -> DataSpec:
    return DataSpec(kind="local", path=str(path), subsets=corpus.discover(path), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("data") / "text", documents=30)


@pytest.fixture(scope="module")
def prepared(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataSpec, Path, Path]:
    data, root = spec_of(text), tmp_path_factory.mktemp("out")
    return data, root, prepare(data, TOKENIZER, root)


def test_the_split_is_by_content_and_complete(text: Path) -> None:
    data = spec_of(text, validation_fraction=0.2)
    for subset in data.subsets:
        found = survey(data, subset)
        split = {digest: name for name, digest, _ in split_documents(data, subset, found)}
        assert set(split) == {document_hash(t) for t in corpus.documents(data, subset)}
        assert 0 < sum(name == "validation" for name in split.values()) < len(split)


def test_duplicates_fall_on_one_side_and_are_counted(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text", documents=30)
    for i in range(5):
        (text / "prose" / f"copy{i}.txt").write_text((text / "prose" / "003.txt").read_text("utf-8"), "utf-8")
    data = spec_of(text, validation_fraction=0.3)
    subset = data.subsets[0]
    found = survey(data, subset)
    assert found.duplicates == 5 and len(list(split_documents(data, subset, found))) == 30


def test_one_document_cannot_be_split(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("alone")
    data = spec_of(tmp_path)
    with pytest.raises(UsageError, match="1 distinct documents"):
        prepare(data, TOKENIZER, tmp_path / "out")


def test_the_tokenizer_never_sees_held_out_documents(tmp_path: Path) -> None:
    """A word that stands a thousand times in held-out documents alone is no piece; planted in training documents it is."""
    pieces = {}
    for where in ("validation", "train"):
        text = write_text(tmp_path / where / "text", documents=30)
        data = spec_of(text, validation_fraction=0.3)
        marked = 0
        for subset in data.subsets:
            held_out = survey(data, subset).held_out
            for path in sorted((text / subset.name).iterdir()):
                content = path.read_text("utf-8")
                planted = content + " Zyxwvut" * 1_000
                if marked < 2 and (document_hash(content) in held_out) == (where == "validation"):
                    # the plant must stay on its side: add blanks until its own hash falls there
                    while (int.from_bytes(document_hash(planted)[:8], "big") / 2**64 < 0.3) != (where == "validation"):
                        planted += " "
                    path.write_text(planted, "utf-8")
                    marked += 1
        assert marked == 2
        folder = prepare(
            spec_of(text, validation_fraction=0.3), TokenizerSpec(vocab_size=1_500), tmp_path / where / "out"
        )
        tokenizer = Tokenizer.open(next((folder.parents[1] / "tokenizers").iterdir()))
        pieces[where] = len(tokenizer.encode([" Zyxwvut"])[0])
    assert pieces["train"] == 1 and pieces["validation"] > 4


def test_shards_hold_every_document_and_its_end(prepared: tuple[DataSpec, Path, Path]) -> None:
    data, root, folder = prepared
    manifest = json.loads((folder / "manifest.json").read_text())
    tokenizer = Tokenizer.open(next((root / "tokenizers").iterdir()))
    for subset in data.subsets:
        entry = manifest["subsets"][subset.name]
        found = survey(data, subset)
        texts = [t for split, _, t in split_documents(data, subset, found) if split == "train"]
        reader = ShardReader(folder / subset.name, "train", entry["train"])
        ends = reader.document_ends()
        decoded = [tokenizer.decode(reader[a : b - 1]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        assert decoded == texts and all(reader[e - 1 : e][0] == tokenizer.eos for e in ends)
        assert entry["train"]["bytes"] == sum(len(t.encode()) for t in texts)


def test_shards_are_one_stream_across_files(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", shard_tokens=7)
    for start in range(0, 40, 5):
        writer.append(np.arange(start, start + 5, dtype=np.uint16), 5)
    entry = writer.close()
    reader = ShardReader(tmp_path, "train", entry)
    assert len(entry["files"]) == 6 and reader.tokens == 40
    for a in range(40):
        for b in range(a + 1, 41):
            assert reader[a:b].tolist() == list(range(a, b))


def test_batches_are_rows_of_the_stream(prepared: tuple[DataSpec, Path, Path]) -> None:
    data, _, folder = prepared
    store = TokenStore.open(folder)
    inputs, targets = store.batch(data, 0, 0, 64, 32)
    assert inputs.shape == targets.shape == (64, 32) and inputs.dtype == np.int64
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    for i, (subset, row) in enumerate(store.order(data, 0, 32).locate(0, 64)):
        piece = store._readers[subset, "train"][row * 32 : row * 32 + 33]
        assert (inputs[i] == piece[:-1]).all() and (targets[i] == piece[1:]).all()
    parts = [store.batch(data, 0, i, i + 8, 32)[0] for i in range(0, 64, 8)]
    assert (np.concatenate(parts) == inputs).all()
    assert (store.batch(data, 1, 0, 64, 32)[0] != inputs).any()


def test_validation_counts_exactly_the_bytes_of_its_targets(prepared: tuple[DataSpec, Path, Path]) -> None:
    data, root, folder = prepared
    tokenizer = Tokenizer.open(next((root / "tokenizers").iterdir()))
    for subset in TokenStore.open(folder).validation(32, 256).values():
        counted = subset.targets[subset.targets != IGNORED]
        assert subset.n_tokens == len(counted) <= 256 + 32
        assert subset.n_bytes == len(tokenizer.decode(counted[counted != tokenizer.eos]).encode())


def test_a_second_preparation_reuses_the_first(prepared: tuple[DataSpec, Path, Path]) -> None:
    data, root, folder = prepared
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert prepare(data, TOKENIZER, root) == folder and (folder / "manifest.json").stat().st_mtime_ns == before


def test_damaged_shards_are_written_again_with_a_warning(text: Path, tmp_path: Path) -> None:
    data = spec_of(text)
    folder = prepare(data, TOKENIZER, tmp_path)
    good = (folder / "manifest.json").read_text()
    shard = folder / "prose" / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x01\x00")
    with pytest.warns(UserWarning, match="damaged"):
        assert prepare(data, TOKENIZER, tmp_path) == folder
    assert (folder / "manifest.json").read_text() == good


def test_ids_that_no_tokenizer_made_are_refused_where_they_are_read(text: Path, tmp_path: Path) -> None:
    """Sizes are as they should be, which is all that a start looks at; a GPU would only say that an assertion failed."""
    data = spec_of(text)
    folder = prepare(data, TOKENIZER, tmp_path)
    for split in ("train", "validation"):
        for shard in folder.glob(f"*/{split}-*.bin"):
            shard.write_bytes(b"\xff" * shard.stat().st_size)
        store = TokenStore.open(folder)
        with pytest.raises(
            UsageError, match="holds token id 65535 but its tokenizer has 400 pieces; .* launch the sweep again"
        ):
            store.batch(data, 0, 0, 2, 16) if split == "train" else store.validation(16, 64)


def test_held_out_text_of_no_bytes_is_refused(prepared: tuple[DataSpec, Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(prepared[2], tmp_path / "shards")
    np.save(folder / "token_bytes.npy", np.zeros(400, np.int64))
    with pytest.raises(UsageError, match="held-out text of data subset 'prose' has .* tokens to predict, of 0 bytes"):
        TokenStore.open(folder).validation(16, 64)


def prepare_quietly(data: DataSpec, root: Path) -> None:
    prepare(data, TOKENIZER, root)


def test_two_preparations_at_once_leave_one_good_folder(text: Path, tmp_path: Path) -> None:
    data, context = spec_of(text), multiprocessing.get_context("spawn")
    both = [context.Process(target=prepare_quietly, args=(data, tmp_path)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert [p.name.startswith(".") for p in (tmp_path / "data").iterdir()] == [False]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of("256k", tmp_path / "disk") as disk:
        yield disk


def test_a_full_disk_is_one_sentence_and_leaves_nothing(text: Path, small_disk: Path) -> None:
    with pytest.raises(SetupError, match="no space left"):
        prepare(spec_of(text), TOKENIZER, small_disk)
    assert not [p for p in small_disk.rglob("*") if p.name.endswith(".part")]


def test_repeating_text_too_often_is_refused(prepared: tuple[DataSpec, Path, Path]) -> None:
    data, _, folder = prepared
    store = TokenStore.open(folder)
    seen = check_epochs(store, data, 10_000)
    unique = store.unique_tokens()
    assert seen == pytest.approx({n: 10_000 * w / unique[n] for n, w in data.weights.items()})
    with pytest.raises(UsageError, match="raise data.max_epochs"):
        check_epochs(store, data, 100_000_000)


def test_keys_ignore_weights_and_follow_the_split(text: Path) -> None:
    data, print_of_text = spec_of(text), "f"
    first = tokenizer_key(TOKENIZER, data, print_of_text)
    other = spec_of(text, validation_fraction=0.1)
    assert tokenizer_key(TOKENIZER, other, print_of_text) != first
    weighted = DataSpec(kind="local", path=str(text), subsets=corpus.discover(text, {"prose": 1.0, "shout": 9.0}))
    assert data_key(weighted, first, print_of_text) == data_key(data, first, print_of_text)


def test_a_folder_without_shards_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="launch the sweep again"):
        TokenStore.open(tmp_path)
