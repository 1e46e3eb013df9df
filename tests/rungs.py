"""A trained tiny rung in an output root of its own, as a launch leaves it."""

import dataclasses
from pathlib import Path

from studies import demo_spec, write_text

from gopher import corpus
from gopher.data import prepare
from gopher.record import RunFolder
from gopher.spec import DataSpec, Placement, TokenizerSpec
from gopher.train import train


def trained_run(root: Path, *, seed: int = 0, preset: str = "lossless") -> Path:
    """The run folder of 20 steps of the tiny model under `root`; a second call with another seed shares its text."""
    text = root / "text"
    if not text.exists():
        write_text(text, documents=30)
    data = DataSpec(kind="local", path=str(text), subsets=corpus.discover(text))
    tokenizer = TokenizerSpec(vocab_size=512, preset=preset)
    shards = prepare(data, tokenizer, root)
    keys = {"tokenizer_key": next((root / "tokenizers").iterdir()).name, "data_key": shards.name}
    spec = dataclasses.replace(demo_spec(seed=seed), data=data, tokenizer=tokenizer, **keys)
    folder = RunFolder(root / "runs" / spec.key)
    folder.create(spec, Placement(data_dir=str(shards), micro_batch_sequences=8, checkpoint_every_steps=10), {})
    train(folder)
    return folder.path
