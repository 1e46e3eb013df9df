"""What one run is: frozen dataclasses, standard library only.

`RunSpec` is all that decides the numbers of a run and nothing else; its hash is the run's key.
`Placement` is how and where the run is executed (workers, threads, cadence of checkpoints); it is
never part of the identity, because the same spec gives the same losses under any placement.
Each spec checks itself on construction and raises `UsageError` with the value and the cure.
"""

import functools
import math
from dataclasses import dataclass

from gopher.errors import UsageError, did_you_mean, require
from gopher.identity import label, newer, short_key

ATTENTION = ("auto", "reference", "sdpa_bias", "chunked", "triton")  # see gopher.attention
SPEC_VERSION = 3  # raise it when the same fields begin to mean another computation


def plain_name(name: str) -> bool:
    """Whether `name` can be a file's name that stays in its folder."""
    return bool(name) and not name.startswith(".") and all(c.isalnum() or c in "_.-" for c in name)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape of the transformer (Rae et al. 2021, Table 1): d_ff = 4 d_model, tied embeddings, TXL relative attention."""

    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    vocab_size: int
    context: int  # tokens of one training sequence

    @property
    def d_ff(self) -> int:
        return 4 * self.d_model

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_head", "d_model", "vocab_size", "context"):
            size = getattr(self, name)
            require(1 <= size < 2**31, f"model.{name} is {size}; give a positive integer below 2^31")
        require(
            self.d_model % 2 == 0,
            f"model.d_model is {self.d_model}, which is odd; sinusoids come in sin/cos pairs, so give an even width",
        )
        require(
            self.n_heads * self.d_head == self.d_model,
            f"model.n_heads * model.d_head is {self.n_heads} * {self.d_head} = {self.n_heads * self.d_head} but model.d_model is "
            f"{self.d_model}; every Gopher rung has them equal, so set {self._matching_heads()}",
        )
        require(
            self.vocab_size <= 65_536,
            f"model.vocab_size is {self.vocab_size}; token shards are uint16, so at most 65536",
        )

    def _matching_heads(self) -> str:
        """Settings of heads that fit the width: the head count that is there, or else the nearest one up to 4096 that divides it."""
        if self.d_model % self.n_heads == 0:
            return f"model.d_head={self.d_model // self.n_heads} or another head count"
        fitting = [n for n in range(1, min(self.d_model, 2 * self.n_heads, 4096) + 1) if self.d_model % n == 0]
        heads = min(fitting, key=lambda n: abs(n - self.n_heads))
        return f"model.n_heads={heads} and model.d_head={self.d_model // heads}"


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A SentencePiece model with byte fallback, trained on the training split."""

    vocab_size: int
    preset: str = "lossless"  # lossless: exact round trip of any UTF-8; gopher: NFKC as in the paper
    algorithm: str = "bpe"  # bpe trains 10x faster; unigram encodes 4x faster
    train_bytes: int = 20_000_000  # at most this much text, drawn evenly over documents

    def __post_init__(self) -> None:
        require(self.preset in ("lossless", "gopher"), f"tokenizer.preset is '{self.preset}'; use lossless or gopher")
        require(self.algorithm in ("bpe", "unigram"), f"tokenizer.algorithm is '{self.algorithm}'; use bpe or unigram")
        require(
            264 <= self.vocab_size <= 65_536,
            f"tokenizer.vocab_size is {self.vocab_size}; byte fallback needs at least 264 and uint16 shards at most 65536",
        )
        require(self.train_bytes > 0, f"tokenizer.train_bytes is {self.train_bytes}; give a positive number of bytes")


