"""`gopher compress`: how small each rung makes a text, against gzip and LZMA; or one file compressed and restored by a rung."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.record import RunFolder
from sweeps.screen import Table, console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, load_study, run_name


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    tree = compose(overrides).tree
    settings = settings_of(tree)
    if tree["out"] is not None:
        return write_file(tree)
    one = tree["checkpoint"]
    folders, skipped = ([Path(one)], []) if one else sweep_folders(compose, overrides, settings)
    text = text_of(tree, folders[0])
    rows = measure(folders, text)
    if settings.format == "json":
        origin = {"source": text.source, "bytes": len(text.raw), "sha256": hashlib.sha256(text.raw).hexdigest()}
        print(json.dumps({"data": origin, "rows": rows, "skipped": skipped}, indent=2))
        return 0
    show(text, rows)
    for one in skipped:
        console(stderr=True).print(f"left out: {one['run']} ({one['reason']})", markup=False)
    return 0


def sweep_folders(
    compose: ComposeFn, overrides: Sequence[str], settings: Settings
) -> tuple[list[Path], list[dict[str, str]]]:
    """Run folders of the sweep that have a checkpoint, and the others with the reason."""
    study = load_study(compose, overrides)
    names = {settings.run_dir(run.spec.key): run_name(run.spec) for run in study.runs}
    trained = {folder: any(folder.glob("checkpoints/[0-9]*")) for folder in names}
    if not any(trained.values()):
        raise UsageError(
            f"no run of {study.name} has a checkpoint; launch the sweep first, or name one by checkpoint=DIR"
        )
    left_out = [{"run": names[folder], "reason": "no checkpoint"} for folder, there in trained.items() if not there]
    return [folder for folder, there in trained.items() if there], left_out


@dataclass(frozen=True, kw_only=True)
class Text:
    source: str
    raw: bytes


def text_of(tree: dict[str, Any], run_folder: Path) -> Text:
    """The first `max_bytes` of `file`, or of the held-out documents of the run's own data, evenly over its subsets."""
    limit = tree["max_bytes"]
    if not isinstance(limit, int) or limit < 1:
        raise UsageError(f"max_bytes is {limit!r}; give a positive number of bytes")
    if tree["file"] is None:
        return Text(source="held-out documents of the run's own data", raw=held_out(run_folder, limit))
    raw = read(tree["file"])[:limit]
    if not raw:
        raise UsageError(f"{tree['file']} is empty; name a file with something to compress")
    return Text(source=str(tree["file"]), raw=raw)


def held_out(path: Path, limit: int) -> bytes:
    from gopher.data import TokenStore
    from gopher.inference import place, tokenizer_of

    run_folder, _ = place(path, None)
    folder = RunFolder(run_folder)
    store = TokenStore.open(folder.placement().data_dir)
    tokenizer = tokenizer_of(run_folder, folder.spec(), None)
    readers = [store.reader(name, "validation") for name in store.manifest["subsets"]]
    each = -(-limit // len(readers))  # a token is at least one byte, but for the ends of documents
    return b"".join(tokenizer.to_bytes(reader[0 : min(reader.tokens, each)])[:each] for reader in readers)[:limit]


def measure(folders: Sequence[Path], text: Text) -> list[dict[str, Any]]:
    from gopher.compress import classical_rates, rung_rate
    from gopher.inference import open_rung

    rows = [row_of(rate, None) for rate in classical_rates(text.raw)]
    for folder in folders:
        rung = open_rung(folder)
        rows.append(row_of(rung_rate(rung, text.raw), rung))
    return rows


def row_of(rate: Any, rung: Any) -> dict[str, Any]:
    who = {"run": rung.spec.key, "seed": rung.spec.seed, "step": rung.step} if rung else {"run": None}
    return {
        "name": rate.name,
        **who,
        "coded_bytes": rate.coded_bytes,
        "model_bytes": rate.model_bytes,
        "bits_per_byte": rate.bits_per_byte,
        "share": rate.share,
        "share_with_model": rate.share_with_model,
    }


def show(text: Text, rows: Sequence[dict[str, Any]]) -> None:
    columns = ["compressor", "bytes", "bits per byte", "of the text", "with the model", "run"]
    lines = [
        [
            r["name"],
            f"{r['coded_bytes']:,}",
            f"{r['bits_per_byte']:.3f}",
            f"{100 * r['share']:.1f} %",
            f"{100 * r['share_with_model']:.1f} %",
            f"{r['run']} step {r['step']} seed {r['seed']}" if r["run"] else "",
        ]
        for r in rows
    ]
    console().print(Table(f"{text.source}, {len(text.raw):,} bytes", columns, lines))
    console().print("every rung's file was decompressed again and is equal bit for bit", style="dim")


def write_file(tree: dict[str, Any]) -> int:
    """Compress the whole of `file` into `out`, or restore it."""
    from gopher.compress import compress, decompress
    from gopher.inference import open_rung

    if not tree["checkpoint"] or not tree["file"]:
        raise UsageError("out is given without checkpoint and file; name all three: checkpoint=DIR file=FILE out=FILE")
    raw, target = read(tree["file"]), Path(tree["out"])
    if target.exists():
        raise UsageError(f"{target} exists; name a new file, nothing is overwritten")
    rung = open_rung(tree["checkpoint"])
    made = decompress(rung, raw) if tree["decompress"] else compress(rung, raw).coded
    part = target.with_name(f".{target.name}.part")
    part.write_bytes(made)
    part.replace(target)
    console(stderr=True).print(f"{target}: {len(made):,} bytes from {len(raw):,}", markup=False)
    return 0


def read(path: Any) -> bytes:
    try:
        return Path(str(path)).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a file") from None
