"""A trained tiny rung in an output root of its own, as a launch leaves it."""

import dataclasses
from pathlib import Path

from studies import demo_spec, tiny_shards

from gopher.record import RunFolder
from gopher.spec import Placement, TokenizerSpec
from gopher.train import train


def trained_run(root: Path, *, seed: int = 0, preset: str = "lossless") -> Path:
    """The run folder of 20 steps of the tiny model under `root`; a second call with another seed shares its text."""
    data, shards = tiny_shards(root, preset)
    tokenizer = TokenizerSpec(vocab_size=512, preset=preset)
    keys = {"tokenizer_key": next((root / "tokenizers").iterdir()).name, "data_key": shards.name}
    spec = dataclasses.replace(demo_spec(seed=seed), data=data, tokenizer=tokenizer, **keys)
    folder = RunFolder(root / "runs" / spec.key)
    folder.create(spec, Placement(data_dir=str(shards), micro_batch_sequences=8, checkpoint_every_steps=10), {})
    train(folder)
    return folder.path
