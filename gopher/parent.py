"""The checkpoint that a run starts from: found by its folder, identified by what is in it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.identity import content_hash
from gopher.marker import MARKER, read_marker, steps_in
from gopher.record import RunFolder
from gopher.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Parent:
    folder: Path  # of the checkpoint
    spec: RunSpec  # of the run that wrote it
    key: str  # 12 hex digits of `weights_hash`

    def check_fits(self, run: RunSpec) -> None:
        """Raises `UsageError` unless the run's model can start from these weights and its tokens mean the same."""
        if self.spec.model != run.model:
            theirs, ours = asdict(self.spec.model), asdict(run.model)
            differs = ", ".join(
                f"model.{name} {theirs[name]}, not {n}" for name, n in ours.items() if theirs[name] != n
            )
            raise UsageError(
                f"parent={self.folder} holds a {self.spec.rung} of another shape than the run's {run.rung} ({differs}); "
                "name a parent of the same model, or sweep that rung alone"
            )
        if self.spec.tokenizer_key != run.tokenizer_key:
            raise UsageError(
                f"parent={self.folder} was trained with tokenizer {self.spec.tokenizer_key} and the run would use "
                f"{run.tokenizer_key}; set data and tokenizer so that both are the same"
            )


def weights_hash(spec: RunSpec, files: dict[str, Any]) -> str:
    """SHA-256 that two checkpoints share only if they hold the same bytes in the same model, wherever they lie.

    `files`: those of the checkpoint's marker.
    """
    return content_hash({"model": spec.model, "files": files})


def find_parent(path: Path) -> Parent:
    """The checkpoint at `path`: a checkpoint's folder, or a run's folder (its newest). Raises `UsageError`."""
    folder, known = path.absolute(), False
    try:
        folder = next((p for p in reversed(steps_in(folder / "checkpoints")) if (p / MARKER).exists()), folder)
        known = (folder / MARKER).exists()
        marker = read_marker(folder)
    except (OSError, ValueError) as error:
        what = f"{folder}, which is damaged ({error})" if known else f"{path}, which is no checkpoint"
        raise UsageError(
            f"parent is {what}; name a run folder such as outputs/runs/<key>, or an intact one of its checkpoints"
        ) from None
    spec = RunFolder(folder.parents[1]).spec()
    return Parent(folder=folder, spec=spec, key=weights_hash(spec, marker.files)[:12])
