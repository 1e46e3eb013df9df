"""What the Triton kernels compute against float64 and against single operations, in the interpreter or on a device.

As a script it prints what the interpreter found as JSON, with uninitialised memory filled with nan, so that a value which
is never written shows. Needs torch, numpy and triton only.
"""

import dataclasses
import json
import math
import sys

import numpy as np
import torch
from studies import demo_spec

from gopher.attention import relative_attention
from gopher.draws import Columns, Place
from gopher.optim import Adam, Part
from gopher.spec import PrecisionSpec

TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
ROUNDED = PrecisionSpec(parameters="bfloat16", compute="bfloat16", stochastic_rounding=True)
PLACES: list[Place] = [0, 5_000_000_000, Columns(start=7, width=10, stride=40)]
LARGE = 40.0  # times these, scores of the future are beyond what exp can take


def errors(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: str, size: float = 1.0, apart: int | None = None
) -> list[float]:
    """Relative errors of the output and of the gradients of q, k, v, r, u, v_bias against float64 on the same numbers.

    `size` multiplies the keys, `apart` are the numbers from one row of q, k, v to the next.
    """
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(length)
    sizes = [(batch, length, heads, 3, width), (heads, length, width), (heads, width), (heads, width)]
    joint, r, u, v_bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes)
    joint[..., 1, :] *= size
    joint, r, u, v_bias = (x.to(device, dtype) for x in (joint, r, u, v_bias))
    if apart:
        joint = spread(joint, apart)
    given = [*joint.permute(3, 0, 2, 1, 4), r, u, v_bias]  # strided q, k, v as in the model
    probe = torch.linspace(-1, 1, batch * heads * length * width, dtype=torch.float64).view(shape)

    def results(impl: str, wanted: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(wanted).requires_grad_() for x in given]
        out = relative_attention(*inputs, width**-0.5, impl)
        return [out.detach(), *torch.autograd.grad((out * probe.to(device, wanted)).sum(), inputs)]

    # the definition takes T x T x d_head numbers a head
    exact = results("reference" if length <= 1024 else "sdpa_bias", torch.float64)
    pairs = zip(results("triton", dtype), exact, strict=True)
    return [float((ours.double() - right).norm() / right.norm()) for ours, right in pairs]


