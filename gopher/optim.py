"""Learning-rate schedule, Adam and stochastic rounding, all elementwise: sharding cannot change a bit of them; and Muon."""

import math
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch.optim.adam import adam as torch_adam

from gopher.draws import Place, bits, shifted, stream_key
from gopher.errors import UsageError
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
    """What one rank holds of one parameter: a run of its elements, or of some of its columns."""

    name: str
    parameter: torch.nn.Parameter  # as the model has it, a DTensor when sharded
    local: torch.Tensor  # this rank's elements, sharing memory with `parameter`
    place: Place  # of the local elements in the whole parameter
    ranks: int = 1  # that hold the same elements and the same gradient: tensor parallelism does not cut every parameter

    @property
    def gradient(self) -> torch.Tensor:
        grad = self.parameter.grad
        assert grad is not None, f"parameter {self.name} has no gradient"
        return local_tensor(grad)


def local_tensor(x: torch.Tensor) -> torch.Tensor:
    """The plain tensor behind `x`."""
    from torch.distributed.tensor import DTensor

    return x.to_local() if isinstance(x, DTensor) else x


def optimizer_of(parts: list[Part], run: RunSpec) -> "Adam":
    """The optimizer that the run's spec names."""
    return Muon(parts, run) if run.optim.kind == "muon" else Adam(parts, run)


class Adam:
    """Adam (Kingma and Ba 2015) with float32 moments; bfloat16 parameters are rounded stochastically.

    On CUDA float32 parameters are updated by torch's fused kernel and bfloat16 ones by `gopher.kernels.rounding`. On a CPU
    the ops are chosen for equal bits: the fused kernel there treats the tail of a tensor differently from its body, so a
    result would depend on where the shard ends; lerp, addcmul, sqrt and addcdiv do not.
    """

    def __init__(self, parts: list[Part], run: RunSpec) -> None:
        self.parts, self.optim, self.seed = parts, run.optim, run.seed
        self.stochastic = run.precision.stochastic_rounding
        self.mean = [torch.zeros_like(p.local, dtype=torch.float32) for p in parts]
        self.square = [torch.zeros_like(p.local, dtype=torch.float32) for p in parts]
        self.by_adam = list(range(len(parts)))  # indices of the parts that Adam updates: here all
        held = torch.tensor([p.ranks for p in parts], dtype=torch.float64)
        self._ranks = held.to(parts[0].local.device) if any(p.ranks > 1 for p in parts) else None

    @torch.no_grad()
    def squared_norm(self) -> torch.Tensor:
        """float64 sum of squares of the local gradients; its sum over all ranks counts every element once.

        On CUDA each parameter's norm is a float32, in one pass over all of them: a float64 norm there makes a copy first.
        """
        gradients = [p.gradient for p in self.parts]
        if gradients[0].is_cuda:
            norms = list(torch._foreach_norm(gradients, 2, dtype=torch.float32))
        else:
            norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
        squares = torch.stack(norms).double().square_()
        return (squares if self._ranks is None else squares / self._ranks).sum()

    @torch.no_grad()
    def step(self, step: int, rate: float, scale: float | torch.Tensor) -> None:
        """Update number `step` (1-based) with the gradients times `scale`, a number or one on the gradients' device.

        Nothing changes when the scale is not finite; the fused kernels find that out without the host.
        """
        if self.parts[0].local.is_cuda and not self.stochastic:
            self.fused_step(step, rate, scale)
            return
        fused = self.parts[0].local.is_cuda and find_spec("triton") is not None
        if not fused and not math.isfinite(scale):
            return
        o = self.optim
        # Bias corrections moved into the rate and eps: rate * (m / c1) / (sqrt(s / c2) + eps).
        root = math.sqrt(1 - o.beta2**step)
        rate, eps = rate * root / (1 - o.beta1**step), o.eps * root
        for part, mean, square in ((self.parts[i], self.mean[i], self.square[i]) for i in self.by_adam):
            if fused:
                self.fused_rounding(part, mean, square, step, rate, eps, scale)
                continue
            gradient = part.gradient.float() * scale
            mean.lerp_(gradient, 1 - o.beta1)
            square.mul_(o.beta2).addcmul_(gradient, gradient, value=1 - o.beta2)
            spread = square.sqrt().add_(eps)
            if self.stochastic:
                updated = part.local.float().addcdiv_(mean, spread, value=-rate)
                key = stream_key(self.seed, "round", step, part.name)
                part.local.copy_(stochastic_bfloat16(updated, key, part.place))
            else:
                part.local.addcdiv_(mean, spread, value=-rate)

    def fused_step(self, step: int, rate: float, scale: float | torch.Tensor) -> None:
        """The same update by torch's fused kernel: one pass over memory instead of five."""
        o, used = self.optim, self.by_adam
        gradients = [self.parts[i].gradient for i in used]
        factor = torch.as_tensor(scale, dtype=torch.float32, device=gradients[0].device)
        torch._foreach_mul_(gradients, factor)
        torch_adam(
            [self.parts[i].local for i in used],
            gradients,
            [self.mean[i] for i in used],
            [self.square[i] for i in used],
            [],
            [torch.full((), step - 1.0, device=g.device) for g in gradients],  # the kernel counts one on
            fused=True,
            amsgrad=False,
            beta1=o.beta1,
            beta2=o.beta2,
            lr=rate,
            weight_decay=0.0,
            eps=o.eps,
            maximize=False,
            found_inf=(~factor.isfinite()).float(),
        )

    def fused_rounding(
        self,
        part: Part,
        mean: torch.Tensor,
        square: torch.Tensor,
        step: int,
        rate: float,
        eps: float,
        scale: float | torch.Tensor,
    ) -> None:
        """The same update and rounding of one part, bit for bit, in one pass over memory instead of forty."""
        from gopher.kernels.rounding import update

        factor = torch.as_tensor(scale, dtype=torch.float32, device=part.local.device)
        key = stream_key(self.seed, "round", step, part.name)
        o = self.optim
        update(
            part.local, part.gradient, mean, square, factor, key, part.place,
            beta1=o.beta1, beta2=o.beta2, rate=rate, eps=eps,
        )  # fmt: skip

    def zero_grad(self) -> None:
        for part in self.parts:
            part.parameter.grad = None


