"""Proves: the Triton kernels compute relative attention, its gradients and the rounded update, and compile for the GPU
they are meant for.

Without a GPU they run in Triton's interpreter (float32 and float16; bfloat16 products are garbage there) and are compiled
ahead of time for sm_90. tests/test_cuda.py runs them on a device.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_checks import ATTENTION, FAR, LARGE, TOLERANCES

WIDTHS = (32, 64, 128)
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def numbers(package: str) -> tuple[int, ...]:
    """Major and minor version, or nothing where the package is not installed."""
    try:
        return tuple(map(int, version(package).split(".")[:2]))
    except PackageNotFoundError:
        return ()


TRITON = numbers("triton")
OLD = f"triton {'.'.join(map(str, TRITON))}" if TRITON and TRITON < (3, 9) else ""
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed; run `make triton`")
loops = pytest.mark.skipif(
    bool(OLD) and numbers("numpy") >= (2, 4),
    reason=f"the interpreter of {OLD} fails in loops with numpy >= 2.4; `make triton` installs 3.9.0",
)
rounds_once = pytest.mark.skipif(
    bool(OLD), reason=f"the interpreter of {OLD} rounds a fused product and sum twice; `make triton` installs 3.9.0"
)


def interpreted(what: str) -> Any:
    """What `kernel_checks.py` prints."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(Path(__file__).with_name("kernel_checks.py")), what]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
@loops
def test_the_interpreted_kernel_equals_float64() -> None:
    """Ragged lengths above one block of rows, several sequences and heads, scores beyond exp's range; nan anywhere fails."""
    found = interpreted("attention")
    for (shape, dtype, size), measured in zip(ATTENTION, found, strict=True):
        limit = TOLERANCES[dtype] * (size if size == LARGE else 1)  # large scores carry large roundings
        assert len(measured) == 7 and all(x < limit for x in measured), (shape, dtype, size, measured)


@needs_triton
@loops
def test_offsets_beyond_32_bits_reach_the_right_numbers() -> None:
    """As q, k and v of many long sequences have them; here rows are far apart instead. Heads don't see each other."""
    found = interpreted("far")
    assert len(found) == 14 and all(x < TOLERANCES[FAR[1]] for x in found[:7]), found
    assert all(x < TOLERANCES[torch.float32] for x in found[7:]), found


@needs_triton
@rounds_once
def test_the_fused_rounding_update_gives_the_bits_of_single_operations() -> None:
    """Parameters and both moments; whole shards, shards far into a parameter, columns; nothing moves by a scale of nan."""
    found = interpreted("rounding")
    assert found == [[0, 0, 0]] * len(found) and len(found) == 9


def built(kernel: Any, types: dict[str, str], constants: dict[str, Any], aligned: set[str], **options: Any) -> Any:
    """The kernel compiled for sm_90; arguments are pointers or numbers by `types`, those `aligned` divide by 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    even = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(signature) if signature[n][0] == "*" or n in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=even)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


@needs_triton
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_attention_compiles_for_sm_90_without_a_gpu(width: int, dtype: torch.dtype) -> None:
    """Narrow products become tensor-core instructions, narrow numbers move in vectors, and blocks fit in shared memory (227 KiB)."""
    from gopher.kernels import relative

    names = ("position_scores", "forward", "backward_keys", "backward_queries", "backward_table")
    for kernel in (getattr(relative, f"{name}_kernel") for name in names):
        sizes = relative.tiles(kernel, width, dtype)
        assert max(sizes["BM"], sizes["BN"]) <= relative.MARGIN
        constants = {"BM": sizes["BM"], "BN": sizes["BN"], "D": width, "G": relative.vector(dtype), "S": 2}
        constants = {name: constants[name] for name in kernel.arg_names if name in constants}
        types = dict.fromkeys(kernel.arg_names, f"*{NAMES[dtype]}")
        types |= dict.fromkeys(("LogSum", "Delta", "Sums", "GradTable"), "*fp32")
        even = {n for n in kernel.arg_names if n.endswith(("_row", "_head"))} | {"T", "H", "W", "X"}
        types |= dict.fromkeys(even | {"B"}, "i32") | {"factor": "fp32", "scale": "fp32"}
        found = built(kernel, types, constants, even, num_warps=sizes["num_warps"], num_stages=sizes["num_stages"])
        assert found.metadata.shared <= 227 * 1024
        if dtype != torch.float32:
            assert re.search(r"\bw?g?mma\.(mma_async|sync)", found.asm["ptx"])
            # read one by one, position scores took three quarters of a training step's time
            single = re.findall(r"(?:ld|st)\.global[.\w]*16\b", found.asm["ptx"])
            assert len(single) <= 4, (kernel.__name__, single)  # of an attention bias, a number a thread


@needs_triton
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("narrow", [True, False])
def test_the_rounding_update_compiles_to_the_roundings_that_it_states(narrow: bool) -> None:
    """Two fused products and sums an element, where torch on a CPU has them, and no other; exact division and root."""
    from gopher.kernels.rounding import BLOCK, adam_kernel

    types = dict.fromkeys(("Mean", "Square", "Scale"), "*fp32") | {"Parameter": "*i16"}
    types |= {"Gradient": "*i16" if narrow else "*fp32", "count": "i32", "key": "i64", "start": "i64"}
    types |= dict.fromkeys(("width", "stride"), "i32")
    types |= dict.fromkeys(("blend", "decay", "fresh", "rate", "eps"), "fp32")
    constants = {"NARROW": narrow, "NEAR": True, "CUT": False, "BLOCK": BLOCK}
    ptx = built(adam_kernel, types, constants, {"count"}, num_warps=4, enable_fp_fusion=False).asm["ptx"]
    counts = Counter(re.findall(r"\s([a-z][\w.]+)\s", ptx))
    elements = BLOCK // 128  # of a thread
    assert counts["fma.rn.f32"] == 2 * elements
    assert counts["div.rn.f32"] == counts["sqrt.rn.f32"] == elements
    assert counts["ld.global.v4.b32"] and not re.search(r"\.(ftz|approx|full)\b", ptx)
