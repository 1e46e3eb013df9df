"""A model built on no device, cut with tensor parallelism and FSDP2, filled shard by shard.

Ranks stand in a mesh (data, tensor): the `placement.tensor_parallel` neighbours of a row compute the same sequences, each
with its share of the heads and of the MLP's width (Shoeybi et al. 2019); FSDP2 cuts what they hold over the columns.
Gradients are sums over ranks, never means: the loss is divided by the tokens of the global batch before the backward
pass, so one rank with four micro-batches and four ranks with one compute the same thing.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from gopher.attention import spare_from_compiler
from gopher.draws import Columns, Place
from gopher.model import Block, Transformer, initialise
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


@contextlib.contextmanager
def mesh_of(placement: Placement) -> Iterator[DeviceMesh]:
    """All ranks as (data, tensor). Its groups end with the block: a gang trains run after run, and would run out of them.

    After an error they stay, as other ranks may hang in them; a gang of several workers ends then.
    """
    tensor = placement.tensor_parallel
    mesh = init_device_mesh(
        placement.device, (dist.get_world_size() // tensor, tensor), mesh_dim_names=("data", "tensor")
    )
    yield mesh
    for group in (mesh.get_group("data"), mesh.get_group("tensor")):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def build(run: RunSpec, placement: Placement, mesh: DeviceMesh) -> Transformer:
    """The sharded model of `run` on `mesh_of(placement)`, initialised from its seed; the same values on any number of ranks."""
    if placement.compile:
        torch.compiler.reset()  # blocks of all shapes share one limit of compilations, behind which they run uncompiled
    with torch.device("meta"):
        model = Transformer(run.model, placement.attention, placement.activation_checkpointing)
    model.to(DTYPES[run.precision.parameters])
    if mesh["tensor"].size() > 1:
        split_heads(model, mesh["tensor"])
    shard(model, run.precision, mesh["data"], placement.compile, placement.reshard_after_forward)
    model.to_empty(device=placement.device)
    initialise(((part.name, part.local, part.place) for part in parts(model)), run.model, run.seed)
    return model


def split_heads(model: Transformer, mesh: DeviceMesh) -> None:
    """Give every rank of `mesh` its heads and its part of the MLP; norms, embedding and loss are computed by all.

    u and v stay whole, as a rank's few rows of them are too short to be cut once more.
    """
    maps: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in ("qkv", "position", "up")}
    maps |= {name: RowwiseParallel() for name in ("output", "down")}
    for block in model.blocks:
        assert isinstance(block, Block)
        parallelize_module(block, mesh, maps)
        block.u, block.v = (
            torch.nn.Parameter(distribute_tensor(x, mesh, [Replicate()], src_data_rank=None))
            for x in (block.u, block.v)
        )
        block.own_heads = own_heads
    model.n_heads //= mesh.size()


def own_heads(bias: torch.Tensor) -> torch.Tensor:
    """The rows of a whole attention bias (H, d_head) that this rank's heads use; their gradient becomes whole again."""
    assert isinstance(bias, DTensor)
    return bias.redistribute(placements=[Shard(0)]).to_local()


def shard(
    model: Transformer, precision: PrecisionSpec, mesh: DeviceMesh, compile_blocks: bool, reshard: str = "auto"
) -> None:
    """Wrap every block and then the rest; a small model is one group, gathered once per micro-batch.

    `reshard`: whether a block's gathered parameters are freed between its forward and its backward pass (always), kept
    (never), or kept in small models alone (auto).
    """
    compute = None if precision.compute == precision.parameters else DTYPES[precision.compute]
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=DTYPES[precision.gradient_reduce])
    small = params_total(model.spec) < ROOT_ONLY_PARAMETERS
    free = {"auto": not small, "always": True, "never": False}[reshard]
    if compile_blocks:
        spare_from_compiler()
    for block in model.blocks:
        if compile_blocks:
            block.compile()
        if not small:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=free)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=free)
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
        Part(name=name, parameter=p, local=local_tensor(p.detach()), place=place(p), ranks=holders(p))
        for name, p in model.named_parameters()
    ]


def place(parameter: torch.Tensor) -> Place:
    """Where this rank's elements stand in the whole parameter."""
    if not isinstance(parameter, DTensor):
        return 0
    size, first = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    if parameter.dim() == 1:
        return first[0]
    start = first[0] * parameter.shape[1] + first[1]
    if size[1] == parameter.shape[1]:
        return start
    return Columns(start=start, width=size[1], stride=parameter.shape[1])


def holders(parameter: torch.Tensor) -> int:
    """Ranks of the whole group that hold what this rank holds of the parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    mesh = parameter.device_mesh
    cut = math.prod(mesh.size(dim) for dim, placed in enumerate(parameter.placements) if not placed.is_replicate())
    return dist.get_world_size() // cut


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


def on_device(numbers: npt.NDArray[Any], placement: Placement) -> torch.Tensor:
    """A numpy array as a tensor where the run computes; the host does not wait for the copy."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to("cuda", non_blocking=True) if placement.device == "cuda" else tensor