@dataclass(frozen=True, kw_only=True)
class SubsetSpec:
    """One named part of the mixture. `origin` is a package, a folder or a hub id, by `DataSpec.kind`."""

    name: str
    weight: float  # share of training sequences, in any unit; normalised over the subsets
    origin: str = ""
    revision: str = ""  # package version or hub commit; empty for folders
    config: str = ""  # hub configuration name
    text_field: str = "text"

    def __post_init__(self) -> None:
        require(
            bool(self.name) and all(c.isalnum() or c in "_-" for c in self.name),
            f"subset name '{self.name}' may only have letters, digits, '_' and '-'; rename the folder or the subset",
        )
        require(
            self.weight > 0,
            f"data weight of subset '{self.name}' is {self.weight}; give a positive number or leave the subset out",
        )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where text comes from and how it is split. Weights decide batches; the split decides what is never trained on."""

    kind: str  # package | local | hub
    subsets: tuple[SubsetSpec, ...]
    validation_fraction: float = 0.02  # of documents, chosen by content hash, at least one per subset
    max_documents: int | None = None  # per subset, hub only: how much of a stream to take
    max_epochs: float = 4.0  # a subset seen more often than this is refused unless the study raises it
    path: str | None = label(default=None)  # local only

    def __post_init__(self) -> None:
        require(self.kind in ("package", "local", "hub"), f"data.kind is '{self.kind}'; use package, local or hub")
        names = [s.name for s in self.subsets]
        require(bool(names), "data has no subsets; name at least one, or point data.path at a folder with text")
        total = sum(s.weight for s in self.subsets)
        require(math.isfinite(total), f"data.subsets have weights whose sum is {total}; give smaller ones")
        require(len(set(names)) == len(names), f"data subsets {names} have a name twice; rename one")
        require(
            0 < self.validation_fraction < 0.5,
            f"data.validation_fraction is {self.validation_fraction}; give a share between 0 and 0.5",
        )
        require(self.max_epochs > 0, f"data.max_epochs is {self.max_epochs}; give a positive number")

    @property
    def weights(self) -> dict[str, float]:
        """Mixture share per subset, summing to 1."""
        total = sum(s.weight for s in self.subsets)
        return {s.name: s.weight / total for s in self.subsets}


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Adam with linear warm-up and cosine decay (Rae et al. 2021, section 3.1).

    Betas and eps are not published: 0.9 / 0.95 / 1e-8 are this project's choice.
    """

    lr: float  # maximum learning rate
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    warmup_steps: int = 1_500
    warmup_start_lr: float = 1e-7
    final_lr_fraction: float = 0.1  # of lr, reached at the last step
    clip_norm: float = 1.0  # global gradient norm
    kind: str = newer("adam")  # adam | muon: Muon for the linear maps of the blocks, Adam for the rest

    def __post_init__(self) -> None:
        require(
            1e-30 <= self.lr <= 1e30, f"optim.lr is {self.lr:g}; give a positive learning rate that float32 can hold"
        )
        require(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1,
            f"optim.beta1/beta2 are {self.beta1}/{self.beta2}; give values in [0, 1)",
        )
        require(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}; give 0 or more")
        require(
            0 < self.final_lr_fraction <= 1,
            f"optim.final_lr_fraction is {self.final_lr_fraction}; give a value in (0, 1]",
        )
        for name in ("clip_norm", "eps"):
            value = getattr(self, name)
            require(value >= 1e-30, f"optim.{name} is {value:g}; give a positive number that float32 can hold")
        require(
            0 <= self.warmup_start_lr <= self.lr,
            f"optim.warmup_start_lr is {self.warmup_start_lr:g} and optim.lr {self.lr:g}; start at 0 or more and no higher than that",
        )
        require(self.kind in ("adam", "muon"), f"optim.kind is '{self.kind}'; use adam or muon")


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """Sequences per step, doubled once if `double_at_tokens` is set (the 280B run went from 3M to 6M tokens midway)."""

    sequences: int
    double_at_tokens: int | None = None

    def __post_init__(self) -> None:
        require(self.sequences >= 1, f"batch.sequences is {self.sequences}; give a positive integer")
        at = self.double_at_tokens
        require(at is None or at >= 1, f"batch.double_at_tokens is {at}; give a positive number of tokens, or null")


