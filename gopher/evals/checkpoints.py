"""The checkpoints of a run that are to be scored, known by their content before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gopher.cache import Reader
from gopher.checkpoint import chosen
from gopher.errors import UsageError
from gopher.identity import content_hash
from gopher.inference import Rung, open_rung, place, tokenizer_folder, tokenizer_of
from gopher.marker import read_marker, steps_in
from gopher.model import Transformer, initialise
from gopher.parent import weights_hash
from gopher.record import RunFolder
from gopher.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    run_folder: Path
    spec: RunSpec
    step: int
    sha256: str
    saved: bool  # False: the model before its first step, made from the run's seed
    tokenizer: Path | None = None  # its folder; None: below the output root that the run lies in

    @property
    def output_root(self) -> Path:
        """Where its tokenizer lies and its answers belong."""
        return self.tokenizer.parents[1] if self.tokenizer else self.run_folder.parents[1]

    def open(self) -> Rung:
        """The checkpoint, ready to be used."""
        if self.saved:
            return open_rung(self.run_folder, step=self.step, tokenizer=self.tokenizer, device=device())
        model = Transformer(self.spec.model)
        with torch.no_grad():
            values = ((name, p.data.view(-1), 0) for name, p in model.named_parameters())
            initialise(values, self.spec.model, self.spec.seed)
        return Rung(
            spec=self.spec,
            step=0,
            sha256=self.sha256,
            reader=Reader(model.to(device()).requires_grad_(False)),
            tokenizer=tokenizer_of(self.run_folder, self.spec, self.tokenizer),
        )


def device() -> str:
    """What this process scores on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def checkpoints_of(path: Path, steps: str | Sequence[int], floor: bool) -> list[Checkpoint]:
    """The checkpoints at `path` (a run folder or one checkpoint's) by ascending step: the newest intact one (`last`), `all`,
    or the given steps; before them, with `floor`, the untrained model. Raises `UsageError` when there is none."""
    run_folder, one = place(path, None)
    spec = RunFolder(run_folder).spec()
    folder = run_folder / "checkpoints"
    kept = [int(p.name) for p in steps_in(folder)]
    wanted: Sequence[int | None] = [one] if one is not None else [None] if steps == "last" else sorted(kept)
    if one is None and not isinstance(steps, str):
        wanted = sorted(steps)
        if missing := [s for s in wanted if s not in kept]:
            raise UsageError(f"{run_folder} has no checkpoint of step {missing[0]}; it has steps {kept}")
    if not wanted:
        raise UsageError(f"{folder} has no intact checkpoint; train the run first")
    out = [saved(run_folder, spec, chosen(folder, step)) for step in wanted]
    if floor and out[0].step > 0 and spec.parent is None:
        out.insert(0, saved(run_folder, spec, chosen(folder, 0)) if 0 in kept else untrained(run_folder, spec))
    return out


def at_home(checkpoint: Checkpoint, output_root: Path) -> Checkpoint:
    """A checkpoint that may have been copied out of its output root, with its tokenizer: beside the run, else below `output_root`.

    Raises `UsageError` when it is in neither.
    """
    roots = (checkpoint.run_folder.parents[1], output_root)
    folders = [tokenizer_folder(root, checkpoint.spec) for root in roots]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise UsageError(
            f"the tokenizer of {checkpoint.run_folder} is neither {folders[0]} nor {folders[1]}; "
            "name the output root that the run was trained in with output_root=DIR"
        )
    return replace(checkpoint, tokenizer=found)


def saved(run_folder: Path, spec: RunSpec, path: Path) -> Checkpoint:
    marker = read_marker(path)
    sha256 = weights_hash(spec, marker.files)
    return Checkpoint(run_folder=run_folder, spec=spec, step=marker.step, sha256=sha256, saved=True)


def untrained(run_folder: Path, spec: RunSpec) -> Checkpoint:
    sha256 = content_hash({"model": spec.model, "seed": spec.seed, "tokenizer": spec.tokenizer_key, "step": 0})
    return Checkpoint(run_folder=run_folder, spec=spec, step=0, sha256=sha256, saved=False)
