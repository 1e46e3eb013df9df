"""One step of Adam for bfloat16 parameters, rounded stochastically, in one pass: 22 bytes of memory traffic a parameter.

As single operations it is about 40 passes, 470 bytes a parameter, most of them for the draws. The arithmetic is that of
`gopher.optim.Adam.step` on a CPU, rounding by rounding, and the draws are those of `gopher.draws`: the bits are the same.
bfloat16 is read and written as the upper half of a float32, so that nothing here depends on how a compiler rounds.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

from gopher.draws import FINALISER, GOLDEN, Columns, Place, signed

GAMMA = tl.constexpr(GOLDEN)
(_, _FIRST), (_, _SECOND) = FINALISER
FACTOR_1, FACTOR_2 = tl.constexpr(_FIRST), tl.constexpr(_SECOND)
BLOCK = 1024
WHOLE_NUMBERS = ("key", "start", "width", "stride")  # of any value: one compilation for all parameters


@triton.jit
def random_bits(index, key):
    """64 bits of element `index` (uint64) of the stream `key`: `gopher.draws.bits_at`."""
    x = (index + 1) * GAMMA + key
    x = (x ^ (x >> 30)) * FACTOR_1
    x = (x ^ (x >> 27)) * FACTOR_2
    return x ^ (x >> 31)


@triton.jit
def wide(halves):
    """float32 of bfloat16 values given as int16."""
    return (halves.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=WHOLE_NUMBERS)
def adam_kernel(
    Parameter, Gradient, Mean, Square, Scale, count, key, start, width, stride, blend, decay, fresh, rate, eps,
    NARROW: tl.constexpr, NEAR: tl.constexpr, CUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(Scale)
    # nothing is touched when the scale is inf or nan
    inside = i < tl.where(scale - scale == 0.0, count, 0)
    gradient = tl.load(Gradient + i, mask=inside, other=0)
    gradient = (wide(gradient) if NARROW else gradient) * scale
    mean = tl.load(Mean + i, mask=inside, other=0.0)
    square = tl.load(Square + i, mask=inside, other=0.0)
    old = wide(tl.load(Parameter + i, mask=inside, other=0))
    # as torch's lerp and addcmul on a CPU: from the nearer end, the last product and sum rounded once
    mean = tl.fma(tl.full([BLOCK], 1.0, tl.float32) * blend, gradient - mean, mean if NEAR else gradient)
    square = tl.fma(gradient * fresh, gradient, square * decay)
    updated = old + tl.div_rn(mean * rate, tl.sqrt_rn(square) + eps)
    element = i // width * stride + i % width + start if CUT else i + start
    noise = (random_bits(element.to(tl.uint64), key.to(tl.uint64)) >> 48).to(tl.int32)
    raw = updated.to(tl.int32, bitcast=True)
    finite = (raw & 0x7F800000) != 0x7F800000
    rounded = tl.where(finite, raw + noise, raw) >> 16
    tl.store(Parameter + i, tl.where(updated == updated, rounded, 0x7FC0).to(tl.int16), mask=inside)
    tl.store(Mean + i, mean, mask=inside)
    tl.store(Square + i, square, mask=inside)


def update(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    scale: torch.Tensor,
    key: int,
    place: Place,
    *,
    beta1: float,
    beta2: float,
    rate: float,
    eps: float,
) -> None:
    """Update the bfloat16 `parameter` and its float32 moments in place, all contiguous and on one device.

    `gradient` is bfloat16 or float32; `scale` its factor, one float32 on the device: if it is not finite, nothing changes.
    `rate` and `eps` have the bias corrections in them; `key` and `place` say which draws round.
    """
    assert all(x.is_contiguous() for x in (parameter, mean, square)), "the kernel counts elements in memory order"
    count = parameter.numel()
    if count == 0:
        return
    cut = isinstance(place, Columns)
    start, width, stride = (place.start, place.width, place.stride) if isinstance(place, Columns) else (place, 1, 1)
    narrow = gradient.dtype == torch.bfloat16
    blend = torch.tensor(1 - beta1, dtype=torch.float32).item()  # rounded first, as torch does before it takes 1 away
    with torch.cuda.device_of(parameter):
        adam_kernel[(triton.cdiv(count, BLOCK),)](
            parameter.view(torch.int16),
            gradient.contiguous().view(torch.int16) if narrow else gradient.contiguous(),
            mean, square, scale, count, signed(key), start, width, stride,
            blend if blend < 0.5 else blend - 1, beta2, 1 - beta2, -rate, eps,
            NARROW=narrow, NEAR=blend < 0.5, CUT=cut, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
