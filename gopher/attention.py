"""Causal Transformer-XL relative attention: one function, several implementations.

score_ij = scale * ((q_i + u) . k_j + (q_i + v_bias) . r_{i-j}) for j <= i (Dai et al. 2019, equation of section 3.3;
scale = 1/sqrt(d_head) on the sum). Layout: q, k, v (B, H, T, d_head); r (H, T, d_head), r[:, m] the projected sinusoid
of distance m; u (content) and v_bias (position) (H, d_head).
"""

import math
import os
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from gopher.chunked import causal_mask, chunked, descending
from gopher.errors import UsageError, did_you_mean
from gopher.spec import ATTENTION

BIAS_BYTES = 1 << 30  # position scores of one layer up to which SDPA with a bias is tried on CUDA


def relative_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r: torch.Tensor,
    u: torch.Tensor,
    v_bias: torch.Tensor,
    scale: float,
    impl: str = "auto",
) -> torch.Tensor:
    """The attended values (B, H, T, d_head) in the dtype of `q`, by one of `IMPLEMENTATIONS` or the one that `choose` names.

    Raises UsageError for an unknown implementation.
    """
    if impl not in IMPLEMENTATIONS:
        impl, _ = choose(impl, q.device, q.dtype, tuple(q.shape))
    # Under autocast the biases stay float32 while q is narrow: batched products refuse the mixture.
    r, u, v_bias = (x.to(q.dtype) for x in (r, u, v_bias))
    return IMPLEMENTATIONS[impl](q, k, v, r, u, v_bias, scale)


@cache
def choose(impl: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> tuple[str, str]:
    """The implementation for queries of `shape` (B, H, T, d_head), and the choice as a sentence.

    `auto` takes the fastest that fits, any other name is taken at its word. Raises UsageError for an unknown name, and
    for `triton` where it cannot run.
    """
    if impl not in ATTENTION:
        raise UsageError(f"attention is '{impl}'{did_you_mean(impl, ATTENTION)}; use one of {', '.join(ATTENTION)}")
    refusal = triton_refusal(device, dtype, shape) if impl in ("auto", "triton") else None
    if impl == "triton" and refusal:
        raise UsageError(f"attention=triton {refusal}; use attention=auto")
    name = automatic(device, dtype, shape, refusal) if impl == "auto" else impl
    reason = f" (triton {refusal})" if impl == "auto" and refusal else ""
    return name, f"{name} attention for {dtype} on {device}, {shape[1]} heads of width {shape[3]}{reason}"


def automatic(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], refusal: str | None) -> str:
    """`triton` unless refused; else `sdpa_bias` on CUDA while its scores stay small; else `chunked`, on CPU the fastest."""
    if refusal is None:
        return "triton"
    batch, n_heads, length, _ = shape
    small = batch * n_heads * length * length * dtype.itemsize <= BIAS_BYTES
    return "sdpa_bias" if device.type == "cuda" and small else "chunked"


def triton_refusal(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> str | None:
    """Why the Triton kernel cannot run here, as the end of a sentence about it, or None."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"runs on CUDA, not on {device.type}"
    if find_spec("triton") is None:
        return "is not installed (`make triton`)"
    from gopher.kernels import relative

    return relative.refusal(device, dtype, shape)


@lru_cache(maxsize=8)
def sinusoids(length: int, d_model: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, d_model): [sin | cos] of distance * 10000^(-2 i / d_model), computed in float64 and rounded once.

    Positions in bfloat16 would be wrong by up to 0.35 (641 distinct values below 2048).
    """
    with torch.inference_mode(False):
        rates = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(device=device, dtype=dtype)


def reference(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """The definition, by explicit index: no shift trick, O(T^2 d) memory."""
    length = q.size(2)
    distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)[None, :]
    content = torch.einsum("bhid,bhjd->bhij", q + u[:, None], k)
    position = torch.einsum("bhid,hijd->bhij", q + v_bias[:, None], r[:, distance.clamp(min=0)])
    scores = ((content + position) * scale).masked_fill(distance < 0, -math.inf)
    return torch.softmax(scores, dim=-1) @ v


def sdpa_bias(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """Position scores as an additive mask of `scaled_dot_product_attention`; O(T^2) memory per head."""
    length = q.size(2)
    # Columns are distances T-1..0 and one pad: row i of the flat table, read with row length T from T-1 on, is shifted by i.
    table = torch.matmul(q + v_bias[:, None], descending(r).transpose(1, 2))
    bias = table.flatten(2)[..., length - 1 : length - 1 + length * length].view(*q.shape[:2], length, length) * scale
    mask = bias + causal_mask(length, length, q.dtype, q.device)
    return F.scaled_dot_product_attention(q + u[:, None], k, v, attn_mask=mask, scale=scale)


def triton(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """Flash attention that reads position scores by distance; O(T^2) scratch for one layer at a time."""
    from gopher.kernels.relative import relative

    return relative(q, k, v, r, u, v_bias, scale)


IMPLEMENTATIONS: dict[str, Any] = {
    "reference": reference,
    "sdpa_bias": sdpa_bias,
    "chunked": chunked,
    "triton": triton,
}


def spare_from_compiler() -> None:
    """Compiled blocks call `chunked` as it is from now on: the compiler fails on tiles that share memory.

    For the whole process, before compiling; not at import, because the compiler takes more than a second to load. A
    block whose activations are recomputed is then not compiled at all.

    A block cut there returns q, k and v, views of one product. torch up to 2.13 writes freed memory into its cache of such
    graphs and crashes as it writes or as it reads it (pytorch#185630), so that cache stays off; that of kernels is not touched.
    """
    import torch._functorch.config

    torch._functorch.config.enable_autograd_cache = False
    IMPLEMENTATIONS["chunked"] = torch.compiler.disable(chunked)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batched a @ b with float32 results for bfloat16 inputs (a bfloat16 score is off by 0.4 %)."""
    if a.dtype != torch.bfloat16:
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())