@dataclass(frozen=True, kw_only=True)
class PrecisionSpec:
    parameters: str = "float32"
    compute: str = "float32"
    stochastic_rounding: bool = False  # only with bfloat16 parameters; moments stay float32
    gradient_reduce: str = "float32"  # float64 makes losses independent of the world size to the last bit or two

    def __post_init__(self) -> None:
        for name, known in (
            ("parameters", ("float32", "bfloat16")),
            ("compute", ("float32", "bfloat16")),
            ("gradient_reduce", ("float32", "float64")),
        ):
            require(
                getattr(self, name) in known, f"precision.{name} is '{getattr(self, name)}'; use {' or '.join(known)}"
            )
        require(
            self.stochastic_rounding == (self.parameters == "bfloat16"),
            f"precision.stochastic_rounding is {self.stochastic_rounding} with {self.parameters} parameters; "
            "bfloat16 parameters need it and float32 parameters cannot use it",
        )


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """Validation on held-out documents: at step 0, `points` times evenly over the run, always at the last step."""

    points: int = 5
    tokens_per_subset: int = 32_768

    def __post_init__(self) -> None:
        require(self.points <= 1_000_000, f"evaluation.points is {self.points}; give at most 1000000")
        require(
            self.points >= 1, f"evaluation.points is {self.points}; give 1 or more (the last step is always evaluated)"
        )
        require(
            self.tokens_per_subset >= 1,
            f"evaluation.tokens_per_subset is {self.tokens_per_subset}; give a positive number of tokens",
        )


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run. `rung` is a label: two ladders that name the same model differently share the run."""

    rung: str = label()
    seed: int
    model: ModelSpec
    data: DataSpec
    tokenizer: TokenizerSpec
    optim: OptimSpec
    batch: BatchSpec
    precision: PrecisionSpec
    evaluation: EvalSpec
    tokens: int  # training tokens asked for; the run takes the whole steps that reach it
    tokenizer_key: str  # identity of the tokenizer's inputs
    data_key: str  # identity of the token shards' inputs
    parent: str | None = newer(None)  # identity of the checkpoint whose weights the run starts from; None: random ones
    version: int = SPEC_VERSION

    def __post_init__(self) -> None:
        names = ["rung", "tokenizer_key", "data_key", *(["parent"] if self.parent else [])]
        for name in names:  # they name folders and MLflow runs
            require(
                plain_name(getattr(self, name)),
                f"{name} is {getattr(self, name)!r}; use letters, digits, '_', '-' and '.'",
            )
        require(
            self.model.vocab_size == self.tokenizer.vocab_size,
            f"model.vocab_size is {self.model.vocab_size} but tokenizer.vocab_size is {self.tokenizer.vocab_size}; make them equal",
        )
        require(
            self.optim.kind == "adam" or not self.precision.stochastic_rounding,
            "optim.kind is muon with stochastic rounding, which only adam has; use precision=float32",
        )
        require(0 <= self.seed < 2**64, f"seed is {self.seed}; give an integer from 0 to 2^64 - 1")
        require(self.tokens < 2**63, f"tokens is {self.tokens}; give a number below 2^63")
        require(
            self.tokens >= self.batch_tokens(0),
            f"tokens is {self.tokens}, less than one batch of {self.batch_tokens(0)}; raise tokens",
        )
        require(
            self.steps < 2**31,
            f"tokens is {self.tokens}, which takes {self.steps} steps; lower it or raise batch.sequences, for fewer than 2^31",
        )
        require(
            self.optim.warmup_steps < self.steps,
            f"optim.warmup_steps is {self.optim.warmup_steps} but the run has only {self.steps} steps; lower it or raise tokens",
        )

    @functools.cached_property
    def key(self) -> str:
        """12 hex digits: the run's identity and its folder name."""
        return short_key(self)

    @property
    def doubling_step(self) -> int | None:
        """First step with the doubled batch, or None."""
        if self.batch.double_at_tokens is None:
            return None
        return -(-self.batch.double_at_tokens // (self.batch.sequences * self.model.context))

    @property
    def steps(self) -> int:
        """Whole optimizer steps that reach `tokens`."""
        one, doubling = self.batch.sequences * self.model.context, self.doubling_step
        if doubling is None or doubling * one >= self.tokens:
            return -(-self.tokens // one)
        return doubling + -(-(self.tokens - doubling * one) // (2 * one))

    def batch_sequences(self, step: int) -> int:
        """Sequences in the global batch of `step` (0-based)."""
        doubled = self.doubling_step is not None and step >= self.doubling_step
        return self.batch.sequences * (2 if doubled else 1)

    def batch_tokens(self, step: int) -> int:
        return self.batch_sequences(step) * self.model.context

    def sequences_before(self, step: int) -> int:
        """Sequences consumed by steps 0 .. step-1: the position in the data order."""
        doubling = self.doubling_step
        extra = max(0, step - doubling) if doubling is not None else 0
        return self.batch.sequences * (step + extra)

    def tokens_before(self, step: int) -> int:
        """Tokens trained on after `step` steps."""
        return self.sequences_before(step) * self.model.context

    @property
    def train_tokens(self) -> int:
        """Tokens the run really trains on (whole steps)."""
        return self.tokens_before(self.steps)

    @functools.cached_property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which validation runs: 0, `points` even ones (at most all), the last."""
        n = min(self.evaluation.points, self.steps)
        return tuple(sorted({0, *(round(self.steps * i / n) for i in range(1, n + 1))}))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a run is executed. Nothing here changes its numbers beyond float rounding of the reduction order."""

    data_dir: str  # folder of the token shards
    parent_dir: str | None = None  # folder of the checkpoint that `RunSpec.parent` identifies
    workers: int = 1  # FSDP ranks
    threads_per_worker: int = 1
    micro_batch_sequences: int = 8  # sequences of one forward pass; the smaller it is, the less memory
    device: str = "cpu"  # cpu | cuda
    attention: str = "auto"  # one of ATTENTION
    tensor_parallel: int = 1  # neighbouring ranks that share the heads and the MLP of the same sequences
    reshard_after_forward: str = "auto"  # always | never | auto: free gathered parameters until the backward pass
    activation_checkpointing: str = "none"  # none | selective | full
    compile: bool = False
    checkpoint_every_steps: int = 200
    keep_checkpoints: int = 2  # the newest ones, besides the named
    checkpoints: str = "sync"  # sync: written between two steps | async: copied, then written beside the next steps
    named_checkpoints: str = "none"  # none | log: steps 0, 1, 2, 4 ... 512, then every 1,000, are kept for ever
    log_every_steps: int = 10

    def __post_init__(self) -> None:
        for name in (
            "workers",
            "tensor_parallel",
            "threads_per_worker",
            "micro_batch_sequences",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "log_every_steps",
        ):
            require(getattr(self, name) >= 1, f"placement.{name} is {getattr(self, name)}; give a positive integer")
        threads = self.threads_per_worker
        require(
            threads <= 4096, f"placement.threads_per_worker is {threads}; give the cores of one worker, at most 4096"
        )
        known = {
            "checkpoints": ("sync", "async"),
            "named_checkpoints": ("none", "log"),
            "reshard_after_forward": ("auto", "always", "never"),
            "attention": ATTENTION,
        }
        for name, choices in known.items():
            require(
                getattr(self, name) in choices,
                f"placement.{name} is '{getattr(self, name)}'{did_you_mean(str(getattr(self, name)), choices)}; "
                f"use one of {', '.join(choices)}",
            )
        require(self.device in ("cpu", "cuda"), f"device is '{self.device}'; use cpu or cuda")
        recompute = ("none", "selective", "full")
        require(
            self.activation_checkpointing in recompute,
            f"activation_checkpointing is '{self.activation_checkpointing}'; use one of {recompute}",
        )
        require(
            self.workers % self.tensor_parallel == 0,
            f"placement.workers is {self.workers}, not a multiple of placement.tensor_parallel={self.tensor_parallel}; "
            "give whole groups of workers",
        )


def check_version(run: RunSpec) -> None:
    """Refuse to compute what another version of the project planned: the same fields may mean other numbers."""
    require(
        run.version == SPEC_VERSION,
        f"the run was planned as version {run.version} and this is version {SPEC_VERSION}, whose runs have other keys; launch the sweep again",
    )


def check_shares(run: RunSpec, placement: Placement, world: int) -> None:
    """Refuse what `world` ranks cannot share out: a batch in whole micro-batches, heads, and matrices for Muon."""
    sequences, micro, together = run.batch.sequences, placement.micro_batch_sequences, placement.tensor_parallel
    if run.optim.kind == "muon" and world > 1:
        raise UsageError(
            f"optim.kind is muon, which needs whole matrices on one rank, and placement.workers is {world}; "
            "set placement.workers=1, or optim.kind=adam"
        )
    if run.model.n_heads % together:
        raise UsageError(
            f"placement.tensor_parallel is {together} but {run.rung} has {run.model.n_heads} heads; use a number that divides them"
        )
    if world % together:
        raise UsageError(
            f"placement.tensor_parallel is {together} and the run is started on {world} rank{'s' * (world > 1)}; "
            "start a multiple of it, or set placement.tensor_parallel=1"
        )
    shares = world // together
    if sequences % shares:
        raise UsageError(
            f"batch.sequences is {sequences} and placement.workers {world}"
            + (f" in groups of {together}" if together > 1 else "")
            + "; use a number of workers that divides the batch"
        )
    if sequences % (shares * micro):
        share = sequences // shares
        fits = next(m for m in range(min(micro, share), 0, -1) if share % m == 0)
        raise UsageError(
            f"batch.sequences is {sequences}, not a multiple of {shares} workers * {micro} sequences of "
            f"placement.micro_batch_sequences; set placement.micro_batch_sequences={fits}"
        )


def named_steps(placement: Placement, steps: int) -> frozenset[int]:
    """Steps of a run whose checkpoints are kept for ever: Pythia's (Biderman et al. 2023, section 2.1), or none."""
    if placement.named_checkpoints == "none":
        return frozenset()
    early = {0, *(2**i for i in range(10))}
    return frozenset(s for s in early | set(range(1000, steps + 1, 1000)) if s <= steps)
