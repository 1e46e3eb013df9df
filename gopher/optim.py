"""Learning-rate schedule, Adam and stochastic rounding, all elementwise: sharding cannot change a bit of them."""

import math
from dataclasses import dataclass

import torch

from gopher.draws import bits, shifted, stream_key
from gopher.spec import OptimSpec, RunSpec


def learning_rate(optim: OptimSpec, step: int, steps: int) -> float:
    """Rate of the update that ends `step` (1-based): linear from `warmup_start_lr`, then cosine to the last step.

    Step `warmup_steps` is the first at the full rate; step `steps` is exactly `final_lr_fraction * lr`.
    """
    if step < optim.warmup_steps:
        return optim.warmup_start_lr + (optim.lr - optim.warmup_start_lr) * step / optim.warmup_steps
    done = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    floor = optim.final_lr_fraction
    return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank holds of one parameter: a contiguous run of its elements."""

    name: str
    parameter: torch.nn.Parameter  # as the model has it, a DTensor when sharded
    local: torch.Tensor  # this rank's elements, sharing memory with `parameter`
    start: int  # index of the first local element in the whole parameter

    @property
    def gradient(self) -> torch.Tensor:
        grad = self.parameter.grad
        assert grad is not None, f"parameter {self.name} has no gradient"
        return local_tensor(grad)


def local_tensor(x: torch.Tensor) -> torch.Tensor:
    """The plain tensor behind `x`."""
    from torch.distributed.tensor import DTensor

    return x.to_local() if isinstance(x, DTensor) else x


class Adam:
    """Adam (Kingma and Ba 2015) with float32 moments; bfloat16 parameters are rounded stochastically.

    The ops are chosen for equal bits: torch's fused CPU kernel treats the tail of a tensor differently from its body,
    so there a result depends on where the shard ends; lerp, addcmul, sqrt and addcdiv do not.
    """

    def __init__(self, parts: list[Part], run: RunSpec) -> None:
        self.parts, self.optim, self.seed = parts, run.optim, run.seed
        self.stochastic = run.precision.stochastic_rounding
        self.mean = [torch.zeros_like(p.local, dtype=torch.float32) for p in parts]
        self.square = [torch.zeros_like(p.local, dtype=torch.float32) for p in parts]

    @torch.no_grad()
    def squared_norm(self) -> torch.Tensor:
        """float64 sum of squares of the local gradients."""
        norms = [torch.linalg.vector_norm(p.gradient, dtype=torch.float64) for p in self.parts]
        return torch.stack(norms).square_().sum()

    @torch.no_grad()
    def step(self, step: int, rate: float, scale: float) -> None:
        """Update number `step` (1-based) with the gradients times `scale`."""
        o = self.optim
        # Bias corrections moved into the rate and eps: rate * (m / c1) / (sqrt(s / c2) + eps).
        root = math.sqrt(1 - o.beta2**step)
        rate, eps = rate * root / (1 - o.beta1**step), o.eps * root
        for part, mean, square in zip(self.parts, self.mean, self.square, strict=True):
            gradient = part.gradient.float() * scale
            mean.lerp_(gradient, 1 - o.beta1)
            square.mul_(o.beta2).addcmul_(gradient, gradient, value=1 - o.beta2)
            spread = square.sqrt().add_(eps)
            if self.stochastic:
                updated = part.local.float().addcdiv_(mean, spread, value=-rate)
                key = stream_key(self.seed, "round", step, part.name)
                part.local.copy_(stochastic_bfloat16(updated, key, part.start))
            else:
                part.local.addcdiv_(mean, spread, value=-rate)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.parameter.grad = None


def clip_scale(norm: float, limit: float) -> float:
    """Factor that brings a gradient of norm `norm` to at most `limit`."""
    return 1.0 if norm <= limit else limit / norm


def stochastic_bfloat16(x: torch.Tensor, key: int, start: int) -> torch.Tensor:
    """float32 `x` as bfloat16, up or down with odds by distance: the mean over keys is `x` itself.

    bfloat16 is the upper half of float32: adding 16 random bits below it and cutting carries with the right
    probability. Element i uses draw `start` + i of the stream `key`, so shards and resumes repeat it.
    """
    noise = shifted(bits(key, start, x.numel(), x.device), 48).to(torch.int32).view(x.shape)
    raw = x.contiguous().view(torch.int32)
    rounded = ((raw + noise) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)
