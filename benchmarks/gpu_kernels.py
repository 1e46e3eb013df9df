"""Relative attention on one GPU: forward and backward against torch's fused attention, and every kernel by block sizes.

python benchmarks/gpu_kernels.py                   milliseconds at the paper's three widths of a head, block sizes in use
python benchmarks/gpu_kernels.py --tiles           every kernel with other block sizes too, the fastest first; two minutes
python benchmarks/gpu_kernels.py --widths 64 --sequences 16
"""

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs beside the package, installed or not

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

LENGTH, ROUNDS = 2048, 5
HEADS = {32: 16, 64: 12, 128: 16}  # of the rungs with heads of this width
TILES = [
    (rows, columns, warps, stages)
    for rows, columns, (warps, stages) in itertools.product((32, 64, 128), (32, 64, 128), ((4, 2), (4, 3), (8, 2)))
    if rows * columns >= 2048
]
Tile = tuple[int, int, int, int]


def attention_of(width: int, sequences: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward and backward of our attention on random bfloat16 numbers, laid out as in the model."""
    from gopher.kernels import relative

    heads = HEADS[width]
    draw = torch.Generator("cuda").manual_seed(0)
    sizes = [(sequences, LENGTH, heads, 3, width), (heads, LENGTH, width), (heads, width), (heads, width)]
    joint, r, u, v_bias = (torch.randn(s, generator=draw, device="cuda").bfloat16() for s in sizes)
    q, k, v = joint.permute(3, 0, 2, 1, 4)
    given = (q, k, v, r, u, v_bias)
    out, log_sum = relative.attention(*given, width**-0.5)
    grad = torch.randn_like(out)
    return (
        lambda: relative.attention(*given, width**-0.5),
        lambda: relative.attention_backward(grad, *given, out, log_sum, width**-0.5),
    )


def fused_of(width: int, sequences: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same of torch's causal attention without positions."""
    size = (3, sequences, HEADS[width], LENGTH, width)
    q, k, v = torch.randn(size, device="cuda", dtype=torch.bfloat16, requires_grad=True).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    grad = torch.randn_like(out)
    return (
        lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True),
    )


def milliseconds(work: Callable[[], Any]) -> float:
    """The best of some rounds, after one that may compile."""
    work()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    best = float("inf")
    for _ in range(ROUNDS):
        began.record()
        work()
        ended.record()
        torch.cuda.synchronize()
        best = min(best, began.elapsed_time(ended))
    return best


def use(tile: Tile) -> None:
    """Every kernel takes these block sizes from now on."""
    from gopher.kernels import relative

    relative.tiles = lambda *_: dict(zip(("BM", "BN", "num_warps", "num_stages"), tile, strict=True))


def by_kernel(width: int, sequences: int) -> dict[str, float]:
    """Milliseconds of each kernel in one forward and backward pass."""
    works = attention_of(width, sequences)
    for work in works:
        work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for work in works:
            work()
        torch.cuda.synchronize()
    return {e.key: e.self_device_time_total / 1e3 for e in seen.key_averages() if e.key.endswith("_kernel")}


def tried(width: int, tile: Tile, sequences: int) -> dict[str, float] | str:
    use(tile)
    try:
        return by_kernel(width, sequences)
    except Exception as failure:  # more shared memory than there is, say
        return f"{type(failure).__name__}: {str(failure).splitlines()[0][:80]}"


def sweep(widths: list[int], sequences: int) -> None:
    jobs = list(itertools.product(widths, TILES))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # compiles; Triton keeps the results on disk
        list(pool.map(tried, *zip(*jobs, strict=True), [2] * len(jobs)))
    found: dict[tuple[str, int], list[tuple[float, Tile]]] = defaultdict(list)
    for width, tile in jobs:
        measured = tried(width, tile, sequences)
        if isinstance(measured, str):
            print(f"width {width}, {tile}: {measured}")
            continue
        for kernel, ms in measured.items():
            found[kernel, width].append((ms, tile))
    for (kernel, width), best in sorted(found.items()):
        print(f"{kernel} width {width}: " + "  ".join(f"{ms:.3f} ms {t}" for ms, t in sorted(best)[:6]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="32,64,128")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tiles", action="store_true")
    words = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here")
    widths = [int(w) for w in words.widths.split(",")]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {LENGTH} positions, {words.sequences} sequences")
    for width in widths:
        ours, theirs = (list(map(milliseconds, of(width, words.sequences))) for of in (attention_of, fused_of))
        print(
            f"width {width}: forward {ours[0]:.3f} ms, {ours[0] / theirs[0]:.1f} times torch's fused attention; "
            f"backward {ours[1]:.3f} ms, {ours[1] / theirs[1]:.1f} times"
        )
        print(
            "   " + "  ".join(f"{k} {ms:.3f}" for k, ms in sorted(by_kernel(width, words.sequences).items())),
            flush=True,
        )
    if words.tiles:
        sweep(widths, words.sequences)


if __name__ == "__main__":
    main()
