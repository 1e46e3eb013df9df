"""A trained rung ready to be used: its weights with distance tables, its tokenizer, and who it is."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gopher.cache import Reader
from gopher.checkpoint import chosen, model_of
from gopher.errors import UsageError
from gopher.marker import read_marker
from gopher.parent import weights_hash
from gopher.record import RunFolder
from gopher.spec import RunSpec
from gopher.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Rung:
    """One checkpoint of a run."""

    spec: RunSpec
    step: int
    sha256: str  # of the checkpoint's files: two checkpoints never share it, wherever they lie
    reader: Reader
    tokenizer: Tokenizer

    @property
    def context(self) -> int:
        return self.spec.model.context

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the parameters as loaded."""
        return sum(p.numel() * p.element_size() for p in self.reader.model.parameters())


def open_rung(
    path: Path | str,
    *,
    step: int | None = None,
    tokenizer: Path | str | None = None,
    device: str = "cpu",
) -> Rung:
    """The checkpoint at `path`: a run folder (its newest step, or `step`) or one of its checkpoint folders.

    The tokenizer is that of the output root the run lies in, unless a folder is given.
    """
    run_folder, step = place(Path(path), step)
    spec = RunFolder(run_folder).spec()
    found = chosen(run_folder / "checkpoints", step)
    marker = read_marker(found)
    return Rung(
        spec=spec,
        step=marker.step,
        sha256=weights_hash(spec, marker.files),
        reader=Reader(model_of(found, spec, device)),
        tokenizer=tokenizer_of(run_folder, spec, tokenizer),
    )


def place(path: Path, step: int | None) -> tuple[Path, int | None]:
    """(run folder, step) of a run folder or of a checkpoint folder inside it, whose name may lack leading zeros."""
    path = path.absolute()
    if path.parent.name == "checkpoints" and path.name.isdigit():
        path, step = path.parents[1], int(path.name) if step is None else step
    if not (path / "spec.json").is_file():
        raise UsageError(
            f"{path} is no run folder (it has no spec.json); name a folder such as outputs/runs/<key> or one of its checkpoints"
        )
    return path, step


def tokenizer_folder(output_root: Path, spec: RunSpec) -> Path:
    return output_root / "tokenizers" / spec.tokenizer_key


def tokenizer_of(run_folder: Path, spec: RunSpec, given: Path | str | None) -> Tokenizer:
    folder = Path(given) if given else tokenizer_folder(run_folder.parents[1], spec)
    if not folder.is_dir():
        raise UsageError(
            f"the run's tokenizer is not at {folder}; keep the run under its output root, or name the tokenizer's folder"
        )
    tokenizer = Tokenizer.open(folder)
    if tokenizer.vocab_size != spec.model.vocab_size:
        raise UsageError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} pieces and the model {spec.model.vocab_size}; name the run's own"
        )
    return tokenizer
