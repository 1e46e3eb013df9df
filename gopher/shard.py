"""A model built on no device, sharded with FSDP2, filled shard by shard.

Gradients are sums over ranks, never means: the loss is divided by the tokens of the global batch before the backward
pass, so one rank with four micro-batches and four ranks with one compute the same thing.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from gopher.model import Transformer, initialise
from gopher.optim import Part, local_tensor
from gopher.size import params_total
from gopher.spec import Placement, PrecisionSpec, RunSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
ROOT_ONLY_PARAMETERS = 20_000_000  # below this one gather for the whole model costs less than one per block


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """The caller's process group, or a group of one for the length of the block: training has one code path."""
    if dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not listed for type checkers
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def build(run: RunSpec, placement: Placement) -> Transformer:
    """The sharded model of `run`, initialised from its seed; the same values on any number of ranks."""
    mesh = init_device_mesh(placement.device, (dist.get_world_size(),))
    with torch.device("meta"):
        model = Transformer(run.model, placement.attention, placement.activation_checkpointing)
    model.to(DTYPES[run.precision.parameters])
    shard(model, run.precision, mesh, placement.compile)
    model.to_empty(device=placement.device)
    initialise(((part.name, part.local, part.start) for part in parts(model)), run.model, run.seed)
    return model


def shard(model: Transformer, precision: PrecisionSpec, mesh: DeviceMesh, compile_blocks: bool) -> None:
    """Wrap every block and then the rest; a small model is one group, gathered once per micro-batch."""
    compute = None if precision.compute == precision.parameters else DTYPES[precision.compute]
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=DTYPES[precision.gradient_reduce])
    small = params_total(model.spec) < ROOT_ONLY_PARAMETERS
    for block in model.blocks:
        if compile_blocks:
            block.compile()
        if not small:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=not small)
    if mesh.size() > 1:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum


def sync_gradients(model: torch.nn.Module, now: bool) -> None:
    """Whether the next backward pass reduces over ranks, or only adds to this rank's sum (in the reduction's dtype)."""
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(now)


def release(model: torch.nn.Module) -> None:
    """Drop gathered parameters that a forward pass without a backward pass left behind."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def parts(model: torch.nn.Module) -> list[Part]:
    """What this rank holds, parameter by parameter in the model's order."""
    return [
        Part(name=name, parameter=p, local=local_tensor(p.detach()), start=first_element(p))
        for name, p in model.named_parameters()
    ]


def first_element(parameter: torch.Tensor) -> int:
    """Index in the whole parameter of this rank's first element (FSDP2 cuts dimension 0 in ceil(rows / ranks))."""
    if not isinstance(parameter, DTensor):
        return 0
    dim = next(i for i, placed in enumerate(parameter.placements) if isinstance(placed, Shard))
    ranks, rank = parameter.device_mesh.size(dim), parameter.device_mesh.get_local_rank(dim)
    rows = min(-(-parameter.shape[0] // ranks) * rank, parameter.shape[0])
    return rows * math.prod(parameter.shape[1:])


def like(parameter: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """`local` (say, a moment) as the shard of a whole tensor laid out as `parameter`."""
    if not isinstance(parameter, DTensor):
        return local
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