class Muon(Adam):
    """Muon (Jordan et al. 2024) for the linear maps of the blocks, Adam for embedding, gains, u and v.

    torch.optim.Muon orthogonalises whole matrices, in bfloat16, so a run holds them on one rank; its rate is matched to
    Adam's update size (Liu et al. 2025), so that `optim.lr` means the same. The momentum lies where Adam's mean does.
    """

    def __init__(self, parts: list[Part], run: RunSpec) -> None:
        super().__init__(parts, run)
        matrices = [i for i, p in enumerate(parts) if p.name.endswith(".weight")]
        if any(parts[i].local.shape != parts[i].parameter.shape for i in matrices):
            raise UsageError(
                "optim.kind is muon, which needs whole matrices on one rank; set placement.workers=1, or optim.kind=adam"
            )
        self.by_adam = [i for i in range(len(parts)) if i not in matrices]
        self._matrices = [parts[i] for i in matrices]
        locals_ = [p.local for p in self._matrices]
        self._muon = torch.optim.Muon(locals_, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        for i, local in zip(matrices, locals_, strict=True):
            self._muon.state[local]["momentum_buffer"] = self.mean[i]

    @torch.no_grad()
    def step(self, step: int, rate: float, scale: float | torch.Tensor) -> None:
        super().step(step, rate, scale)
        if not math.isfinite(scale):  # on CUDA the host waits here: torch's Muon cannot pass over a step on the device
            return
        for part in self._matrices:
            part.local.grad = part.gradient.float() * scale
        self._muon.param_groups[0]["lr"] = rate
        self._muon.step()
        self._muon.zero_grad()


def clip_scale(squared_norm: torch.Tensor, limit: float) -> torch.Tensor:
    """Factor (float64, on its device) that brings a gradient of this squared norm to at most the norm `limit`.

    nan for a norm that is not finite: `Adam.step` then changes nothing.
    """
    norm = squared_norm.sqrt().float().double()  # rounded, so that the order of a sum over ranks does not show
    return (limit / norm + (norm - norm)).clamp(max=1.0)  # inf - inf is nan


def stochastic_bfloat16(x: torch.Tensor, key: int, place: Place) -> torch.Tensor:
    """float32 `x` as bfloat16, up or down with odds by distance: the mean over keys is `x` itself.

    bfloat16 is the upper half of float32: adding 16 random bits below it and cutting carries with the right
    probability. An element uses the draw at its place of the stream `key`, so shards and resumes repeat it.
    """
    noise = shifted(bits(key, place, x.numel(), x.device), 48).to(torch.int32).view(x.shape)
    raw = x.contiguous().view(torch.int32)
    rounded = ((raw + noise) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)