def last_head_moves(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> list[float]:
    """Relative differences of the last head's output and gradients of q, k, v, r, u, v_bias among all heads and alone."""
    batch, heads, length, width = shape
    draw = torch.Generator().manual_seed(0)
    sizes = [shape] * 3 + [(heads, length, width), (heads, width), (heads, width)]
    given = [torch.randn(s, generator=draw).to(device, dtype) for s in sizes]

    def results(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        inputs = [x.clone().requires_grad_() for x in inputs]
        out = relative_attention(*inputs, width**-0.5, "triton")
        found = [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]
        return [x[:, -1] if x.dim() == 4 else x[-1] for x in found]

    pairs = zip(results(given), results([x[:, -1:] if x.dim() == 4 else x[-1:] for x in given]), strict=True)
    return [float((one.double() - other).norm() / other.double().norm()) for one, other in pairs]


def spread(joint: torch.Tensor, apart: int) -> torch.Tensor:
    """The same numbers with rows so far apart; on a CPU only the pages that hold them take memory."""
    count, (batch, length, heads, three, width) = joint[..., 0, 0, 0].numel() * apart, joint.shape
    if joint.is_cuda:
        room = joint.new_empty(count)
    else:
        room = torch.from_numpy(np.empty(count * joint.itemsize, np.uint8)).view(joint.dtype)
    steps = (length * apart, apart, three * width, width, 1)
    return room.as_strided((batch, length, heads, three, width), steps).copy_(joint)


def unequal_bits(
    place: Place, dtype: torch.dtype, device: str, beta1: float = 0.9, scale: float = 0.37, count: int = 3000
) -> list[int]:
    """Of parameter, mean and square: how many differ after five fused updates from the same by single operations on a CPU.

    `dtype` is that of the gradients.
    """
    run = demo_spec()
    run = dataclasses.replace(run, precision=ROUNDED, optim=dataclasses.replace(run.optim, beta1=beta1))
    draw = torch.Generator().manual_seed(count)
    start = torch.randn(count, generator=draw).bfloat16()
    start[:3] = torch.tensor([math.inf, 0.0, 3.38e38])  # the last is the largest there is: it may be rounded up to inf

    def adam_on(to: str) -> tuple[Adam, Part]:
        holder = torch.nn.Parameter(start.to(to, dtype))
        part = Part(name="w", parameter=holder, local=start.clone().to(to), place=place)
        return Adam([part], run), part

    (fused, ours), (plain, theirs) = adam_on(device), adam_on("cpu")
    for step in range(1, 6):
        gradient = torch.randn(count, generator=draw) * 10.0 ** torch.randint(-6, 3, (count,), generator=draw)
        ours.parameter.grad, theirs.parameter.grad = gradient.to(device, dtype), gradient.to(dtype)
        root = math.sqrt(1 - run.optim.beta2**step)
        rate, eps = 1e-2 * root / (1 - beta1**step), run.optim.eps * root
        fused.fused_rounding(ours, fused.mean[0], fused.square[0], step, rate, eps, scale)
        plain.step(step, 1e-2, scale)
    pairs = ((ours.local, theirs.local), (fused.mean[0], plain.mean[0]), (fused.square[0], plain.square[0]))
    return [int((~torch.isclose(a.cpu(), b, rtol=0, atol=0, equal_nan=True)).sum()) for a, b in pairs]


def check_declared_layouts() -> None:
    """A compiled block trusts what the operators say of their results: raises where a shape, stride or dtype is not so.

    Strided as in the model: q, k, v are parts of one product, the heads of r of another.
    """
    from gopher.kernels.relative import attention, attention_backward

    draw = torch.Generator().manual_seed(0)
    joint, table, u, v_bias = (
        torch.randn(s, generator=draw) for s in ((2, 20, 2, 3, 32), (20, 2, 32), (2, 32), (2, 32))
    )
    given = (*joint.permute(3, 0, 2, 1, 4), table.transpose(0, 1), u, v_bias)
    torch.library.opcheck(attention, (*given, 0.2), test_utils="test_faketensor")
    out, log_sum = attention(*given, 0.2)
    torch.library.opcheck(attention_backward, (out.clone(), *given, out, log_sum, 0.2), test_utils="test_faketensor")


FAR = ((3, 2, 16, 32), torch.float16)  # the last sequence starts at number 2^31, ...
APART = 1 << 26  # ... where 32 bits end
ATTENTION = [
    ((1, 2, 150, 32), torch.float32, 1.0),
    ((2, 1, 200, 64), torch.float32, 1.0),
    ((1, 1, 90, 32), torch.float32, LARGE),
    ((1, 2, 150, 32), torch.float16, 1.0),
    ((2, 1, 200, 64), torch.float16, 1.0),
    ((1, 1, 130, 128), torch.float16, 1.0),
    ((1, 1, 300, 32), torch.float32, 1.0),  # long enough for blocks in which no score is masked
]

if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # with nan
    assert torch.empty(1).isnan()
    if sys.argv[1] == "attention":
        check_declared_layouts()
        print(json.dumps([errors(shape, dtype, "cpu", size) for shape, dtype, size in ATTENTION]))
    elif sys.argv[1] == "far":
        print(json.dumps(errors(*FAR, "cpu", apart=APART) + last_head_moves((1, 3, 40, 32), torch.float32, "cpu")))
    else:
        cases = [(place, dtype, 0.9, 0.37) for place in PLACES for dtype in (torch.bfloat16, torch.float32)]
        cases += [(0, torch.bfloat16, beta1, 0.37) for beta1 in (0.3, 0.1)] + [(0, torch.bfloat16, 0.9, math.nan)]
        print(json.dumps([unequal_bits(place, dtype, "cpu", beta1, s) for place, dtype, beta1, s in cases]))
