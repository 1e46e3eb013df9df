"""Parameters, FLOPs and bytes of a model, each with its convention. Standard library only."""

from dataclasses import dataclass

from gopher.spec import ModelSpec, RunSpec

FLOPS_CONVENTION = (
    "causal-exact training FLOPs: 2 per multiply-add, backward = 2x forward, causal half of attention, "
    "Transformer-XL position term counted, W_R r once per step, no recomputation, embedding lookup free"
)

MFU_CONVENTION = (
    "perf/mfu: useful FLOP/s over the dense bfloat16 peak of all devices, useful as in train.flops_convention without W_R r; "
    "perf/mfu_palm: over 6 N + 12 L H Q T FLOPs a token, N total parameters (PaLM, appendix B)"
)


def params_total(m: ModelSpec) -> int:
    """V d + L (13 d^2 + 4 d) + d: gives all six names of Rae et al. 2021 (44M: 43,663,872).

    Per layer 4 d^2 (Q K V O) + d^2 (W_R) + 8 d^2 (MLP) + 2 d (RMSNorm gains) + 2 d (u, v); then the final
    gain; embeddings tied. A reconstruction: the paper prints only the rounded names.
    """
    return m.vocab_size * m.d_model + params_non_embedding(m)


def params_non_embedding(m: ModelSpec) -> int:
    """L (13 d^2 + 4 d) + d: everything but the tied embedding."""
    d = m.d_model
    return m.n_layers * (13 * d * d + 4 * d) + d


@dataclass(frozen=True, kw_only=True)
class TokenFlops:
    """Forward + backward FLOPs per token at full context, by part; W_R r is per step, see `table_flops`."""

    linear: float  # Q K V O and the MLP: 12 d^2 weights per layer
    head: float  # logits, V d weights
    attention: float  # Q K^T and A V over the causal half
    position: float  # Q R^T over the causal half

    @property
    def total(self) -> float:
        return self.linear + self.head + self.attention + self.position


def token_flops(m: ModelSpec) -> TokenFlops:
    """Training FLOPs per token (3x forward), mean visible length (T + 1) / 2."""
    d, visible = m.d_model, (m.context + 1) / 2
    return TokenFlops(
        linear=3 * 2 * 12 * d * d * m.n_layers,
        head=3 * 2 * m.vocab_size * d,
        attention=3 * 2 * 2 * d * visible * m.n_layers,
        position=3 * 2 * d * visible * m.n_layers,
    )


def table_flops(m: ModelSpec) -> float:
    """Training FLOPs of W_R r for one step: T distances, d x d weights per layer; two passes, for r needs no gradient."""
    return 2 * 2 * m.d_model * m.d_model * m.context * m.n_layers


def train_flops(run: RunSpec, step: int | None = None) -> float:
    """FLOPs spent after `step` steps (default: the whole run) under `FLOPS_CONVENTION`."""
    step = run.steps if step is None else step
    return run.tokens_before(step) * token_flops(run.model).total + step * table_flops(run.model)


def token_flops_palm(m: ModelSpec) -> float:
    """6 N + 12 L H Q T per token (Chowdhery et al. 2022, appendix B): all N parameters, embedding and W_R among them, and the
    whole square of attention, not its causal half; no position term. What most published MFUs are over."""
    return 6.0 * params_total(m) + 12.0 * m.n_layers * m.d_model * m.context


def train_flops_6n(run: RunSpec) -> float:
    """6 N D with total parameters: the form other papers print; over-counts W_R and omits attention (44M: -19 %, 280B: +7 %)."""
    return 6.0 * params_total(run.model) * run.train_tokens


# dense bfloat16 FLOP/s of one device, by a part of its name, the first that fits (NVIDIA data sheets)
PEAK_BF16 = {
    "H200 NVL": 836e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A10G": 70e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device, or None when its name is not known."""
    return next((peak for part, peak in PEAK_BF16.items() if part in device_name), None)


def mfu(m: ModelSpec, tokens_per_second: float, peak: float) -> float:
    """Model FLOPs utilisation, 0 to 1: useful FLOP/s over `peak` of all devices (Chowdhery et al. 2022, appendix B).

    Useful are the FLOPs of `FLOPS_CONVENTION` per token: causal half of attention, recomputation not counted, so that
    checkpointing lowers it. Against bfloat16 peak also where a run computes in float32.
    """
    return tokens_per_second * token_flops(m).total / peak


def mfu_palm(m: ModelSpec, tokens_per_second: float, peak: float) -> float:
    """The same by the FLOPs of `token_flops_palm`: what to hold beside published numbers."""
    return tokens_per_second * token_flops_palm(m) / peak


@dataclass(frozen=True, kw_only=True)
class TrainBytes:
    """Bytes per rank of the sharded training state, activations apart."""

    parameters: float
    gradients: float
    moments: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.moments


def train_bytes(run: RunSpec, ranks: int, tensor_parallel: int = 1) -> TrainBytes:
    """Sharded parameter, gradient and Adam bytes per rank; moments are float32 in every mode (paper: 2.5 TiB at 280B in bf16).

    Tensor parallelism cuts the linear maps alone: `tensor_parallel` neighbours hold the same part of everything else.
    """
    width = 2 if run.precision.parameters == "bfloat16" else 4
    maps = 13 * run.model.d_model**2 * run.model.n_layers
    n = (maps + tensor_parallel * (params_total(run.model) - maps)) / ranks
    return TrainBytes(parameters=width * n, gradients=width * n, moments=8 * n)
