"""Proves: the Triton kernel computes relative attention and its gradients, and compiles for the GPU it is meant for.

Without a GPU it runs in Triton's interpreter (float32 and float16; bfloat16 is garbage there) and is compiled ahead of
time for sm_90; `-m gpu` runs it on a device in all three dtypes. Run as a script, this file prints the interpreter's
errors as JSON.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from gopher.attention import reference, relative_attention

torch.set_num_threads(1)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed; run `make triton`")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
WIDTHS = (32, 64, 128)
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def errors(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> list[float]:
    """Relative errors of the output and of the gradients of q, k, v, r, u, v_bias against float64 on the same numbers."""
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(length)
    sizes = [(batch, length, heads, 3, width), (heads, length, width), (heads, width), (heads, width)]
    joint, r, u, v_bias = (torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in sizes)
    given = [*joint.permute(3, 0, 2, 1, 4), r, u, v_bias]  # strided q, k, v as in the model

    def results(impl: str | None, wanted: torch.dtype) -> list[torch.Tensor]:
        inputs = [x.to(wanted).requires_grad_() for x in given]
        scale = width**-0.5
        out = relative_attention(*inputs, scale, impl) if impl else reference(*inputs, scale)
        probe = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=device).to(wanted).view_as(out)
        return [out.detach(), *torch.autograd.grad((out * probe).sum(), inputs)]

    pairs = zip(results("triton", dtype), results(None, torch.float64), strict=True)
    return [float((ours.double() - exact).norm() / exact.norm()) for ours, exact in pairs]


@needs_triton
def test_the_interpreted_kernel_equals_float64() -> None:
    """Ragged lengths above one block of rows, several sequences and heads; nan anywhere fails too."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 6
    for name, found in rows.items():
        limit = TOLERANCES[getattr(torch, name.split()[0])]
        assert len(found) == 7 and all(x < limit for x in found), (name, found)


def compiled(kernel: Any, width: int) -> Any:
    """The kernel built for sm_90 with the sizes that a launch would use."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gopher.kernels.relative import tiles

    sizes = tiles(kernel, width, torch.bfloat16)
    constants = {"BM": sizes["BM"], "BN": sizes["BN"], "D": width}
    signature = {name: argument_type(name, constants) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": sizes["num_warps"], "num_stages": sizes["num_stages"]}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def argument_type(name: str, constants: dict[str, int]) -> str:
    if name in constants:
        return "constexpr"
    if name in ("LogSum", "Delta"):
        return "*fp32"
    return "i32" if name in ("T", "H", "key_row", "key_head", "value_row", "value_head") else "*bf16"


@needs_triton
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_compile_for_sm_90_without_a_gpu(width: int) -> None:
    """Products become tensor-core instructions and blocks fit in the 227 KiB of shared memory."""
    from gopher.kernels import relative

    for kernel in (relative.forward_kernel, relative.backward_keys_kernel, relative.backward_queries_kernel):
        built = compiled(kernel, width)
        assert "wgmma.mma_async" in built.asm["ptx"]
        assert built.metadata.shared <= 227 * 1024


@needs_triton
@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 150, 32), (2, 2, 1000, 64), (1, 2, 2048, 128), (1, 1, 1, 64)], ids=str)
def test_on_the_device(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    # one position has no gradient of its scores at all: only the output and the gradient of v are compared
    found = errors(shape, dtype, "cuda")
    wanted = found if shape[2] > 1 else [found[0], found[3]]
    assert all(x < TOLERANCES[dtype] for x in wanted), found


if __name__ == "__main__":
    cases = [((1, 2, 150, 32), torch.float32), ((2, 1, 200, 64), torch.float32)]
    cases += [((1, 2, 150, 32), torch.float16), ((2, 1, 200, 64), torch.float16), ((1, 1, 130, 128), torch.float16)]
    cases += [((1, 1, 550, 32), torch.float16)]  # two blocks of rows in the products of position scores
    print(json.dumps({f"{str(d).removeprefix('torch.')} {s}": errors(s, d, "cpu") for s, d in cases}))
