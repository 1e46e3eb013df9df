"""What a checkpoint is asked: tasks by name and how they are put. Standard library only, so that drivers need no torch."""

from dataclasses import asdict, dataclass
from typing import Any

from gopher.errors import UsageError, did_you_mean
from gopher.identity import content_hash

FEWSHOT_SEED = 1234  # the harness's own
MODES = ("plain", "think", "dialogue")


@dataclass(frozen=True, kw_only=True)
class Exam:
    tasks: tuple[str, ...]  # of the harness, of our own, or of YAML files in `tasks_path`; groups too
    tasks_path: str | None = None
    shots: int | None = None  # None: as each task says; a task that fixes 0 keeps it
    seeds: tuple[int, ...] = (FEWSHOT_SEED,)  # of the choice of few-shot examples; several give their spread
    limit: int | None = None  # documents per task
    stride: int | None = (
        None  # tokens that windows over long documents move by; None: a whole context, as the harness does
    )
    mode: str = "plain"  # think: a chain of thought first | dialogue: generations behind the prompt of `gopher chat`
    chains: int = 1  # of thought, that vote on a generated answer
    steps: Any = "last"  # checkpoints beside the last: last (none) | all | a list of steps
    floor: bool = True  # the untrained model of the same size beside it, as step 0

    @property
    def key(self) -> str:
        """Of how tasks are asked, whichever they are, and at which steps."""
        asked = {k: v for k, v in asdict(self).items() if k != "tasks" and (k, v) != ("steps", "last")}
        return content_hash(asked)[:12]

    def __post_init__(self) -> None:
        for name in ("limit", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"evals.{name} is {value}; give a positive number, or null")
        if self.shots is not None and self.shots < 0:
            raise UsageError(f"evals.shots is {self.shots}; give 0 or more, or null for what each task says")
        if self.mode not in MODES:
            raise UsageError(
                f"evals.mode is '{self.mode}'{did_you_mean(self.mode, MODES)}; use one of {', '.join(MODES)}"
            )
        if self.chains < 1 or (self.chains > 1 and self.mode != "think"):
            raise UsageError(
                f"evals.chains is {self.chains} with evals.mode={self.mode}; give 1, or more with mode=think"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise UsageError(f"evals.seeds is {list(self.seeds)}; give at least one seed and none twice")
