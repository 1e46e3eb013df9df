"""What a command needs beside the runs: where things are written, how output looks, which cluster and tracker."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gopher.errors import UsageError, require
from gopher.evals.exam import FEWSHOT_SEED, Exam
from gopher.spec_json import build

FOLLOWING = ("fit", "report", "suggest")  # verbs that need no words of their own


def require_at_least(section: str, settings: Any, **minimum: float) -> None:
    """Refuse numbers below their minimum (and NaN); None says nothing."""
    for name, least in minimum.items():
        value = getattr(settings, name)
        require(value is None or value >= least, f"{section}.{name} is {value}; give {least:g} or more")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    address: str = "local"  # local: a Ray of our own; auto or host:port: an existing one
    cpus: int | None = None  # how many cores a local Ray offers; None: all
    gpus: int | None = None
    usd_per_gpu_hour: float | None = None
    usd_per_cpu_hour: float | None = None

    def __post_init__(self) -> None:
        require_at_least("cluster", self, cpus=1, gpus=0, usd_per_gpu_hour=0, usd_per_cpu_hour=0)


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    uri: str | None = field(default=None, repr=False)  # may hold a password; None: sqlite under the output root
    required: bool = True  # a launch that cannot reach it does not start; false: it goes on and sends later


@dataclass(frozen=True, kw_only=True)
class LaunchSettings:
    max_parallel_runs: int | None = None
    max_attempts: int = 3  # starts of one run before a crash is final; preemptions do not count
    hang_seconds: float = 900.0  # a run without progress for so long is killed and started again
    then: tuple[str, ...] = ()  # verbs that follow once all runs are finished
    max_gpu_hours: float | None = None  # of the whole sweep: nothing more starts beyond
    max_usd: float | None = None
    patience_seconds: float = 60.0  # how long the end of a launch waits for an unreachable MLflow

    def __post_init__(self) -> None:
        require(self.hang_seconds > 0, f"launch.hang_seconds is {self.hang_seconds:g}; give seconds above zero")
        require_at_least(
            "launch", self, max_parallel_runs=1, max_attempts=1, max_gpu_hours=0, max_usd=0, patience_seconds=0
        )


@dataclass(frozen=True, kw_only=True)
class CodeSettings:
    require_clean: bool = False  # refuse to launch with uncommitted changes


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    steps: Any = "last"  # checkpoints that are scored, by a launch beside the last: last | all | a list of steps
    shots: int | None = None
    seeds: tuple[int, ...] = (FEWSHOT_SEED,)
    limit: int | None = None
    stride: int | None = None
    mode: str = "plain"
    chains: int = 1
    floor: bool = True

    def __post_init__(self) -> None:
        steps = self.steps in ("last", "all") or (
            isinstance(self.steps, list) and self.steps and all(type(s) is int and s >= 0 for s in self.steps)
        )
        require(bool(steps), f"evals.steps is {self.steps!r}; use last, all, or a list of steps such as [0,100]")


@dataclass(frozen=True, kw_only=True)
class UiSettings:
    port: int = 5000
    open: bool = False

    def __post_init__(self) -> None:
        require(1 <= self.port <= 65535, f"ui.port is {self.port}; give a port between 1 and 65535")


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    max_new_tokens: int | None = None  # None: a quarter of the context, at most 128
    prompted: bool = True
    draft: str | None = None  # a run that proposes tokens
    ahead: int = 4

    def __post_init__(self) -> None:
        require_at_least("chat", self, max_new_tokens=1, ahead=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    output_root: str
    name: str  # of the sweep
    format: str = "table"
    watch: Any = "auto"
    follow: bool = False
    gate: str = "none"  # none | ladder: a rung starts once all runs of the rung below have finished
    detach: bool = False  # of launch: the driver goes on in the background, on a Ray cluster as a Ray job
    tasks: tuple[str, ...] = ()  # scored for every run once it is trained
    tasks_path: str | None = None
    evals: EvalSettings = EvalSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()
    launch: LaunchSettings = LaunchSettings()
    ui: UiSettings = UiSettings()
    chat: ChatSettings = ChatSettings()
    code: CodeSettings = CodeSettings()

    def __post_init__(self) -> None:
        require(self.format in ("table", "json"), f"format is '{self.format}'; use table or json")
        unknown = [verb for verb in self.launch.then if verb not in FOLLOWING]
        require(not unknown, f"launch.then names '{(unknown or [''])[0]}'; it can hold {', '.join(FOLLOWING)}")
        priced = self.cluster.usd_per_gpu_hour is not None or self.cluster.usd_per_cpu_hour is not None
        require(
            self.launch.max_usd is None or priced,
            "launch.max_usd is set without a price; set cluster.usd_per_gpu_hour or cluster.usd_per_cpu_hour",
        )
        require(self.gate in ("none", "ladder"), f"gate is '{self.gate}'; use none or ladder")
        odd = [t for t in self.tasks if not t or "/" in t or t.startswith(".")]
        require(not odd, f"tasks names '{(odd or [''])[0]}'; give names of tasks, and their folder as tasks_path")
        require(self.watch in ("auto", True, False), f"watch is '{self.watch}'; use auto, true or false")

    @property
    def exam(self) -> Exam:
        """What checkpoints are asked, by `gopher eval` and by a launch with tasks."""
        how = {f.name: getattr(self.evals, f.name) for f in fields(EvalSettings)}
        # a cluster's workers start in another folder
        path = str(Path(self.tasks_path).absolute()) if self.tasks_path is not None else None
        return Exam(tasks=self.tasks, tasks_path=path, **how)

    @property
    def root(self) -> Path:
        return Path(self.output_root).absolute()

    @property
    def sweep_dir(self) -> Path:
        return self.root / "sweeps" / self.name

    def run_dir(self, key: str) -> Path:
        return self.root / "runs" / key

    @property
    def tracking_uri(self) -> str:
        return self.tracking.uri or f"sqlite:///{self.root / 'mlflow.db'}"


def settings_of(tree: dict[str, Any]) -> Settings:
    """The command's settings out of a composed config; the run's own keys are left to `sweeps.study`."""
    names = [f.name for f in fields(Settings)]
    settings = build(Settings, {k: tree[k] for k in names}, "config")
    require(bool(settings.output_root.strip()), "output_root is empty; name a folder")
    if settings.root.exists() and not settings.root.is_dir():
        raise UsageError(f"output_root is {settings.output_root}, which is a file; name a folder")
    return settings
